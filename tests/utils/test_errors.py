"""Tests of custom.utils.errors."""

from __future__ import annotations

import sys

import pytest

from custom.utils.errors import find_user_error, report_plainly, user_message
from custom.utils.modalities import target_indices


def wrapped(action) -> RuntimeError:
    """What MONAI's layers make of an error."""
    try:
        try:
            action()
        except Exception as inner:
            raise RuntimeError("applying transform") from inner
    except RuntimeError as outer:
        return outer
    raise AssertionError("the action did not fail")


def user_fault() -> None:
    target_indices("pet", ["t1", "t2"])


def programming_fault() -> None:
    int("x")


def test_the_message_for_the_user_is_found_under_the_layers() -> None:
    error = wrapped(lambda: (_ for _ in ()).throw(wrapped(user_fault)))
    assert str(find_user_error(error)).startswith("targets: expected one or more of t1, t2; found 'pet'")
    assert user_message(error, default="a.nii") == str(find_user_error(error))


def test_other_errors_keep_their_cause() -> None:
    error = wrapped(programming_fault)
    assert find_user_error(error) is None
    assert user_message(error, default="a.nii").startswith("a.nii: ValueError: invalid literal")


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (user_fault, "error: targets: expected"),
        (programming_fault, "error: test_errors.py:30: ValueError: invalid literal"),
    ],
    ids=["user", "programming"],
)
@pytest.mark.parametrize("debug", [False, "true"])
def test_terminal(action, said: str, debug: bool | str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    report_plainly(debug)
    error = wrapped(action)
    sys.excepthook(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    if debug:
        assert "Traceback" in printed
    else:
        assert printed.startswith(said)
        assert len(printed.splitlines()) == 1


def test_an_interrupt_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    report_plainly()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "stopped by Ctrl-C; what was complete by then is kept.\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "a.nii: expected enough memory; found too little"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] ..."), "a.nii: expected enough memory"),
        (RuntimeError("Found no NVIDIA driver on your system. Please"), "a.nii: expected a device that is here"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Use --device cpu"),
    ],
)
def test_faults_of_others_that_have_a_remedy(error: Exception, said: str) -> None:
    assert said in user_message(wrapped(lambda: (_ for _ in ()).throw(error)), default="a.nii")


def test_error_of_the_program_itself_is_this_package_s() -> None:
    """``python -m custom`` runs under another name."""
    namespace = {"__name__": "__main__", "__package__": "custom"}
    exec(compile("def fail():\n    raise ValueError('mine')", "main", "exec"), namespace)
    with pytest.raises(ValueError, match="mine") as caught:
        namespace["fail"]()
    assert find_user_error(caught.value) is caught.value
    namespace["__package__"] = "other"
    with pytest.raises(ValueError, match="mine") as caught:
        namespace["fail"]()
    assert find_user_error(caught.value) is None
