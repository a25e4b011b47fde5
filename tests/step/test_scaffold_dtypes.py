"""Variables keep their dtypes: what Scaffold.init_fn returns, and what a step writes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import jaxspec as js

X = np.ones((4, 3), np.float32)
INIT = {
    "params": {"w": jnp.zeros(3)},
    "other": {"i": jnp.int32(1), "h": jnp.zeros(2, jnp.bfloat16), "k": jax.random.key(0)},
}


def state(leaf, value):
    """The fresh state where Scaffold.init_fn puts `value` in the place of a leaf."""

    def scaffold_init(variables):
        collection, name = leaf.split("/")
        return {**variables, collection: {**variables[collection], name: value}}

    def model_fn(variables, features, mode):
        loss = (features * variables["params"]["w"]).mean()
        scaffold_fn = lambda: js.Scaffold(scaffold_init)  # noqa: E731
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)), scaffold_fn=scaffold_fn)

    return js.create_train_state(model_fn, lambda: INIT, jax.random.key(0), X)


LOSSY = {
    "float into int": (
        "other/i",
        np.float64(2.7),
        r"other/i: got float64\[\], expected int32\[\].*x.astype\('int32'\)",
    ),
    "Python float into int": ("other/i", 2.7, r"other/i: got 2.7, expected int32\[\]"),
    "float64 into bfloat16": ("other/h", np.ones(2), r"other/h: got float64\[2\], expected bfloat16\[2\].*'bfloat16'"),
    "float32 into bfloat16": ("other/h", jnp.ones(2), r"other/h: got float32\[2\], expected bfloat16\[2\]"),
    "int into float": ("params/w", np.arange(3), r"params/w: got int64\[3\], expected float32\[3\].*'float32'"),
    "complex into float": ("params/w", np.ones(3, np.complex64), r"params/w: got complex64\[3\], expected float32"),
    "int that is too large": ("other/i", np.int64(2**40), r"other/i: got int64\[\], expected int32\[\]"),
    "float that is too large": ("params/w", np.full(3, 1e300), r"params/w: got float64\[3\], expected float32"),
    "key of another kind": ("other/k", jax.random.key(0, impl="rbg"), r"other/k: got key<rbg>\[\], expected key<fry>"),
    "no array": ("params/w", None, r"params/w: missing, expected float32\[3\]"),
}


@pytest.mark.parametrize("case", LOSSY)
def test_scaffold_may_not_change_a_dtype(case):
    leaf, value, text = LOSSY[case]
    with pytest.raises(ValueError, match=r"Scaffold.init_fn returned variables that differ from init_fn's: " + text):
        state(leaf, value)


KEPT = {
    "same": ("params/w", np.full(3, 0.1, np.float32), np.full(3, 0.1, np.float32)),
    "NumPy's float64 of a float32": ("params/w", np.full(3, 0.1), np.full(3, 0.1, np.float32)),
    "NumPy's int64 of an int32": ("other/i", np.int64(7), np.int32(7)),
    "narrower float": (
        "params/w",
        np.full(3, 0.1, ml_dtypes.bfloat16),
        np.full(3, 0.1, ml_dtypes.bfloat16).astype(np.float32),
    ),
    "narrower int": ("other/i", np.int8(-3), np.int32(-3)),
    "Python int": ("other/i", 9, np.int32(9)),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_a_leaf_holds_without_loss_is_taken(case):
    leaf, value, expected = KEPT[case]
    collection, name = leaf.split("/")
    got = state(leaf, value).variables[collection][name]
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("field", ["updates", "after"])
def test_a_step_may_not_write_floats_into_integers(field):
    def model_fn(variables, features, mode):
        new = {"other": {**variables["other"], "i": variables["other"]["i"] + 0.5}}
        op = js.minimize(optax.sgd(0.1), **{field: new if field == "updates" else lambda variables: new})
        return js.TPUEstimatorSpec(mode, loss=(features * variables["params"]["w"]).mean(), train_op=op)

    with pytest.raises(
        ValueError, match=rf"{field} does not fit the variables: other/i: got float32\[\], expected int32\[\]"
    ):
        js.create_train_state(model_fn, lambda: INIT, jax.random.key(0), X)


def test_a_step_keeps_a_running_average_in_the_width_of_its_leaf():
    def model_fn(variables, features, mode):
        new = {"other": {**variables["other"], "h": jnp.full(2, 0.1, jnp.float32)}}
        op = js.minimize(optax.sgd(0.1), updates=new)
        return js.TPUEstimatorSpec(mode, loss=(features * variables["params"]["w"]).mean(), train_op=op)

    made = js.create_train_state(model_fn, lambda: INIT, jax.random.key(0), X)
    got = jax.jit(js.make_train_step(model_fn))(made, X)[0].variables["other"]["h"]
    np.testing.assert_array_equal(np.asarray(got), np.full(2, 0.1, ml_dtypes.bfloat16))
