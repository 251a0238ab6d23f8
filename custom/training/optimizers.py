"""The optimizer of stages 2 and 3."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from custom.utils.precision import fast_bfloat16

__all__ = ["ConvolutionMuon", "orthogonalize"]

# Quintic of Jordan et al.: five rounds bring singular values from (0.01, 1] into about [0.7, 1.2]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About the nearest semi-orthogonal matrix ``U Vᵀ`` of each ``matrix = U S Vᵀ``, by Newton-Schulz iterations.

    Args:
        matrix: (..., m, n).
        iterations: rounds; each costs three products of matrices.

    Returns:
        (..., m, n) in the precision of ``matrix``, singular values between about 0.7 and 1.2.
    """
    a, b, c = COEFFICIENTS
    # the iteration is stable in bfloat16, which pays where there are instructions for it: without, a step of MS-SPADE's
    # takes longer than its gradient; and the shorter side is the one to square
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = x.bfloat16() if fast_bfloat16(x.device) else x.float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if matrix.shape[-2] > matrix.shape[-1] else x).to(matrix.dtype)


class ConvolutionMuon(Optimizer):
    """Muon for the kernels inside a convolutional network, AdamW for what remains, under one learning rate.

    Muon steps along the orthogonalised momentum, so that every direction of a kernel moves alike, however small its
    gradient. Here a kernel (out, in, k, k, k) is the matrix (out, in·k³), and switchable kernels (M, out, in, k, k, k)
    are M of them. Biases, norms, and the narrow kernels that lead from and to latents are AdamW's, as Muon's authors
    advise for first and last layers. The root mean square of Muon's steps is AdamW's usual 0.2, hence one rate serves
    both. ``torch.optim.Muon`` takes matrices only.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: of Muon, Nesterov's.
        betas: of AdamW.
        weight_decay: decoupled, of both.
        min_channels: kernels with fewer channels than this at either end are left to AdamW.

    Raises:
        ValueError: for a learning rate or a momentum out of range.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); scale of the steps: Liu et al. 2025
    (https://arxiv.org/abs/2502.16982).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        min_channels: int = 16,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr, momentum: expected lr >= 0 and momentum in [0, 1); found {lr}, {momentum}.")
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "min_channels": min_channels})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon if is_inner_kernel(parameter, group["min_channels"]) else self._adam
                parameter.add_(update(parameter, parameter.grad, group), alpha=-group["lr"])
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(average, group["momentum"]).flatten(-4)
        return orthogonalize(matrix).mul_(0.2 * max(matrix.shape[-2:]) ** 0.5).view_as(parameter)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = state["step"].item(), group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient.square(), 1 - beta2)
        spread = (state["square"] / (1 - beta2**step)).sqrt_().add_(1e-8)
        return state["mean"].div(1 - beta1**step).div_(spread)


def is_inner_kernel(parameter: Tensor, min_channels: int) -> bool:
    """Whether ``parameter`` is the kernel of a 3D convolution with at least ``min_channels`` at both ends."""
    return parameter.ndim in (5, 6) and min(parameter.shape[-5], parameter.shape[-4]) >= min_channels
