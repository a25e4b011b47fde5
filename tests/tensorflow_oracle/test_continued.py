"""Training that TensorFlow began, continued here from its checkpoint: weights, slots and step.

``record_continued.py`` recorded what TensorFlow did next.
"""

import functools
import os
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle_read import load, load_arrays
from tensorflow_tables import table
from tf_optimizers import make_optimizer
from tf_schedules import exponential_decay

import jaxspec as js
from jaxspec._src.checkpoint.tensorflow.table import read_table
from jaxspec.checkpoint import tf

DATA = pathlib.Path(os.environ.get("JAXSPEC_CONTINUED") or pathlib.Path(__file__).parent / "data" / "continued")
DOCUMENT, ARRAYS = load(DATA / "cases.json"), load_arrays(DATA / "data.npz")
STEPS, CASES = DOCUMENT["steps"], DOCUMENT["cases"]
BATCHES = list(zip(ARRAYS["x"], ARRAYS["y"], strict=True))
NAMES = tf.dense("hidden", "hidden") | tf.dense("logits", "logits")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="logits")(nn.tanh(nn.Dense(6, name="hidden")(x)))


def optimizer_of(case):
    kind, rate, arguments = CASES[case]
    return make_optimizer(kind, exponential_decay(rate, **DOCUMENT["decaying"]), **arguments)


def model_fn(variables, features, labels, mode, params):
    loss = jnp.mean((Net().apply(variables, features) - labels) ** 2)
    return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(params["optimizer"]))


def fresh(case):
    return js.create_train_state(model_fn, Net(), jax.random.key(0), *BATCHES[0], {"optimizer": optimizer_of(case)})


def checkpoint_of(case):
    return DATA / case / f"model.ckpt-{STEPS}"


@functools.cache
def continued(case):
    return js.optim.from_tensorflow(fresh(case), checkpoint_of(case), NAMES)


def by_name(params):
    return {f"{layer}/{name}": array for layer, arrays in params.items() for name, array in arrays.items()}


def of_layers(arrays, prefix):
    """`{"hidden": {"kernel": ...}, ...}` of the arrays under a prefix."""
    return {
        layer: {name: arrays[f"{prefix}/{layer}/{name}"] for name in ("kernel", "bias")}
        for layer in ("hidden", "logits")
    }


@pytest.mark.parametrize("case", CASES)
def test_one_update_equals_tensorflows_to_rounding(case):
    expected = load_arrays(DATA / case / "expected.npz")
    state = continued(case)
    params = state.variables["params"]
    updates, _ = jax.jit(optimizer_of(case).update)(of_layers(expected, "gradient"), state.opt_state, params)
    updates, before, after = (by_name(tree) for tree in (updates, params, of_layers(expected, "next")))
    for name, update in updates.items():
        # One unit in the last place of the weight, and of the update 2e-6.
        error = {"rtol": 1.2e-7, "atol": 2e-6 * np.abs(update).max()}
        np.testing.assert_allclose(before[name] + update, after[name], **error, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_the_losses_go_on_as_in_tensorflow(case):
    expected = load_arrays(DATA / case / "expected.npz")
    state = continued(case)
    assert state.step == STEPS
    step = jax.jit(js.make_train_step(model_fn, {"optimizer": optimizer_of(case)}))
    losses = []
    for features, labels in BATCHES[STEPS:]:
        state, spec = step(state, features, labels)
        losses.append(spec.loss)
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-4)
    for name, weights in by_name(state.variables["params"]).items():
        np.testing.assert_allclose(weights, expected[f"last/{name}"], rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_estimator_goes_on_with_it(tmp_path):
    state = js.optim.from_tensorflow(fresh("adam"), checkpoint_of("adam"), NAMES)
    js.checkpoint.save(tmp_path, state)
    losses = []

    class Losses(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            return js.hooks.SessionRunArgs("loss")

        def after_run(self, run_context, run_values):
            losses.append(float(run_values.results))

    estimator = js.TPUEstimator(
        model_fn,
        Net(),
        model_dir=tmp_path,
        config=js.RunConfig(js.TPUConfig(iterations_per_loop=1), save_summary_steps=None),
        params={"optimizer": optimizer_of("adam")},
        train_batch_size=8,
    )
    estimator.train(lambda: BATCHES[STEPS:], hooks=[Losses()], max_steps=2 * STEPS)
    expected = load_arrays(DATA / "adam" / "expected.npz")
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-4)
    np.testing.assert_allclose(
        estimator.get_variable_value("params/hidden/kernel"), expected["last/hidden/kernel"], rtol=1e-4, atol=1e-5
    )


def test_averages_of_weights_go_on_as_in_tensorflow():
    averages, expected = (
        js.ExponentialMovingAverage(DOCUMENT["average_decay"]),
        load_arrays(DATA / "averaged/expected.npz"),
    )

    def averaged_model_fn(variables, features, labels, mode, step):
        loss = jnp.mean((Net().apply(variables, features) - labels) ** 2)
        train_op = js.minimize(optimizer_of("adam"), after=averages.update(step + 1))
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=train_op)

    state = js.create_train_state(averaged_model_fn, averages.init(Net()), jax.random.key(0), *BATCHES[0])
    names = {f"{layer}/{name}" for layer in ("hidden", "logits") for name in ("kernel", "bias")}
    of_averages = {f"{name}/ExponentialMovingAverage": f"ema/params/{name}" for name in names}
    state = js.optim.from_tensorflow(state, checkpoint_of("averaged"), NAMES | of_averages)
    step = jax.jit(js.make_train_step(averaged_model_fn))
    for features, labels in BATCHES[STEPS:]:
        state, _ = step(state, features, labels)
    for name, average in by_name(state.variables["ema"]["params"]).items():
        right = expected[f"last/{name}/ExponentialMovingAverage"]
        np.testing.assert_allclose(average, right, rtol=1e-4, atol=1e-6, err_msg=name)


def test_adam_of_optax_would_go_another_way():
    """The tests above can fail."""
    own = optax.adam(0.02, b1=0.8, b2=0.99, eps=0.1)
    expected, state = load_arrays(DATA / "adam_large_epsilon" / "expected.npz"), continued("adam_large_epsilon")
    updates, _ = own.update(of_layers(expected, "gradient"), (state.opt_state, optax.EmptyState()))
    moved = expected["next/hidden/kernel"] - state.variables["params"]["hidden"]["kernel"]
    assert np.abs(updates["hidden"]["kernel"] / moved - 1).min() > 0.05


def test_another_optimizer_has_no_such_slots():
    with pytest.raises(ValueError, match="has no slot hidden/bias/Adagrad for params/hidden/bias; it has ") as caught:
        js.optim.from_tensorflow(fresh("adagrad"), checkpoint_of("adam"), NAMES)
    assert "['hidden/bias/Adam', 'hidden/bias/Adam_1']. Create the state with the optimizer" in str(caught.value)


def test_slots_that_the_optimizer_has_no_place_for_are_a_warning(caplog):
    for case in CASES:
        js.optim.from_tensorflow(fresh(case), checkpoint_of(case), NAMES)
    assert not caplog.records
    js.optim.from_tensorflow(fresh("gradient_descent"), checkpoint_of("momentum"), NAMES)
    (record,) = caplog.records
    assert "no place for the slots hidden/bias/Momentum, hidden/kernel/Momentum, logits" in record.getMessage()


def fresh_with(optimizer):
    return js.create_train_state(model_fn, Net(), jax.random.key(0), *BATCHES[0], {"optimizer": optimizer})


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(
        ValueError, match=r"opt_state\[0\].count, int32\[\], is in none of the states that .* \['FtrlState"
    ):
        js.optim.from_tensorflow(fresh_with(optax.lion(0.1)), checkpoint_of("adam"), NAMES)


def test_a_trained_parameter_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="params/logits/bias is trained, and the assignment map says nothing of it"):
        js.optim.from_tensorflow(fresh("adam"), checkpoint_of("adam"), tf.dense("hidden", "hidden"))


def test_parts_that_are_trained_alone_and_chains_are_filled():
    clipped = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(js.optim.adam(0.1), {"hidden": True, "logits": False})
    )
    state = js.optim.from_tensorflow(fresh_with(clipped), checkpoint_of("adam"), NAMES)
    slots = state.opt_state[1].inner_state
    assert slots.count == STEPS
    expected = continued("adam").opt_state
    np.testing.assert_array_equal(slots.mu["hidden"]["kernel"], expected.mu["hidden"]["kernel"])
    assert len(jax.tree.leaves(slots.mu)) == 2


def test_a_converter_changes_slots_as_it_changes_weights_but_for_a_constant():
    """The averages of Adam may be far smaller than what float32 has beside a constant."""
    plain = continued("adam")
    backwards = {"hidden/kernel": {"params/hidden/kernel": lambda array: array[:, ::-1] + 1000}}
    state = js.optim.from_tensorflow(fresh("adam"), checkpoint_of("adam"), NAMES | backwards)

    def kernels(state):
        return state.variables["params"]["hidden"]["kernel"], *(
            tree["hidden"]["kernel"] for tree in state.opt_state[1:]
        )

    (weights, *slots), (plain_weights, *plain_slots) = kernels(state), kernels(plain)
    np.testing.assert_allclose(weights, plain_weights[:, ::-1] + 1000)
    assert np.abs(plain_slots[1]).min() < 1e-3
    for slot, plain_slot in zip(slots, plain_slots, strict=True):
        np.testing.assert_allclose(slot, plain_slot[:, ::-1], rtol=1e-6)


def test_a_mean_of_rmsprop_is_not_taken_from_its_momentum():
    centered = fresh_with(optax.rmsprop(0.01, initial_scale=1.0, momentum=0.5, centered=True))
    with pytest.raises(
        ValueError, match=r"has no slot hidden/bias/RMSProp_1 \(the mean\) for params/hidden/bias; it has"
    ):
        js.optim.from_tensorflow(centered, checkpoint_of("rmsprop_momentum"), NAMES)
    js.optim.from_tensorflow(centered, checkpoint_of("rmsprop_centered"), NAMES)


def as_stored(directory, rename):
    """The prefix of a copy of the checkpoint of Adam, with other names in its index."""
    source, prefix = checkpoint_of("adam"), directory / "model.ckpt-20"
    entries = read_table(source.with_name(f"{source.name}.index").read_bytes())
    (directory / f"{prefix.name}.index").write_bytes(table({rename(key): value for key, value in entries.items()}))
    shutil.copy(f"{source}.data-00000-of-00001", directory)
    return prefix


@pytest.mark.parametrize(
    ("rename", "arguments"),
    [
        (lambda key: b"training/" + key if b"Adam" in key else key, {}),
        (lambda key: key.replace(b"Adam", b"My.Adam"), {"optimizer_names": {"My.Adam": "Adam"}}),
    ],
    ids=["an optimizer in a scope", "an optimizer with a name"],
)
def test_slots_have_the_names_that_tensorflow_gives_them(tmp_path, rename, arguments, caplog):
    state = js.optim.from_tensorflow(fresh("adam"), as_stored(tmp_path, rename), NAMES, **arguments)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, continued("adam").opt_state)
    assert not caplog.records


def test_a_name_of_an_optimizer_is_asked_for(tmp_path):
    prefix = as_stored(tmp_path, lambda key: key.replace(b"Adam", b"Mine"))
    with pytest.raises(
        ValueError, match=r"it has \['hidden/bias/Mine', 'hidden/bias/Mine_1'\].*optimizer_names={'MyAdam': "
    ):
        js.optim.from_tensorflow(fresh("adam"), prefix, NAMES)


def test_arguments_that_cannot_be_right():
    with pytest.raises(TypeError, match="state must be what create_train_state returns, got dict"):
        js.optim.from_tensorflow({}, checkpoint_of("adam"), NAMES)
    with pytest.raises(
        ValueError, match=r"leads to \['MyAdam'\], expected names from \('Adadelta', .*{'MyAdam': 'Adam'}"
    ):
        js.optim.from_tensorflow(fresh("adam"), checkpoint_of("adam"), NAMES, {"Adam": "MyAdam"})


def test_slots_of_another_variable_with_the_same_end_are_not_taken(tmp_path):
    prefix = as_stored(tmp_path, lambda key: key.replace(b"logits/bias", b"other/hidden/bias"))
    names = {name: target for name, target in NAMES.items() if name != "logits/bias"}
    only = js.minimize(js.optim.adam(0.1), of="hidden")
    state = js.create_train_state(
        lambda variables, features, labels, mode: js.TPUEstimatorSpec(
            mode, loss=jnp.mean((Net().apply(variables, features) - labels) ** 2), train_op=only
        ),
        *(Net(), jax.random.key(0), *BATCHES[0]),
    )
    state = js.optim.from_tensorflow(state, prefix, names)
    (bias,) = (leaf for name, leaf in js.named_leaves(state.opt_state).items() if name.endswith("mu/hidden/bias"))
    np.testing.assert_array_equal(bias, continued("adam").opt_state.mu["hidden"]["bias"])


def test_averages_that_the_map_does_not_name_are_a_warning(caplog):
    js.optim.from_tensorflow(fresh("adam"), checkpoint_of("averaged"), NAMES)
    (record,) = caplog.records
    assert "no place for the slots hidden/bias/ExponentialMovingAverage, hidden/kernel/Exp" in record.getMessage()
    assert "give them entries in the assignment map, such as {'dense/kernel/Exp" in record.getMessage()
