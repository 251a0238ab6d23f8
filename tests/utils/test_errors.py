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


@pytest.mark.parametrize(("action", "lines"), [(user_fault, 1), (programming_fault, None)], ids=["user", "programming"])
def test_terminal(action, lines: int | None, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    report_plainly()
    error = wrapped(action)
    sys.excepthook(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    if lines:
        assert printed.startswith("error: targets: expected")
        assert len(printed.splitlines()) == lines
    else:
        assert "Traceback" in printed


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
