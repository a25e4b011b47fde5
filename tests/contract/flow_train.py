"""Scenarios of train: steps, the end of the input, stopping and failing, checkpoints."""

import dataclasses

import contract_models
import jax.numpy as jnp
import optax
from flow_registry import scenario

import jaxspec as js
from jaxspec.hooks import CheckpointSaverHook, NanTensorHook


def train(run, estimator, label, *args, hooks=None, listeners=None, count=None, logged=True, **kwargs):
    """Writes down one call of train over the counting input (or `input_fn`)."""
    input_fn = kwargs.pop("input_fn", None) or run.input(count, logged=logged)
    run.call(label, lambda: estimator.train(input_fn, *args, hooks=hooks, saving_listeners=listeners, **kwargs))


@scenario("train/steps_then_steps")
def steps_then_steps(run, a, b):
    estimator = run.estimator()
    run.state(estimator, "before any call")
    train(run, estimator, "train(steps=a)", steps=a)
    run.state(estimator)
    train(run, estimator, "train(steps=b)", steps=b)
    run.state(estimator)
    again = run.estimator(estimator.model_dir)
    train(run, again, "new estimator, same model_dir: train(steps=1)", steps=1)
    run.state(again)


@scenario("train/max_steps")
def max_steps(run, a):
    estimator = run.estimator()
    for label, kwargs in (
        ("max_steps=a", {"max_steps": a}),
        ("max_steps=a", {"max_steps": a}),
        ("max_steps=a-2", {"max_steps": a - 2}),
        ("max_steps=a+3", {"max_steps": a + 3}),
        ("max_steps=1", {"max_steps": 1}),
        ("steps=2", {"steps": 2}),
    ):
        train(run, estimator, f"train({label})", **kwargs)
        run.state(estimator)


@scenario("train/bad_arguments")
def bad_arguments(run, a, b):
    estimator = run.estimator()
    train(run, estimator, "train(steps=a, max_steps=a)", steps=a, max_steps=a)
    train(run, estimator, "train(steps=0)", steps=0)
    train(run, estimator, "train(steps=-1)", steps=-1)
    train(run, estimator, "train(max_steps=0)", max_steps=0)
    train(run, estimator, "train(max_steps=-b)", max_steps=-b)
    train(run, estimator, "train(steps='3')", steps="3")
    train(run, estimator, "train(hooks=[object])", hooks=["not a hook"])
    train(run, estimator, "train(saving_listeners=[object])", listeners=["not a listener"])
    train(run, estimator, "train(saving_listeners=[hook])", listeners=[run.hook("hook")])
    run.state(estimator)
    run.call("train(input_fn=None, steps=1)", lambda: estimator.train(None, steps=1))
    train(run, estimator, "train(steps=2.5)", steps=2.5)
    run.state(estimator)
    train(run, estimator, "train(steps=True)", steps=True)
    run.state(estimator)


@scenario("train/input_runs_out")
def input_runs_out(run, n, last):
    estimator = run.estimator()
    train(run, estimator, "train() over n batches", count=n)
    run.state(estimator)
    train(run, estimator, "train(steps=n+10)", count=n, steps=n + 10)
    run.state(estimator)
    train(run, estimator, "train(max_steps=2*n+2)", count=n, max_steps=2 * n + 2)
    run.state(estimator)
    train(run, estimator, "train(max_steps=100)", count=n, max_steps=100)
    run.state(estimator)
    short = run.input(n, last=last)
    train(run, estimator, "train(max_steps=100) with a short last batch", input_fn=short, max_steps=100)
    run.state(estimator)


@scenario("train/input_runs_out_hooks")
def input_runs_out_hooks(run, n):
    estimator = run.estimator()
    hooks, listeners = [run.hook("hook")], [run.listener("listener")]
    train(run, estimator, "train() over n batches", hooks=hooks, listeners=listeners, count=n)
    run.state(estimator)


@scenario("train/stop_exceptions")
def stop_exceptions(run, a, stop):
    # There is no OutOfRangeError: whoever raised it raises StopIteration.
    for error in ("StopIteration", "OutOfRangeError"):
        for method in ("before_run", "after_run"):
            estimator = run.estimator()
            hook = run.hook("hook", **{method: {stop: StopIteration("scripted")}})
            label = f"train(steps=a), {error} in {method} of run {stop}"
            train(run, estimator, label, hooks=[hook], steps=a, logged=False)
            run.state(estimator)


@scenario("train/failing_hook")
def failing_hook(run, stop):
    steps = run.recorded.events[-1]["global_step"]  # behind an error in `end`, when all are done
    for method in ("begin", "after_create_session", "before_run", "after_run", "end"):
        in_run = method in ("before_run", "after_run")
        estimator = run.estimator(save_checkpoints_steps=2)
        error = KeyError("scripted")
        hooks = [run.hook("first"), run.hook("bad", **{method: {stop: error} if in_run else error}), run.hook("last")]
        label = f"train(steps=a), KeyError in {method}" + (f" of run {stop}" if in_run else "")
        train(run, estimator, label, hooks=hooks, steps=steps, logged=False)
        run.state(estimator)


@scenario("train/keyboard_interrupt")
def keyboard_interrupt(run, a, stop):
    estimator = run.estimator(save_checkpoints_steps=2)
    hook = run.hook("hook", after_run={stop: KeyboardInterrupt("scripted")})
    train(run, estimator, "train(steps=a)", hooks=[hook], steps=a, logged=False)
    run.state(estimator)


@scenario("train/request_stop")
def request_stop(run, a, stop):
    class Watcher(type(run.hook("last"))):
        def before_run(self, run_context):
            super().before_run(run_context)
            run.note(f"last sees stop_requested={run_context.stop_requested} in before_run")

        def after_run(self, run_context, run_values):
            super().after_run(run_context, run_values)
            run.note(f"last sees stop_requested={run_context.stop_requested} in after_run")

    for method in ("before_run", "after_run"):
        estimator = run.estimator()
        hooks = [run.hook("first"), run.hook("stopper", **{method: {stop: "stop"}}), Watcher(run, "last")]
        label = f"train(steps=a), request_stop in {method} of run {stop}"
        train(run, estimator, label, hooks=hooks, steps=a, logged=False)
        run.state(estimator)
        train(run, estimator, "train(steps=1) afterwards", steps=1, logged=False)
        run.state(estimator)


@scenario("train/python_generator")
def python_generator(run, n, stop):
    def failing(error):
        def input_fn():
            for i, batch in enumerate(run.input(None, logged=False)({})):
                if i == stop:
                    raise error
                yield batch

        return input_fn

    estimator = run.estimator()
    train(run, estimator, "train(steps=100) over n batches", count=n, steps=100, logged=False)
    run.state(estimator)
    for error in (ValueError("scripted"), StopIteration("scripted")):
        estimator = run.estimator()
        label = f"train(steps=100), {type(error).__name__} from the generator at batch {stop}"
        train(run, estimator, label, input_fn=failing(error), steps=100)
        run.state(estimator)


@scenario("train/checkpoints_off")
def checkpoints_off(run, b):
    estimator = run.estimator(save_checkpoints_steps=None, save_checkpoints_secs=None)
    train(run, estimator, "train(steps=b)", steps=b)
    run.state(estimator)
    train(run, estimator, "train(steps=b)", steps=b)
    train(run, estimator, "train(max_steps=2)", max_steps=2)
    run.call("latest_checkpoint()", estimator.latest_checkpoint)
    run.call("evaluate(steps=1)", lambda: estimator.evaluate(run.input(3), steps=1))


@scenario("train/iterations_per_loop", fallback_only="elsewhere a loop has as many steps as it says")
def iterations_per_loop(run, loop):
    estimator = run.estimator(tpu={"iterations_per_loop": loop}, save_checkpoints_steps=2)
    train(run, estimator, "train(steps=loop+1)", hooks=[run.hook("hook")], steps=loop + 1)
    run.state(estimator)


@scenario("train/cross_shard_optimizer_on_cpu")
def cross_shard_optimizer_on_cpu(run):
    def model_fn(variables, features, mode, params):
        spec = contract_models.model_fn(variables, features, mode, params)
        optimizer = js.CrossShardOptimizer(optax.sgd(1.0))
        return spec._replace(train_op=optimizer.apply_gradients({"w": -jnp.ones(())}))

    train(run, run.estimator(model_fn=model_fn), "train(steps=1)", steps=1)


@scenario("checkpoints/grid")
def grid(run, grid):
    for save, keep, steps in grid:
        estimator = run.estimator(save_checkpoints_steps=save, keep_checkpoint_max=keep)
        saver = [run.listener("saver")]
        label = f"save_checkpoints_steps={save} keep_checkpoint_max={keep} train(steps={steps})"
        train(run, estimator, label, listeners=saver, steps=steps, logged=False)
        run.state(estimator)
        again = [run.listener("saver")]
        train(run, estimator, f"train(steps={save + 1}) again", listeners=again, steps=save + 1, logged=False)
        run.state(estimator)


@scenario("checkpoints/keep_all")
def keep_all(run, a):
    for keep in (0, None):
        estimator = run.estimator(save_checkpoints_steps=1, keep_checkpoint_max=keep)
        label = f"keep_checkpoint_max={keep} save_checkpoints_steps=1 train(steps=a)"
        train(run, estimator, label, steps=a, logged=False)
        run.state(estimator)


@scenario("checkpoints/log_and_files")
def log_and_files(run, save):
    estimator = run.estimator(save_checkpoints_steps=save)
    train(run, estimator, "train(steps=save+1)", steps=save + 1)
    run.state(estimator)
    # There is no graph to save, and so no such setting.
    estimator = run.estimator()
    train(run, estimator, "checkpoint_save_graph_def=False train(steps=1)", steps=1)
    run.state(estimator)


def frozen(config):
    """Whether nobody can change a config."""
    try:
        config.model_dir = "elsewhere"
    except dataclasses.FrozenInstanceError:
        return True
    return False


@scenario("checkpoints/reading")
def reading(run, a, save):
    estimator = run.estimator(save_checkpoints_steps=save)
    run.call("latest_checkpoint() before training", estimator.latest_checkpoint)
    run.call("get_variable_names() before training", estimator.get_variable_names)
    run.call("get_variable_value('w') before training", lambda: estimator.get_variable_value("params/w"))
    estimator.train(run.input(logged=False), steps=a)
    run.call("latest_checkpoint()", estimator.latest_checkpoint, lambda path: path.rpartition("/")[2])
    run.call("get_variable_names()", estimator.get_variable_names, variable_names)
    run.call("get_variable_value('w')", lambda: estimator.get_variable_value("params/w"))
    run.call("get_variable_value('global_step')", lambda: estimator.get_variable_value("global_step"))
    run.call("get_variable_value('nothing')", lambda: estimator.get_variable_value("nothing"))
    run.call("model_dir", lambda: estimator.model_dir, lambda path: path.startswith(str(run.directory)))
    run.call("eval_dir()", estimator.eval_dir, lambda path: path.rpartition("/")[2])
    run.call("eval_dir('name')", lambda: estimator.eval_dir("name"), lambda path: path.rpartition("/")[2])
    run.call("params is a copy", lambda: estimator.params is not estimator.params)
    run.call("config is a copy", lambda: frozen(estimator.config))


def variable_names(names):
    """As TensorFlow calls them: `w` for `params/w`."""
    return [name.removeprefix("params/") for name in names]


@scenario("checkpoints/own_saver_hook")
def own_saver_hook(run, n, s, a):
    for place in ("hooks", "training_hooks"):
        model_dir = run.folder()
        saver = CheckpointSaverHook(model_dir, save_steps=n, listeners=[run.listener("mine")])
        in_spec = place == "training_hooks"
        model_fn = run.model(training_hooks=[saver] if in_spec else ())
        estimator = run.estimator(model_dir, model_fn=model_fn, save_checkpoints_steps=s)
        label = f"{place}=[CheckpointSaverHook(save_steps=n)], save_checkpoints_steps=s, train(steps=a)"
        hooks = None if in_spec else [saver]
        train(run, estimator, label, hooks=hooks, listeners=[run.listener("given")], steps=a, logged=False)
        run.state(estimator)


@scenario("checkpoints/restore_mismatch")
def restore_mismatch(run):
    def more(variables, features, mode, params):
        spec = contract_models.model_fn(variables, features, mode, params)
        return spec._replace(train_op=js.apply_gradients(optax.sgd(1.0), {"w": -jnp.ones(())}, of="w"))

    def init_more():
        return {"params": {"w": jnp.zeros(()), "extra": jnp.zeros(())}}

    few, many = run.folder(), run.folder()
    run.estimator(few).train(run.input(logged=False), steps=1)
    run.estimator(many, model_fn=more, init_fn=init_more).train(run.input(logged=False), steps=1)
    estimator = run.estimator(few, model_fn=more, init_fn=init_more)
    train(run, estimator, "a variable more than the checkpoint: train(steps=1)", steps=1, logged=False)
    run.call(
        "a variable more than the checkpoint: evaluate(steps=1)",
        lambda: estimator.evaluate(run.input(1, logged=False), steps=1),
    )
    estimator = run.estimator(many)
    train(run, estimator, "a variable fewer than the checkpoint: train(steps=1)", steps=1, logged=False)
    run.state(estimator)
    run.call("get_variable_names()", estimator.get_variable_names, variable_names)


@scenario("listeners/stop")
def listeners_stop(run, a):
    estimator = run.estimator(save_checkpoints_steps=2)
    stop = run.recorded.number("listener_1 asks to stop from step {}")
    first, second = run.listener("listener_1", stop_from=stop), run.listener("listener_2")
    label = f"train(steps=a), listener_1 asks to stop from step {stop}"
    train(run, estimator, label, listeners=[first, second], steps=a, logged=False)
    run.state(estimator)
    steps = run.recorded.number("train(steps={}): the save at the start")
    label = f"train(steps={steps}): the save at the start also returns True, but only after_run counts"
    train(run, estimator, label, listeners=[first], steps=steps, logged=False)
    run.state(estimator)


@scenario("listeners/other")
def listeners_other(run, n):
    off = run.estimator(save_checkpoints_steps=None, save_checkpoints_secs=None)
    train(run, off, "listeners but no checkpoints", listeners=[run.listener("listener")], steps=1, logged=False)
    estimator = run.estimator()
    listener = run.listener("listener")
    train(run, estimator, "the same listener twice", listeners=[listener, listener], steps=1, logged=False)
    train(run, estimator, "saving_listeners=None", steps=1, logged=False)
    failing = run.listener("failing", fails_at=2 + n)
    label = "a listener that fails in after_save at the final save: train(steps=n)"
    train(run, estimator, label, listeners=[failing], steps=n, logged=False)
    run.state(estimator)


def nan_input(run, at, value=float("nan")):
    """The counting input with another number in batch `at`."""
    return run.input(logged=False, nan_at=at, bad=value)


@scenario("nan/train")
def nan_train(run, a, nan):
    estimator = run.estimator(save_checkpoints_steps=2)
    hook = run.hook("hook")
    train(run, estimator, f"train(steps=a), NaN in batch {nan}", hooks=[hook], input_fn=nan_input(run, nan), steps=a)
    run.state(estimator)
    estimator = run.estimator()
    infinite = nan_input(run, nan, float("inf"))
    train(run, estimator, f"train(steps=a), infinity in batch {nan}", input_fn=infinite, steps=a)
    run.state(estimator)


@scenario("nan/own_hook")
def nan_own_hook(run, a, nan):
    estimator = run.estimator()
    lenient = NanTensorHook("loss", fail_on_nan_loss=False)
    train(run, estimator, f"train(steps=a), NaN in batch {nan}", hooks=[lenient], input_fn=nan_input(run, nan), steps=a)
    run.state(estimator)

    def other(x):
        m = x.mean()
        return (lambda other: None, {"other": jnp.where(m == nan, jnp.nan, m)})

    estimator = run.estimator(model_fn=run.model(host_call=other))
    lenient = NanTensorHook("other", fail_on_nan_loss=False)
    label = f"NanTensorHook(another tensor, fail_on_nan_loss=False), NaN at batch {nan}"
    train(run, estimator, label, hooks=[lenient], steps=a, logged=False)
    run.state(estimator)
