"""Input of every form, and what is said of input that does not fit."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from take import take
from tiny_models import counting_init, counting_input, counting_model_fn, data, run_config

import jaxspec as js
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.input_request import InputRequest
from jaxspec._src.data.position import decode_position, encode_position
from jaxspec._src.data.prefetch import Infeed

X, Y = data(rows=24)


def infeed(source, mode="train", num_shards=1, batch_size=4, ragged=False, capacity=2, **kwargs):
    made = [source]
    del source  # so that nobody but the infeed holds it
    feed = Infeed(
        InputRequest(
            made.pop, mode=mode, devices=jax.devices()[:num_shards], batch_size=batch_size, ragged=ragged, **kwargs
        )
    )
    feed.start(capacity)
    return feed


def everything(feed, most=100):
    """What the infeed gives, one entry for each batch: (features, labels) of the whole batch."""
    out = []
    try:
        while (item := take(feed, most)) is not None:
            if isinstance(item, InputBatch):
                out.append(item.data)
            else:
                for i in range(item.start, item.start + item.count):
                    out.append(_unstacked(item.data, i))
    finally:
        feed.close()
    return out


def _unstacked(data, i):
    return jax.tree.map(lambda x: np.asarray(x)[i].reshape(-1, *x.shape[3:]), data)


class Torchlike:
    """An array of a foreign library: it converts through __array__."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class TfDataLike:
    def __iter__(self):
        raise AssertionError("as_numpy_iterator is what should be used")

    def as_numpy_iterator(self):
        return iter([(X[:4], Y[:4])])


class GetItemOnly:
    def __getitem__(self, i):
        if i == 2:
            raise IndexError
        return X[:4], Y[:4]

    def __iter__(self):
        return (self[i] for i in range(2))


FORMS = {
    "generator": (lambda: ((X[i : i + 4], Y[i : i + 4]) for i in (0, 4)), 2, True),
    "list of pairs": (lambda: [(X[:4], Y[:4])] * 3, 3, True),
    "list of features": (lambda: [X[:4]] * 2, 2, False),
    "one pair": (lambda: (X[:4], Y[:4]), 1, True),
    "one array": (lambda: X[:4], 1, False),
    "one dict": (lambda: {"x": X[:4]}, 1, False),
    "jax arrays": (lambda: [(jnp.asarray(X[:4]), jnp.asarray(Y[:4]))], 1, True),
    "foreign arrays": (lambda: [(Torchlike(X[:4]), Torchlike(Y[:4]))], 1, True),
    "tf.data": (TfDataLike, 1, True),
    "loader": (GetItemOnly, 2, True),
    "nested": (lambda: [({"a": {"b": X[:4]}, "c": (Y[:4], X[:4])}, Y[:4])], 1, True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input(form):
    make, count, labelled = FORMS[form]
    batches = everything(infeed(make()))
    assert len(batches) == count
    features, labels = batches[0]
    for leaf in jax.tree.leaves(features):
        assert leaf.shape[0] == 4
    assert (labels is not None) == labelled


def test_a_reused_buffer_is_copied_in_time():
    def source():
        buffer = np.empty(4, np.float32)
        for i in range(20):
            buffer[:] = i
            yield buffer

    batches = everything(infeed(source(), capacity=7), most=3)
    assert [b[0][0] for b in batches] == list(range(20))


def test_slices_of_a_stack_and_ragged_batches_keep_their_order():
    sizes = [4, 4, 4, 2, 4, 1, 1, 4]
    source = [np.full(n, i, np.float32) for i, n in enumerate(sizes)]
    for most in (1, 2, 5):
        batches = everything(infeed(source, mode="eval", ragged=True, capacity=2), most)
        assert [(len(b[0]), b[0][0]) for b in batches] == [(n, i) for i, n in enumerate(sizes)]


def test_positions_are_those_of_the_last_batch_taken():
    input_fn = js.inputs.numpy_input_fn(X, num_epochs=None, resident=False)
    feed = infeed(input_fn({"batch_size": 4}, "train"), capacity=8)
    while (taken := take(feed, 1)).start != 2:
        assert decode_position(taken.position_at())["rows"] == 4 * (taken.start + 1)
    feed.close()
    for rows, position in (
        (X[12:16], taken.position_at()),
        (X[:4], encode_position({"rows": 12, "of": 7, "seed": None})),
    ):
        again = infeed(js.inputs.numpy_input_fn(X, num_epochs=None)({"batch_size": 4}, "train"), position=position)
        np.testing.assert_array_equal(take(again, 1).data[0][0, 0], rows)
        again.close()


class Reporting:
    """Reports one dict that it goes on changing, with what a JSON file cannot hold."""

    def __init__(self):
        self.state = {"i": np.int64(0), "raw": b"\x00\xff"}

    def __iter__(self):
        return self

    def __next__(self):
        self.state["i"] += 1
        return X[:4]

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_positions_are_snapshots_and_may_hold_bytes():
    feed = infeed(Reporting(), capacity=2)
    assert decode_position(take(feed, 1).position_at()) == {"i": 1, "raw": b"\x00\xff"}
    feed.close()
    again = Reporting()
    infeed(again, position=encode_position({"i": 7, "raw": b""}), limit=0).close()
    assert again.state == {"i": 7, "raw": b""}
    with pytest.raises(TypeError, match="get_state returned a object, which a checkpoint cannot keep"):
        encode_position({"x": object()})


def test_ragged_batches_are_copied_too():
    def source():
        buffer = np.empty(8, np.float32)
        for n in (8, 4, 3, 2, 5):
            buffer[:] = n
            yield buffer[:n]

    batches = everything(infeed(source(), mode="eval", batch_size=8, ragged=True))
    assert [(len(b[0]), set(b[0])) for b in batches] == [(n, {n}) for n in (8, 4, 3, 2, 5)]


def test_batches_without_rows_are_passed_over_in_evaluation():
    source = [X[:0], X[:4], X[:0], X[:2], X[:0]]
    assert [len(b[0]) for b in everything(infeed(source, mode="eval", ragged=True))] == [4, 2]
    feed = Infeed(InputRequest(lambda: [X[:0]], mode="eval", devices=jax.devices()[:1], batch_size=4, ragged=True))
    assert feed.first is None
    feed.close()


def test_a_waiting_consumer_gets_a_stack_that_is_not_full():
    asked, answered = [], threading.Event()

    def source():
        for i in range(3):
            asked.append(i)
            yield X[:4]
            if i:
                assert answered.wait(10)

    feed = infeed(source(), capacity=100)
    assert take(feed, 100) is not None
    answered.set()
    feed.close()
    assert len(asked) <= 3


def test_no_more_is_asked_for_than_the_limit():
    asked = []

    def source():
        for i in range(100):
            asked.append(i)
            yield X[:4]

    assert len(everything(infeed(source(), limit=5, capacity=3))) == 5
    assert len(asked) == 5


def test_a_generator_is_closed():
    closed = []

    def source():
        try:
            while True:
                yield X[:4]
        finally:
            closed.append(True)

    feed = infeed(source())
    take(feed, 1)
    feed.close()
    assert closed == [True]


def test_sixty_four_bits_become_thirty_two_with_one_warning(caplog):
    source = [{"a": X[:4].astype(np.float64), "b": Y[:4].astype(np.int64), "c": X[:4]}] * 3
    batches = everything(infeed(source))
    assert [batches[2][0][k].dtype for k in "abc"] == [np.float32, np.int32, np.float32]
    assert [m for m in caplog.messages if "64-bit" in m] == [
        "input_fn yields 64-bit arrays, which become 32-bit: features/a, features/b. Enable jax_enable_x64 to keep "
        "them."
    ]


def test_an_estimator_warns_once_of_each_leaf_of_sixty_four_bits(tmp_path, caplog):
    def input_fn(extra):
        return lambda: [{"x": np.ones(4)} | {name: np.ones(4) for name in extra}] * 2

    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        config=run_config(),
        train_batch_size=4,
        eval_batch_size=4,
        predict_batch_size=4,
    )
    estimator.train(input_fn([]), max_steps=1)
    estimator.evaluate(input_fn([]), steps=1)
    list(estimator.predict(input_fn(["y"])))
    estimator.train(input_fn([]), steps=1)
    named = [m.partition("32-bit: ")[2].partition(". Enable")[0] for m in caplog.messages if "64-bit" in m]
    assert named == ["features/x", "features/y"]


def bad_second(second):
    return lambda: [({"x": X[:4]}, Y[:4]), second]


REFUSED = {
    "strings": (
        lambda: [np.array(["a"] * 4)],
        TypeError,
        "batch 0 .*: features has dtype <U1.*Map strings to integer ids",
    ),
    "objects": (lambda: [{"x": np.array([[1], [1, 2]], object)}], TypeError, "features/x has dtype object"),
    "scalar": (
        lambda: [{"x": X[:4], "n": 3}],
        ValueError,
        "features/n is a scalar .*every leaf needs a leading batch axis",
    ),
    "disagreeing sizes": (
        lambda: [({"x": X[:4]}, Y[:3])],
        ValueError,
        r"leaves disagree in their leading size, the batch: features/x: float32\[4,4\], labels: int32\[3\]",
    ),
    "three": (
        lambda: [(X, Y, Y)],
        ValueError,
        r"should return \(features, labels\) as a len 2 tuple, got a tuple of 3",
    ),
    "nothing": (lambda: None, ValueError, "input_fn returned None; return an iterable of batches, or one batch"),
    "no array": (lambda: [{}], ValueError, "no array in it"),
    "shape changes": (
        bad_second(({"x": X[:4].reshape(4, 2, 2)}, Y[:4])),
        ValueError,
        r"batch 1 .*differs from the first batch: features/x: float32\[4,2,2\], was float32\[4,4\]",
    ),
    "dtype changes": (bad_second(({"x": X[:4]}, X[:4, 0])), ValueError, r"labels: float32\[4\], was int32\[4\]"),
    "leaf comes": (bad_second(({"x": X[:4], "y": X[:4]}, Y[:4])), ValueError, "features/y: not in the first batch"),
    "labels go": (bad_second({"x": X[:4]}), ValueError, "labels: missing"),
    "size changes": (
        bad_second(({"x": X[:2]}, Y[:2])),
        ValueError,
        r"batch 1 .*has 2 rows, expected 4 .*leave out a short last batch \(drop_remainder\)",
    ),
    "wrong size": (lambda: [X[:3]], ValueError, "batch 0 .*has 3 rows, expected 4"),
    "overflow": (lambda: [np.full(4, 2**40)], OverflowError, "int64 and holds values that int32 cannot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        everything(infeed(make()))


def test_a_batch_that_is_too_large_in_evaluation():
    with pytest.raises(ValueError, match="The real batch size should not be greater than batch_size, 4"):
        everything(infeed([X[:4], X[:6]], mode="eval", ragged=True, num_shards=2))


def test_an_error_comes_after_the_batches_before_it_and_only_then():
    def source():
        yield from [X[:4]] * 3
        raise KeyError("late")

    feed = infeed(source(), capacity=10)
    taken = 0
    while taken < 3:
        item = take(feed, 10)
        taken += item.count
    with pytest.raises(KeyError, match="late") as caught:
        take(feed, 1)
    assert caught.value.__notes__ == ["raised by input_fn at batch 3 (counted from 0)"]
    feed.close()


# through the estimator


def estimator(tmp_path, model_fn=counting_model_fn, **kwargs):
    kwargs = {"train_batch_size": 8, "eval_batch_size": 8, "predict_batch_size": 8, **kwargs}
    return js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, config=run_config(), **kwargs)


def test_what_input_fn_is_told(tmp_path):
    seen = {}

    def input_fn(params, mode, config):
        seen.update(params, mode=mode, config=config)
        return counting_input(1, rows=8)()

    made = estimator(
        tmp_path,
        params={"mine": 1},
        model_fn=lambda variables, features, mode, params: counting_model_fn(variables, features, mode),
    )
    made.train(input_fn, steps=1)
    context = seen["context"]
    assert (seen["batch_size"], seen["mode"], seen["mine"]) == (8, "train", 1)
    assert seen["config"] is made.config
    assert (context.num_replicas, context.num_hosts, context.current_host, context.num_of_replicas_per_host) == (
        4,
        1,
        0,
        4,
    )
    assert context.current_input_fn_deployment() == (None, 0, 1, 4)


BAD_CALLS = {
    "empty train": (
        lambda e: e.train(list, steps=1),
        ValueError,
        "Training made no steps: input_fn .*yielded no batch",
    ),
    "empty evaluate": (lambda e: e.evaluate(list), ValueError, "Evaluation made no steps.*yielded no batch"),
    "both": (lambda e: e.train(list, steps=1, max_steps=1), ValueError, "Can not provide both steps and max_steps"),
    "zero": (lambda e: e.train(list, steps=0), ValueError, "Train steps should be > 0, got 0"),
    "negative": (lambda e: e.train(list, max_steps=-1), ValueError, "Train max_steps should be > 0, got -1"),
    "float": (lambda e: e.train(list, steps=1.5), TypeError, "Train steps should be a whole number, got 1.5"),
    "eval zero": (lambda e: e.evaluate(list, steps=0), ValueError, "Eval steps should be > 0, got 0"),
    "name": (lambda e: e.evaluate(list, name=3), TypeError, "name must be a string, got 3"),
    "not callable": (lambda e: e.train([1], steps=1), TypeError, "input_fn must be callable, given"),
    "argument": (lambda e: e.train(lambda x: 1, steps=1), ValueError, r"input_fn .*not expected args: \['x'\]"),
    "hook": (lambda e: e.train(list, hooks=[3], steps=1), TypeError, "All hooks must be SessionRunHook instances.*3"),
    "hooks": (
        lambda e: e.train(list, hooks=5, steps=1),
        TypeError,
        "hooks must be a list of SessionRunHook instances, given: 5",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(tmp_path, case):
    call, error, text = BAD_CALLS[case]
    with pytest.raises(error, match=text):
        call(estimator(tmp_path))


@pytest.mark.parametrize(
    ("verb", "name"),
    [("train", "train_batch_size"), ("evaluate", "eval_batch_size"), ("predict", "predict_batch_size")],
)
def test_a_batch_size_missing_for_the_verb_used(tmp_path, verb, name):
    made = estimator(tmp_path, **{name: None})
    with pytest.raises(ValueError, match=f"`{name}` cannot be `None` if .{verb} is called: pass {name}="):
        getattr(made, verb)(list)


def test_a_batch_that_the_shards_do_not_divide_before_anything_compiles(tmp_path):
    def model_fn(features, mode):
        raise AssertionError("traced")

    made = estimator(tmp_path, model_fn, train_batch_size=6)
    with pytest.raises(
        ValueError, match="train batch size 6 must be divisible by number of replicas 4. Choose a multiple of 4"
    ):
        made.train(counting_input(rows=6), steps=1)
    with pytest.raises(ValueError, match="has 6 rows, expected 8"):
        estimator(tmp_path, model_fn).train(counting_input(rows=6), steps=1)


def test_more_shards_than_devices(tmp_path):
    config = run_config(num_shards=8)
    made = js.TPUEstimator(counting_model_fn, counting_init, model_dir=tmp_path, config=config, train_batch_size=8)
    with pytest.raises(ValueError, match="num_shards is 8, but there are only 4 x cpu"):
        made.train(counting_input(rows=8), steps=1)


def test_constructor(tmp_path):
    def make(**kwargs):
        return js.TPUEstimator(**{"model_fn": counting_model_fn, "model_dir": tmp_path, **kwargs})

    refused = {
        "`config` must be provided with type": {"config": 3},
        "reserved keys but existed in params": {"params": {"batch_size": 3}},
        "does not include params argument": {"params": {"a": 3}},
        "must include features argument": {"model_fn": lambda mode: 1},
        "train_batch_size should be > 0, got 0": {"train_batch_size": 0},
        "different values": {"config": js.RunConfig(model_dir="elsewhere")},
        "model parallelism": {"config": js.RunConfig(js.TPUConfig(num_cores_per_replica=2))},
        "BROADCAST.*is not supported": {
            "config": js.RunConfig(js.TPUConfig(per_host_input_for_training=js.InputPipelineConfig.BROADCAST))
        },
        "warm_start_from must be a string": {"warm_start_from": 3},
    }
    for text, kwargs in refused.items():
        with pytest.raises(ValueError, match=text):
            make(**kwargs)
    made = make(params=None)
    assert made.params == {}
    assert made.model_dir == str(tmp_path)
    assert made.config.model_dir == str(tmp_path)
    with pytest.raises(ValueError, match="init_fn is needed to make the variables"):
        make(train_batch_size=4, config=run_config()).train(counting_input(), steps=1)


def test_params_are_copies(tmp_path):
    params = {"a": [1]}
    made = js.TPUEstimator(
        lambda variables, features, mode, params: params["a"].append(2) or counting_model_fn(variables, features, mode),
        counting_init,
        model_dir=tmp_path,
        params=params,
        train_batch_size=4,
        config=run_config(),
    )
    made.train(counting_input(), steps=1)
    made.params["a"].append(3)
    assert (params, made.params) == ({"a": [1]}, {"a": [1]})


def test_flax_modules_that_need_labels_or_constants_get_an_init_fn(tmp_path):
    made = js.TPUEstimator(
        lambda variables, features, labels, mode: js.TPUEstimatorSpec(
            mode, loss=((features["x"] @ variables["params"]["w"] - labels) ** 2).mean(), train_op=optax.sgd(0.1)
        ),
        lambda features, labels: {"params": {"w": jnp.zeros(features["x"].shape[1])}},
        model_dir=tmp_path,
        train_batch_size=4,
        config=run_config(save=10),
    )
    made.train(lambda: [({"x": X[:4]}, X[:4, 0])], steps=1)
    assert made.get_variable_value("params/w").shape == (4,)
