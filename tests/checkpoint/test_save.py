"""checkpoint.save: a state that an estimator goes on with."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_states import state_of

import jaxspec as js
from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.checkpoint.claim import claimed


def model_fn(variables, features, mode):
    return js.TPUEstimatorSpec(mode, loss=(features * variables["params"]["w"]).mean(), train_op=optax.sgd(1.0))


def init_fn(features):
    return {"params": {"w": jnp.zeros(())}}


def test_an_estimator_goes_on_from_it(tmp_path):
    state = js.create_train_state(model_fn, init_fn, jnp.zeros(2, jnp.uint32), np.ones(4, np.float32))
    state = state._replace(step=jnp.int32(7), variables={"params": {"w": np.float32(5)}})
    path = js.checkpoint.save(tmp_path / "run", state)
    assert path == js.checkpoint.latest_checkpoint(str(tmp_path / "run"))
    it = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path / "run", use_tpu=False)
    it.train(lambda: [np.ones(4, np.float32)], steps=1)
    assert (it.get_variable_value("global_step"), it.get_variable_value("params/w")) == (8, 4)


def test_a_checkpoint_of_the_same_step_is_replaced_with_a_warning_and_others_stay(tmp_path, caplog):
    for value, step in ((1.0, 1), (2.0, 2), (3.0, 1)):
        path = js.checkpoint.save(tmp_path, state_of({"w": jnp.float32(value)})._replace(step=jnp.int32(step)))
    assert js.checkpoint.checkpoint_steps(str(tmp_path)) == [1, 2]
    assert js.checkpoint.read_array(path, "params/w") == 3
    assert "model.ckpt-1 is of another run; it is replaced." in caplog.text


def test_a_weight_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(NanLossDuringTrainingError, match="params/w"):
        js.checkpoint.save(tmp_path, state_of({"w": jnp.float32(np.nan)}))
    assert js.checkpoint.checkpoint_steps(str(tmp_path)) == []


def test_a_training_keeps_it_out(tmp_path):
    with claimed(str(tmp_path)), pytest.raises(RuntimeError, match="train"):
        js.checkpoint.save(tmp_path, state_of({"w": jnp.float32(1)}))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(RuntimeError, match="writes with one process, and this is one of 2"):
        js.checkpoint.save(tmp_path, state_of({"w": jnp.float32(1)}))
