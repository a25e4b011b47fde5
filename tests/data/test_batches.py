"""What one element of the input means."""

import collections
import re

import jax
import numpy as np
import pytest
from tiny_models import data, linear_init, linear_model_fn, run_config

import jaxspec as js
from jaxspec._src.data.batch import BatchChecker
from jaxspec._src.data.elements import split_element
from jaxspec._src.data.input_request import InputRequest

X, Y = data(rows=24)


def check(element, mode="train", num_shards=1, batch_size=4, ragged=False):
    request = InputRequest(list, mode=mode, devices=jax.devices()[:num_shards], batch_size=batch_size, ragged=ragged)
    return BatchChecker(request).check(element).data


def assert_pair(got, features, labels):
    assert jax.tree.structure(got) == jax.tree.structure((features, labels))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves((features, labels)), strict=True):
        np.testing.assert_array_equal(a, b)


class Tensor:
    """As much of a torch tensor as matters."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype = array.shape, f"torch.{array.dtype}"

    def __array__(self, dtype=None, copy=None):
        return self.array


x, y = X[:4], Y[:4]
PAIRS = {
    "tuple": ((x, y), x, y),
    "torch's list": ([Tensor(x), Tensor(y)], x, y),
    "torch's list of a dict": ([{"a": Tensor(x)}, Tensor(y)], {"a": x}, y),
    "torch's list of a list": ([[Tensor(x), Tensor(x)], Tensor(y)], [x, x], y),
    "list of arrays": ([x, y], x, y),
    "list without labels": ([x, None], x, None),
    "array and numbers": ([x, [0, 1, 2, 0]], x, [np.array([0, 1, 2, 0])][0]),
    "numbers and array": ([[[1.0]] * 4, y], np.ones((4, 1), np.float32), y),
    "plain lists in a tuple": (([[1, 2]] * 4, [0, 1, 0, 1]), np.array([[1, 2]] * 4), np.array([0, 1, 0, 1])),
    "plain lists in a list": ([[[1, 2]] * 4, [0, 1, 0, 1]], np.array([[1, 2]] * 4), np.array([0, 1, 0, 1])),
    "plain features": ([[1.5, 2.5]] * 4, np.array([[1.5, 2.5]] * 4, np.float32), None),
    "numbers": ([1, 2, 3, 4], np.array([1, 2, 3, 4]), None),
    "booleans": (([True, False] * 2, [1, 0] * 2), np.array([True, False] * 2), np.array([1, 0] * 2)),
    "NumPy's numbers": ([np.float32(1)] * 4, np.ones(4, np.float32), None),
    "lists in a dict": ({"a": [[1, 2]] * 4, "b": x}, {"a": np.array([[1, 2]] * 4), "b": x}, None),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_a_pair_and_what_is_an_array(name):
    element, features, labels = PAIRS[name]
    got = check(element)
    assert_pair(got, features, labels)
    assert all(leaf.dtype in (np.float32, np.int32, np.bool_) for leaf in jax.tree.leaves(got))


def test_two_rows_of_numbers_are_one_array():
    assert_pair(check([[1, 2], [3, 4]], batch_size=2), np.array([[1, 2], [3, 4]]), None)
    assert_pair(check(([[1, 2], [3, 4]], [0, 1]), batch_size=2), np.array([[1, 2], [3, 4]]), np.array([0, 1]))


REFUSED = {
    "list of three": (
        [x, y, y],
        ValueError,
        r"\(features, labels\) as a len 2 tuple, got a list of 3. Put several feat",
    ),
    "list of one": ([x], ValueError, "got a list of 1"),
    "ragged list": ({"a": [[1], [1, 2], [3], [4]]}, TypeError, "features/a is a ragged list; pad its rows"),
    "strings": ({"a": ["x"] * 4}, TypeError, r"features/a has dtype <U1 \(list\)"),
    "big numbers": ([2**40] * 4, OverflowError, "features is int64 and holds values that int32 cannot"),
    "number": ({"a": x, "step": 3}, ValueError, r"features/step is a scalar \(3\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    element, error, text = REFUSED[name]
    with pytest.raises(error, match=f"(?s).*{text}"):
        check(element)


def test_the_rows_of_one_shard_are_named_as_that():
    with pytest.raises(
        ValueError, match="has 2 rows, expected 8.*the rows of one of the 4 shards: yield the rows of all"
    ):
        check((X[:2], Y[:2]), num_shards=4, batch_size=8)
    with pytest.raises(ValueError, match="has 3 rows, expected 8") as caught:
        check((X[:3], Y[:3]), num_shards=4, batch_size=8)
    assert "one of the" not in str(caught.value)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("max_programs", [1, 16])
def test_shapes_that_are_not_meant_are_named(tmp_path, verb, max_programs):
    def input_fn():
        for width in (4, 6):
            yield np.zeros((8, width), np.float32), np.zeros(8, np.int32)

    made = js.TPUEstimator(
        linear_model_fn,
        linear_init,
        model_dir=tmp_path,
        config=run_config(num_shards=1, max_programs=max_programs),
        train_batch_size=8,
        eval_batch_size=8,
    )
    if max_programs == 1:
        message = (
            r"batch 1 .*has new shapes \(features: float32\[8,6\]\), and each of the 1 before .*max_programs=\.\.\."
        )
        with pytest.raises(ValueError, match=message):
            getattr(made, verb)(input_fn)
    else:
        with pytest.raises(TypeError, match="dot_general") as caught:
            getattr(made, verb)(input_fn)
        (note,) = [note for note in caught.value.__notes__ if "not those of the first batch" in note]
        assert re.search(r"features: float32\[\d+,1,8,6\]", note)
    if verb == "train":
        assert made.get_variable_value("global_step") == 1  # the batch before has been trained on


def test_torchs_lists_and_plain_lists_train_as_tuples_do(tmp_path):
    forms = {
        "tuples": lambda i: (X[i : i + 8], Y[i : i + 8]),
        "torch": lambda i: [Tensor(X[i : i + 8]), Tensor(Y[i : i + 8].astype(np.int64))],
        "plain": lambda i: (X[i : i + 8].tolist(), Y[i : i + 8].tolist()),
    }
    losses = {}
    for name, form in forms.items():
        made = js.TPUEstimator(
            linear_model_fn,
            linear_init,
            model_dir=tmp_path / name,
            config=run_config(num_shards=1),
            train_batch_size=8,
            eval_batch_size=8,
        )
        batches = [form(i) for i in (0, 8, 16)]
        losses[name] = made.train(batches.copy).evaluate(batches.copy)
    assert losses["torch"] == losses["tuples"]
    assert losses["plain"] == losses["tuples"]


def test_a_named_tuple_is_features():

    Point = collections.namedtuple("Point", "a b")
    features, labels = split_element(Point(x, y))
    assert (type(features), labels) == (Point, None)
