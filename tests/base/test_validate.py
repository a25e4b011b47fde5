"""Checks of numbers and callables: what each refuses, and what it says."""

import numpy as np
import pytest

from jaxspec._src.base.validate import check_callable, check_number, is_integer


@pytest.mark.parametrize("value", [None, 0, 3, 2.5, np.int64(3), np.float32(0.5)])
def test_numbers_are_accepted(value):
    check_number("n", value, minimum=0, maximum=3)


REFUSED = {
    "a string": (dict(value="3"), TypeError, r"n should be a number, got '3' \(str\)"),
    "a bool": (dict(value=True), TypeError, r"n should be a number, got True \(bool\)"),
    "a fraction": (dict(value=1.5, whole=True), TypeError, r"n should be a whole number, got 1.5 \(float\)"),
    "None": (dict(value=None, required=True), TypeError, r"n should be a number, got None \(NoneType\)"),
    "below the minimum": (dict(value=-1, minimum=0), ValueError, "n should be >= 0, got -1"),
    "the bound itself": (dict(value=0, above=0), ValueError, "n should be > 0, got 0"),
    "above the maximum": (dict(value=4, maximum=3), ValueError, "n should be <= 3, got 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_number_is_refused(case):
    kwargs, error, text = REFUSED[case]
    with pytest.raises(error, match=f"^{text}$"):
        check_number("n", **kwargs)


def test_integers_are_those_of_python_and_numpy():
    assert [is_integer(value) for value in (3, np.int8(3), True, 3.0, "3", None)] == [True, True] + [False] * 4


def test_what_is_not_callable_is_shown_shortened():
    check_callable("fn", print)
    with pytest.raises(
        TypeError, match=r"^fn must be callable, given: \[0, 1, 2, 3, 4, 5, \.\.\.\]\. Write a function\.$"
    ):
        check_callable("fn", list(range(100)), "Write a function.")
