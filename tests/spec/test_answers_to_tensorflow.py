"""Lines of TensorFlow's that do not carry over are answered with the line to write."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_models import Net, batches, data, linear_init, linear_logits, linear_model_fn, run_config

import jaxspec as js

X, Y = data(rows=8)
SGD = optax.sgd(0.1)


def estimator(tmp_path, model_fn=linear_model_fn, init_fn=linear_init, shards=2, **kwargs):
    sizes = dict(train_batch_size=4, eval_batch_size=4)
    return js.TPUEstimator(
        model_fn, init_fn, model_dir=tmp_path, config=run_config(num_shards=shards), **sizes, **kwargs
    )


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


class Dataset:
    """What an input_fn gives, but no function."""

    def __iter__(self):
        return iter(batches(X, Y, size=4))


def minimize(*args, **kwargs):
    return js.CrossShardOptimizer(SGD).minimize(*args, **kwargs)


def apply_gradients(*args, **kwargs):
    return js.CrossShardOptimizer(SGD).apply_gradients(*args, **kwargs)


LOSS, STEP = np.float32(1), np.int32(0)
WRITE_MINIMIZE = r"Write jaxspec.minimize\(optimizer\), which differentiates the spec's own loss"
WRITE_APPLY = r"Write jaxspec.apply_gradients\(optimizer, grads\), with grads as the tree of variables\['params'\]"
CALLS = {
    "minimize(loss, step)": (lambda: minimize(LOSS, STEP), "too many positional arguments. " + WRITE_MINIMIZE),
    "minimize(loss)": (
        lambda: minimize(LOSS),
        "loss must be callable.*Write a function of the variables, or leave it out",
    ),
    "minimize(global_step)": (
        lambda: minimize(LOSS, global_step=STEP),
        "global_step: leave it out: the runner counts the steps. " + WRITE_MINIMIZE,
    ),
    "minimize(var_list)": (
        lambda: js.minimize(SGD, var_list=["w"]),
        r"var_list: write of=: a key of variables\['params'\]",
    ),
    "apply_gradients(zip)": (lambda: apply_gradients(zip([1], [2], strict=True)), "got zip. " + WRITE_APPLY),
    "apply_gradients(global_step)": (
        lambda: apply_gradients([1], global_step=STEP),
        "global_step: leave it out: the runner counts the steps. " + WRITE_APPLY,
    ),
    "apply_gradients(grads, step)": (lambda: js.apply_gradients(SGD, [1], STEP), "too many.* " + WRITE_APPLY),
    "optimizer.update()": (
        lambda: js.TPUEstimatorSpec("train", loss=LOSS, train_op=({"w": jnp.ones(2)}, ())),
        r"train_op must be a TrainOp.*train_op=jaxspec.apply_gradients\(optax.adam\(1e-3\), grads\)",
    ),
    "model_dir by position": (
        lambda: js.TPUEstimator(linear_model_fn, "runs/x"),
        r"init_fn must be a function or a Flax Linen Module, got 'runs/x'.*write model_dir='runs/x'",
    ),
    "config by position": (
        lambda: js.TPUEstimator(linear_model_fn, "runs/x", js.RunConfig()),
        r"TPUEstimator: too many positional arguments. Write TPUEstimator\(model_fn, init_fn, model_dir=\.\.\.",
    ),
    "batch_axis": (lambda: js.TPUEstimator(linear_model_fn, batch_axis=0), "batch_axis: leave it out.*axis 0"),
    "NNX module": (
        lambda: js.TPUEstimator(linear_model_fn, Mlp(nnx.Rngs(0))),
        r"got the NNX module Mlp. Write net = flax.nnx.bridge.ToLinen\(Mlp, args=\(\.\.\.\)\), init_fn=net",
    ),
    "class of a module": (lambda: js.TPUEstimator(linear_model_fn, Net), r"got its class. Write init_fn=Net\(\.\.\.\)"),
    "train_distribute": (lambda: js.RunConfig(train_distribute=None), r"train_distribute: leave it out.*num_shards"),
    "RunConfig by position": (
        lambda: js.RunConfig(None, "runs/x"),
        r"Write RunConfig\(TPUConfig\(\.\.\.\), model_dir=",
    ),
    "eval_metric_ops": (
        lambda: js.TPUEstimatorSpec("eval", loss=LOSS, eval_metric_ops={}),
        r"eval_metric_ops: write eval_metrics=\(metric_fn, tensors\)",
    ),
    "scaffold": (lambda: js.TPUEstimatorSpec("eval", loss=LOSS, scaffold=None), "scaffold: write scaffold_fn="),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_is_answered(case):
    call, text = CALLS[case]
    with pytest.raises(TypeError, match=text):
        call()


def test_right_calls_are_left_alone():
    assert js.minimize(SGD, of="w").of == ("w",)
    assert minimize(lambda variables: 0.0, reduction="sum").reduction == "mean"
    assert js.RunConfig(js.TPUConfig(num_shards=1), model_dir="x").replace(model_dir="y").model_dir == "y"
    with pytest.raises(TypeError, match="RunConfig: got an unexpected keyword argument 'modeldir'"):
        js.RunConfig(modeldir="x")


def test_a_data_set_in_the_place_of_input_fn(tmp_path):
    with pytest.raises(TypeError, match="input_fn must be callable.*each call begins anew: input_fn=lambda: dataset"):
        estimator(tmp_path).train(Dataset())


def in_model_fn(edit):
    def model_fn(variables, features, labels, mode, step):
        spec = linear_model_fn(variables, features, labels, mode)
        return edit(spec, step, linear_logits(variables, features))

    return model_fn


def state():
    return js.create_train_state(linear_model_fn, linear_init, jax.random.key(0), X, Y)


class HoldsTensor(js.hooks.SessionRunHook):
    def __init__(self, tensor):
        self.tensor = tensor


SPECS = {
    "as_estimator_spec": (
        lambda spec, step, logits: spec.as_estimator_spec(),
        r"as_estimator_spec was called while loss is being traced.*A model_fn returns the TPUEstimatorSpec as it is",
    ),
    "EstimatorSpec": (
        lambda spec, step, logits: js.EstimatorSpec("eval", loss=spec.loss),
        r"model_fn should return a TPUEstimatorSpec, got EstimatorSpec.*Write return jaxspec.TPUEstimatorSpec\(mode, ",
    ),
    "hook with a tensor": (
        lambda spec, step, logits: spec._replace(evaluation_hooks=[HoldsTensor({"l": spec.loss})]),
        r"evaluation_hooks\[0\] \(HoldsTensor\) uses `l`.*SessionRunArgs\('l'\) in before_run.*host_call=jaxspec\.fetches\(l=l\)",
    ),
    "vector loss": (lambda spec, step, logits: spec._replace(loss=logits), r"Loss must be scalar.*\.mean\(\)"),
    "summary": (
        lambda spec, step, logits: js.summary.scalar("loss", spec.loss),
        r"summaries are written on the host. Pass it: host_call=",
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_spec_is_answered(case):
    edit, text = SPECS[case]
    with pytest.raises((TypeError, ValueError), match=text):
        jax.jit(js.make_eval_step(in_model_fn(edit)))(state(), X, Y)


def test_value_and_update_op(tmp_path):
    def edit(spec, step, logits):
        return spec._replace(eval_metrics=(lambda logits: {"mean": (logits.mean(), None)}, [logits]))

    with pytest.raises(
        TypeError, match=r"a tuple of 2 under 'mean'.*\(value, update_op\), return what jaxspec's returns"
    ):
        estimator(tmp_path, in_model_fn(edit)).evaluate(lambda: batches(X, Y, size=4))


def compares(step, loss):
    if step % 2 == 0:
        pass


SCALARS = {
    "if": compares,
    "int": lambda step, loss: int(step),
    "float": lambda step, loss: float(loss),
    "format": lambda step, loss: f"{loss:.3f}",
    "range": lambda step, loss: list(range(step)),
}


@pytest.mark.parametrize("case", SCALARS)
def test_a_scalar_of_host_call_arrives_as_one_entry_for_each_shard(tmp_path, case):
    def edit(spec, step, logits):
        return spec._replace(host_call=(SCALARS[case], [step, spec.loss]))

    with pytest.raises((TypeError, ValueError)) as caught:
        estimator(tmp_path, in_model_fn(edit)).train(lambda: batches(X, Y, size=4))
    notes = "\n".join(caught.value.__notes__)
    assert "raised by host_call" in notes
    assert "of a scalar of model_fn one entry for each shard" in notes
    assert "Write step[0] where all are the same" in notes
    assert "loss.mean() where they are not" in notes


def test_strings_in_features(tmp_path):
    with pytest.raises(TypeError, match="features/name has dtype <U1.*Map strings to integer ids"):
        estimator(tmp_path).train(lambda: [({"x": X[:4], "name": np.array(["a"] * 4)}, Y[:4])])


def test_train_does_not_run_model_fn_again(tmp_path):
    """What may change between two calls of train is given as an array: in the features, or in the variables."""
    calls = []

    def model_fn(variables, features, labels, mode):
        calls.append(mode)
        return linear_model_fn(variables, features, labels, mode)

    made = estimator(tmp_path, model_fn).train(lambda: batches(X, Y, size=4))
    before = len(calls)
    assert before > 0
    made.train(lambda: batches(X, Y, size=4))
    assert len(calls) == before
    estimator(tmp_path, model_fn).train(lambda: batches(X, Y, size=4))
    assert len(calls) > before
