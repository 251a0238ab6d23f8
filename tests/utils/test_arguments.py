"""Tests of custom.utils.arguments."""

from __future__ import annotations

import pytest

from custom.utils.arguments import as_bool


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("False", False), ("TRUE", True)]
)
def test_reads_what_a_command_line_gives(value: bool | str, expected: bool) -> None:
    assert as_bool("amp", value) is expected


@pytest.mark.parametrize("value", ["yes", 1, None, ""])
def test_anything_else_is_an_error_that_names_the_argument(value: object) -> None:
    with pytest.raises(ValueError, match=r"amp: expected true or false; found"):
        as_bool("amp", value)
