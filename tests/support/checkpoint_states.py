"""A small state and what is done with it, for the tests of checkpoints."""

import jax
import jax.numpy as jnp

import jaxspec as js
from jaxspec._src.checkpoint.restore import read_state
from jaxspec._src.checkpoint.saver import Saver

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def state_of(params, step=1, **collections):
    """A state without optimizer state."""
    variables = {"params": params, **collections}
    return js.TrainState(jnp.asarray(step, jnp.int32), variables, {}, jax.random.key(7))


def saved(model_dir, state, **kwargs):
    """The path of the checkpoint, which is whole."""
    saver = Saver(str(model_dir), **kwargs)
    saver.save(state)
    saver.wait()
    return f"{model_dir}/model.ckpt-{int(state.step)}"


def restored(path, like):
    """The state in a checkpoint."""
    return read_state(path, like, SHARDING)
