"""Tests of custom.utils.precision."""

from __future__ import annotations

import pytest
import torch

from custom.utils import precision
from custom.utils.precision import amp_choice, uses_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(("given", "choice"), [(True, True), ("False", False), ("auto", "auto"), ("AUTO", "auto")])
def test_choices(given: bool | str, choice: bool | str) -> None:
    assert amp_choice(given) == choice


@pytest.mark.parametrize("fast", [True, False])
def test_auto_follows_the_device(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: fast)
    assert uses_bfloat16("auto", CPU) is fast
    assert uses_bfloat16("true", CPU) is True
    assert uses_bfloat16(False, CPU) is False


def test_anything_else() -> None:
    with pytest.raises(ValueError, match="amp: expected true, false or auto; found 'bf16'"):
        uses_bfloat16("bf16", CPU)
