"""Each row of the table of removed arguments is what a caller reads."""

import pytest

import jaxspec as js
from jaxspec._src.base.removed_arguments import CALLS, REMOVED

ROWS = [(name, argument) for name, removed in REMOVED.items() for argument in removed]


@pytest.mark.parametrize(("name", "argument"), ROWS)
def test_a_call_with_a_removed_argument_says_what_to_write(name, argument):
    with pytest.raises(TypeError) as caught:
        getattr(js, name)(**{argument: None})
    assert str(caught.value).startswith(f"{name}: ")
    assert f"{argument}: {REMOVED[name][argument]}" in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_another_wrong_call_says_how_to_call(name):
    with pytest.raises(TypeError) as caught:
        getattr(js, name)(*range(20))
    assert str(caught.value) == f"{name}: too many positional arguments. {CALLS[name]}"
