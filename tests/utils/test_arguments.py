"""Tests of custom.utils.arguments."""

from __future__ import annotations

import numpy as np
import pytest

from custom.utils.arguments import as_bool, whole_number


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("False", False), ("TRUE", True)]
)
def test_reads_what_a_command_line_gives(value: bool | str, expected: bool) -> None:
    assert as_bool("amp", value) is expected


@pytest.mark.parametrize("value", ["yes", 1, None, ""])
def test_anything_else_is_an_error_that_names_the_argument(value: object) -> None:
    with pytest.raises(ValueError, match=r"amp: expected true or false; found"):
        as_bool("amp", value)


@pytest.mark.parametrize(("value", "number"), [(1, 1), (10, 10), ("7", 7), (" 3 ", 3), (np.int64(4), 4)])
def test_whole_number(value: object, number: int) -> None:
    found = whole_number("steps", value, smallest=1, largest=10)
    assert found == number
    assert type(found) is int


@pytest.mark.parametrize("value", [0, 11, 1e9, 10**30, "9" * 5000, 1.5, 2.0, "1.5", True, False, None, "", "many", [1]])
def test_no_whole_number_within_the_bounds(value: object) -> None:
    with pytest.raises(ValueError, match="steps: expected a whole number from 1 to 10; found"):
        whole_number("steps", value, smallest=1, largest=10)
