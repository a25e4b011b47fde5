"""A saved position: kept exactly, and given only to the input it came from."""

import collections
import logging
import math

import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.data.position import decode_position, encode_position
from jaxspec._src.data.resume import arrays_fingerprint

ROWS = 4


def estimator(path, seen, save=None, rows=ROWS):
    """The counting model, which writes the first number of each batch that it trains on to `seen`."""

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=(lambda x: seen.append(float(x[0])), [features["x"]]))

    config = run_config(save=save, num_shards=1)
    return js.TPUEstimator(model_fn, counting_init, model_dir=path, config=config, train_batch_size=rows)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "jaxspec"]


def numbers(start, count=64):
    return {"x": np.arange(start, start + count, dtype=np.float32)}


@pytest.fixture(params=["same process", "restart"])
def again(request, tmp_path):
    """Gives the estimator of the next run, which finds the state in memory or in a checkpoint, and what it trains
    on."""
    seen = []
    save = None if request.param == "same process" else 1
    made = [estimator(tmp_path, seen, save)]

    def next_one():
        if save:
            made[0] = estimator(tmp_path, seen, save)
        seen.clear()
        return made[0], seen

    return next_one


# Which input.


CHANGES = {
    "other values": (numbers(1000), {}),
    "one row": ({"x": np.concatenate([numbers(0)["x"][:-1], [np.float32(7)]])}, {}),
    "another dtype": ({"x": np.arange(64, dtype=np.int32)}, {}),
    "more rows": (numbers(0, 65), {}),
    "labels": (numbers(0), {"y": np.zeros(64, np.float32)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_data_set_starts_at_its_beginning_with_a_warning(again, caplog, change):
    x, kwargs = CHANGES[change]
    made, _ = again()
    made.train(js.inputs.numpy_input_fn(numbers(0), num_epochs=None), steps=3)
    caplog.clear()
    made, seen = again()
    if "y" in kwargs:  # the model takes no labels: only what is said matters
        with pytest.raises(ValueError, match="labels"):
            made.train(js.inputs.numpy_input_fn(x, kwargs["y"], num_epochs=None), steps=2)
    else:
        made.train(js.inputs.numpy_input_fn(x, num_epochs=None), steps=2)
        assert seen == [float(x["x"][0]), float(x["x"][ROWS])]
    (told,) = [w for w in warnings(caplog) if "is not the one before" in w]
    assert "at global step 3" in told
    assert "resume_input=True" in told


def test_the_same_data_go_on_whatever_the_batch_size_and_the_number_of_epochs(tmp_path, caplog):
    seen = []
    estimator(tmp_path, seen, save=1).train(js.inputs.numpy_input_fn(numbers(0), num_epochs=2), steps=3)
    seen.clear()
    made = estimator(tmp_path, seen, save=1, rows=8)
    made.train(js.inputs.numpy_input_fn(numbers(0), num_epochs=None), steps=2)  # equal arrays, not the same ones
    assert seen == [12, 20]
    assert warnings(caplog) == []


@pytest.mark.parametrize("second", [{"shuffle": True, "seed": 1}, {}])
def test_another_order_starts_at_its_beginning(again, caplog, second):
    made, _ = again()
    made.train(js.inputs.numpy_input_fn(numbers(0), num_epochs=None, shuffle=True), steps=3)
    made, seen = again()
    input_fn = js.inputs.numpy_input_fn(numbers(0), num_epochs=None, **second)
    made.train(input_fn, steps=1)
    assert seen == [next(input_fn({"batch_size": ROWS}, "train"))["x"][0]]
    assert any("is not the one before" in w for w in warnings(caplog))


def test_train_can_be_told(again, caplog):
    made, _ = again()
    made.train(js.inputs.numpy_input_fn(numbers(0), num_epochs=None), steps=3)
    made, seen = again()
    made.train(js.inputs.numpy_input_fn(numbers(1000), num_epochs=None), steps=1, resume_input=True)
    assert seen == [1012]
    made, seen = again()
    made.train(js.inputs.numpy_input_fn(numbers(1000), num_epochs=None), steps=1, resume_input=False)
    assert seen == [1000]
    assert not any("not the one before" in w for w in warnings(caplog))
    made, seen = again()
    spec = js.TrainSpec(js.inputs.numpy_input_fn(numbers(1000), num_epochs=None), max_steps=6, resume_input=False)
    assert spec.resume_input is False


class Loader:
    """A loader of the user's over an array; its state is that of no other data, but it cannot tell."""

    def __init__(self, data):
        self.data, self.i = data, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.i += 1
        return {"x": self.data[(self.i - 1) * ROWS : self.i * ROWS]}

    def get_state(self):
        return {"i": self.i}

    def set_state(self, state):
        self.i = state["i"]


class Fingerprinted(Loader):
    def __init__(self, data, name):
        super().__init__(data)
        self.name = name

    def fingerprint(self):
        return ("files", self.name)


class Refusing(Loader):
    def get_state(self):
        return {"i": self.i, "first": float(self.data[0])}

    def set_state(self, state):
        if state["first"] != self.data[0]:
            raise ValueError("that is a position in another file")
        self.i = state["i"]


class Hidden(Loader):
    """Holds its data where nobody finds them."""

    def __init__(self, data):
        super().__init__(None)
        self.read = lambda i: data[i * ROWS : (i + 1) * ROWS]

    def __next__(self):
        self.i += 1
        return {"x": self.read(self.i - 1)}


def kept_elsewhere(data):
    def named_otherwise():
        return Hidden(data)

    return named_otherwise


A, B = numbers(0)["x"], numbers(1000)["x"]
LOADERS = {
    "arrays": (lambda: Loader(A), lambda: Loader(B), "arrays/data"),
    "fingerprint": (lambda: Fingerprinted(A, "a"), lambda: Fingerprinted(A, "b"), "fingerprint"),
    "set_state refuses": (lambda: Refusing(A), lambda: Refusing(A + 1000), "fingerprint|arrays|another file"),
    "type": (lambda: Loader(A), lambda: Hidden(B), "iterator"),
    "name of input_fn": (lambda: Hidden(A), kept_elsewhere(B), "input_fn: kept_elsewhere"),
    "structure": (lambda: Hidden(A), lambda: Hidden(B.astype(np.int32)), "leaves/features/x: int32"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_other_iterators_are_recognised_too(again, caplog, loader):
    first, second, reason = LOADERS[loader]
    made, seen = again()
    made.train(first, steps=3)
    assert seen == [0, 4, 8]
    made, seen = again()
    made.train(first, steps=1)
    assert seen == [12]
    assert not any("not the one before" in w for w in warnings(caplog))
    made, seen = again()
    made.train(second, steps=2)
    begin = next(iter(second()))["x"][0]
    assert seen == [begin, begin + 4]
    (told,) = [w for w in warnings(caplog) if "not the one before" in w]
    assert any(word in told for word in reason.split("|"))


def test_the_fingerprint_of_a_large_array_is_a_bounded_sample():
    large = np.zeros((300_000, 8), np.float32)
    one = arrays_fingerprint({"x": large})
    for row in (0, -1):
        changed = large.copy()
        changed[row, 3] = 1
        assert arrays_fingerprint({"x": changed}) != one
    changed = large.copy()
    changed[1000:1600] = 1
    assert arrays_fingerprint({"x": changed}) != one
    assert arrays_fingerprint({"x": large[::-1].copy()}) == one
    small = np.zeros((100, 8), np.float32)
    for row in range(100):
        changed = small.copy()
        changed[row, 7] = 1
        assert arrays_fingerprint(changed) != arrays_fingerprint(small)
    assert arrays_fingerprint(np.asfortranarray(np.arange(6).reshape(2, 3))) == arrays_fingerprint(
        np.arange(6).reshape(2, 3)
    )


def test_a_position_of_before_is_still_used():
    """Positions were plain JSON, with no identity."""
    batches = js.inputs.numpy_input_fn(numbers(0), num_epochs=None)({"batch_size": ROWS}, "train")
    batches.set_state(decode_position('{"rows": 12, "of": 64, "seed": null}'))
    assert next(batches)["x"][0] == 12
    with pytest.raises(ValueError, match="one in 7 examples in order, the input has 64 examples in order"):
        batches.set_state(decode_position('{"rows": 12, "of": 7, "seed": null}'))
    assert decode_position('{"raw": {"__bytes__": "AP8="}, "n": [1, 2.5]}') == {"raw": b"\x00\xff", "n": [1, 2.5]}


# Inputs that begin again.


def test_an_input_that_begins_again_is_told_once(again, caplog):
    made, _ = again()
    made.train(counting_input(10), steps=3)
    made, seen = again()
    made.train(counting_input(10), steps=2)
    assert seen == [0, 1]
    (told,) = [w for w in warnings(caplog) if "begins again at its first batch" in w]
    assert "at global step 3" in told
    assert "a generator has no get_state and set_state" in told


def test_an_epoch_for_each_call_is_no_surprise(tmp_path, caplog):
    seen = []
    made = estimator(tmp_path, seen)
    for _ in range(2):
        made.train(counting_input(3))
        made.train(js.inputs.numpy_input_fn(numbers(0, 8)), resume_input=False)
    made.train(js.inputs.numpy_input_fn(numbers(0, 8)))
    assert seen == [0, 1, 2, 0, 4] * 2 + [0, 4]
    assert warnings(caplog) == []


# Kept exactly.


def equal(a, b):
    """Whether two values have the same types and values all through."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and (a == b or a != a)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a) and all(map(equal, a, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    return a == b


STATES = {
    "int keys": {0: 3, 1: {2: "x"}},
    "other keys": {(1, "a"): 1, None: 2, True: 3, 2.5: 4, b"k": 5, "k": 6},
    "tuple": {"at": (1, (2, [3, ()]))},
    "sets": {"done": {1, (2, 3), "x"}, "frozen": frozenset({b"y"}), "none": set()},
    "NumPy's old random state": np.random.RandomState(3).get_state(),
    "NumPy's bit generator": np.random.PCG64(5).state,
    "numbers": [0, -1, 2**200, 1e300, -0.0, float("nan"), float("-inf"), True, False, None],
    "scalars": [
        np.int64(3),
        np.uint8(255),
        np.float32(0.1),
        np.float64("nan"),
        np.bool_(True),
        np.str_("é"),
        np.complex64(1j),
    ],
    "arrays": [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.array(3.5),
        np.zeros((0, 4), np.float32),
        np.array(["a", "bc"]),
    ],
    "dates": [np.datetime64("2020-01-01"), np.array([1, 2], "timedelta64[s]")],
    "texts": ["", "é\ud800 \N{SNOWMAN}", b"", b"\x00\xff"],
    "words of our own": {"__tuple__": [1], "__bytes__": "x", "in": {"__input__": 1, "__state__": 2}, "__dict__": []},
    "identity look-alike": {"__input__": {"a": 1}, "__state__": {"b": 2}},
    "ordered": collections.OrderedDict([("b", 1), ("a", (2,))]),
    "empty": {"d": {}, "l": [], "t": ()},
    "bare": 7,
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_comes_back_as_it_was(name):
    state = STATES[name]
    assert equal(decode_position(encode_position(state)), state)
    assert equal(decode_position(encode_position(state, {"iterator": "x"})), state)
    arrays = [x for x in decode_position(encode_position(STATES["arrays"])) if isinstance(x, np.ndarray)]
    assert all(array.flags.writeable for array in arrays)


class Named(collections.namedtuple("Named", "a b")):
    pass


REFUSED = {
    "object": ({"a": [1, object()]}, r"returned a object, .*at state\['a'\]\[1\]"),
    "named tuple": ({"a": Named(1, 2)}, r"returned a Named, .*at state\['a'\]"),
    "defaultdict": (collections.defaultdict(int), "returned a defaultdict, .*at state;"),
    "array of objects": ({"a": np.array([None])}, r"returned a ndarray of dtype object, .*at state\['a'\]"),
    "key": ({"a": {Named(1, 2): 1}}, r"returned a Named, .*at state\['a'\]: key Named"),
    "in a set": ({"a": {range(2)}}, r"returned a range, .*at state\['a'\]\[0\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_that_cannot_be_kept_is_refused_at_the_first_batch(tmp_path, name):
    state, text = REFUSED[name]

    class Odd(Loader):
        def get_state(self):
            return state

    seen = []
    with pytest.raises(TypeError, match=f"the input's get_state {text}"):
        estimator(tmp_path, seen).train(lambda: Odd(A), steps=5)
    assert seen == []


def test_what_get_state_and_set_state_raise_comes_back_with_its_place(again):
    class Broken(Loader):
        def set_state(self, state):
            raise KeyError("epoch")

    class Mute(Loader):
        def get_state(self):
            raise KeyError("i")

    made, _ = again()
    with pytest.raises(KeyError, match="'i'") as caught:
        made.train(lambda: Mute(A), steps=1)
    assert caught.value.__notes__ == ["raised by get_state of the input, after batch 0 (counted from 0)"]
    made.train(lambda: Broken(A), steps=1)
    made, _ = again()
    with pytest.raises(KeyError, match="epoch") as caught:
        made.train(lambda: Broken(A), steps=1)
    assert caught.value.__notes__[0].startswith("raised by set_state of the input that input_fn (")


def test_a_state_is_asked_for_in_training_only(tmp_path):
    class Odd(Loader):
        def get_state(self):
            raise AssertionError("in evaluation")

    made = js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=tmp_path, config=run_config(num_shards=1), eval_batch_size=ROWS
    )
    assert made.evaluate(lambda: Odd(A), steps=2)["mean_x"] == np.mean(A[:8])
