"""Programs: any number of steps a dispatch, the same bits, one compilation, one state; and the mapping under them."""

import gc
import subprocess
import sys
import textwrap
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from insides import programs
from tiny_models import (
    Net,
    assert_trees_equal,
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    linear_init,
    linear_model_fn,
    net_model_fn,
    run_config,
)

import jaxspec as js
from jaxspec._src.device.mapping import broadcast, map_over_devices
from jaxspec._src.device.program import Program
from jaxspec._src.step.inference_step import placed_step
from jaxspec._src.step.model import Model
from jaxspec._src.step.train_step import train_step

KEY = jax.random.key(0)
X, Y = data(rows=16)


def fresh(model_fn=net_model_fn, init_fn=None, rows=4):
    return js.create_train_state(model_fn, init_fn or Net(), KEY, X[:rows], Y[:rows])


def stacked(steps, shards, copies=1):
    """`steps` different batches as a Program takes them."""
    x, y = data(rows=16 * steps, seed=3)
    return tuple(a.reshape(steps, shards, 16 // shards, *a.shape[1:]) for a in (x, y))


@pytest.mark.parametrize(("shards", "single_step"), [(1, False), (4, False), (4, True)])
def test_the_flops_of_a_step_are_those_of_all_shards_and_known_after_the_first_dispatch(shards, single_step):
    """By hand: [16, 4] @ [4, 3] forward, and as much for the gradient of the weights."""
    devices = jax.devices()[:shards]
    model = Model(linear_model_fn, {})
    program = Program(train_step(model), devices, trains=True, single_step=single_step)
    assert program.flops_per_step is None
    program(broadcast(fresh(linear_model_fn, linear_init), devices), stacked(1, shards), 0, 1)
    assert program.flops_per_step == 2 * (2 * 16 * 4 * 3)
    assert program.peak_flops_per_sec is None  # of a CPU


@pytest.mark.parametrize("shards", [1, 4])
def test_dispatches_of_any_length_and_capacity_are_bitwise_equal(shards):
    devices = jax.devices()[:shards]
    batches = stacked(12, shards)
    results = []
    for capacity, lengths, most in (
        *((12, [12], None), (12, [1, 4, 7], None), (4, [4, 4, 4], None), (1, [1] * 12, None)),
        *((12, [1, 4, 7], 7), (12, [1] * 12, 1)),
    ):
        program = Program(train_step(Model(net_model_fn, {})), devices, trains=True, most_steps=most)
        state, at, losses = broadcast(fresh(), devices), 0, []
        for length in lengths:
            first = at // capacity * capacity
            part = jax.tree.map(lambda x, first=first, capacity=capacity: x[first : first + capacity], batches)
            state, spec = program(state, part, at - first, length)
            assert len(spec.loss) == min(capacity, most or capacity)
            losses += list(np.asarray(spec.loss)[:length])
            at += length
        results.append((losses, state))
    for losses, state in results[1:]:
        np.testing.assert_array_equal(losses, results[0][0])
        assert_trees_equal(state, results[0][1])


def test_a_program_traces_model_fn_once_and_compiles_once():
    traces = []

    def model_fn(variables, features, labels, mode):
        traces.append(mode)
        return linear_model_fn(variables, features, labels, mode)

    program = Program(train_step(Model(model_fn, {})), jax.devices(), trains=True)
    state = broadcast(fresh(linear_model_fn, linear_init), jax.devices())
    batches = stacked(5, 4)
    with jax.log_compiles(False):
        for start, count in ((0, 5), (0, 1), (2, 2)):
            state, _ = program(state, batches, start, count)
    assert traces == ["train"]
    assert int(state.step) == 8


def test_the_state_of_a_training_program_is_donated_and_that_of_others_is_not():
    state = broadcast(fresh(), jax.devices())
    Program(placed_step(js.ModeKeys.EVAL, Model(net_model_fn, {})), jax.devices(), trains=False)(
        state, (*stacked(1, 4), np.zeros((1, 4, 2), np.int32)), 0, 1
    )
    assert not state.variables["params"]["Dense_0"]["kernel"].is_deleted()
    Program(train_step(Model(net_model_fn, {})), jax.devices(), trains=True)(state, stacked(1, 4), 0, 1)
    assert state.variables["params"]["Dense_0"]["kernel"].is_deleted()


@pytest.mark.slow(reason="six thousand steps on eight devices, in a process of its own")
def test_three_thousand_steps_on_eight_devices_do_not_deadlock():
    """Neither a hand-written loop over `replicate` that never waits, nor the estimator with one step a loop."""
    program = """
        import os
        os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=8")
        import jax, numpy as np
        import jaxspec as js
        from tiny_models import counting_init, counting_input, counting_model_fn, run_config

        x = {"x": np.zeros(8, np.float32)}
        state = js.create_train_state(counting_model_fn, counting_init, jax.random.key(0), x)
        step = js.replicate(js.make_train_step(counting_model_fn), donate_state=True)
        for _ in range(3000):
            state, _ = step(state, js.shard(x, 8))
        assert int(state.step) == 3000, state.step
        estimator = js.TPUEstimator(counting_model_fn, counting_init, config=run_config(every=1), train_batch_size=8)
        estimator.train(counting_input(rows=8), steps=3000)
        assert estimator.get_variable_value("params/w") == 3000
        print("done", len(jax.devices()))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "done 8\n", ran.stderr[-2000:]


@pytest.mark.parametrize("shards", [1, 4])
def test_the_mapping_is_that_of_pmap_bit_for_bit(shards):
    """A loop with a dynamic trip count, collectives and random keys in its body."""
    devices = jax.devices()[:shards]

    def run(state, batches, start, stop):
        def body(i, carry):
            w, key, losses = carry
            key, used = jax.random.split(key)
            x = jax.lax.dynamic_index_in_dim(batches, i, keepdims=False)
            x = x + jax.random.normal(jax.random.fold_in(used, jax.lax.axis_index(js.SHARD_AXIS)), x.shape)
            loss, grad = jax.value_and_grad(lambda w: jnp.sin(x @ w).mean())(w)
            w = w - jax.lax.pmean(grad, js.SHARD_AXIS)
            return w, key, losses.at[i].set(loss)

        w, key, losses = jax.lax.fori_loop(start, stop, body, (*state, jnp.zeros(5)))
        return (w, key), losses

    axes = {"in_axes": (None, 1, None, None), "out_axes": (None, 1)}
    batches = np.random.default_rng(0).normal(size=(5, shards, 3, 2)).astype(np.float32)
    results = []
    for program in (
        map_over_devices(run, devices, **axes),
        jax.pmap(run, axis_name=js.SHARD_AXIS, devices=devices, **axes),
    ):
        state = (jnp.ones(2), jax.random.key(7))
        for start, stop in ((0, 2), (2, 5)):
            state, losses = program(state, batches, np.int32(start), np.int32(stop))
        assert losses.shape == (5, shards)
        results.append((state, losses))
    assert_trees_equal(*results)


def test_a_dropped_estimator_gives_its_memory_back(tmp_path):
    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        config=run_config(save=1000),
        train_batch_size=4,
        eval_batch_size=4,
    )
    estimator.train(counting_input(), steps=2)
    estimator.evaluate(counting_input(1))
    made = [weakref.ref(program) for program in programs(estimator)]
    assert len(made) == 2
    del estimator
    gc.collect()
    assert [program() for program in made] == [None, None]
