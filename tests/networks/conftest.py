"""Checks that every network is put through, and the reference data of the authors' release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

RELEASE_LAYOUT = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "release_layout.pt"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def release_layout() -> dict[str, Any]:
    """A small first stage in the authors' released layout: its weights, an input, and what it computes.

    Another program computed that, on another machine: what is compared with it may differ by 5e-5 of the largest value
    (6.5e-6 was seen).
    """
    if not RELEASE_LAYOUT.is_file():
        pytest.skip(f"the reference data of the release are not here: {RELEASE_LAYOUT}")
    return torch.load(RELEASE_LAYOUT, weights_only=True)


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Gives every parameter, those initialised with zeros too, a random value."""

    def apply(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
        return module

    return apply


@pytest.fixture
def check_batch(assert_near) -> Callable[..., None]:
    """``check_batch(function, *tensors)``: a batch gives what its items give one by one."""

    def check(function: Callable[..., Tensor], *batch: Tensor) -> None:
        single = [function(*(t[i : i + 1] for t in batch)) for i in range(len(batch[0]))]
        assert_near(function(*batch), torch.cat(single))

    return check


@pytest.fixture
def check_script(assert_near) -> Callable[..., None]:
    """``check_script(module, *args)``: the compiled module gives what the module gives."""

    def check(module: nn.Module, *args: Tensor) -> None:
        module.eval()
        script = torch.jit.script(module)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            assert_near(script(*args), module(*args))

    return check


@pytest.fixture
def check_learning() -> Callable[..., None]:
    """``check_learning(module, output, frozen=())``: a finite, non-zero gradient for all but the ``frozen``."""

    def check(module: nn.Module, output: Tensor, frozen: tuple[str, ...] = ()) -> None:
        # a projection with random weights: plain sums vanish behind normalisations
        (output * torch.randn_like(output)).sum().backward()
        for name, parameter in module.named_parameters():
            if name in frozen:
                assert parameter.grad is None, name
                assert not parameter.requires_grad, name
            else:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name

    return check


@pytest.fixture
def check_state_dict(tmp_path: Path) -> Callable[..., None]:
    """``check_state_dict(make, *args)``: weights saved from one instance make another give the same output."""

    def check(make: Callable[[], nn.Module], *args: Tensor) -> None:
        first, second = make().eval(), make().eval()
        torch.save(first.state_dict(), tmp_path / "weights.pt")
        second.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
        torch.testing.assert_close(second(*args), first(*args), rtol=0, atol=0)

    return check


class LargestResult(TorchDispatchMode):
    """While active, keeps the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.fixture
def largest_result() -> LargestResult:
    """See :class:`LargestResult`."""
    return LargestResult()
