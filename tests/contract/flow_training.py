"""Scenarios of train_and_evaluate, early stopping and exporters."""

import os
import re

import contract_models
import jax.numpy as jnp
import numpy as np
from flow_registry import scenario
from flow_train import train
from flow_transcript import RecordingExporter

import jaxspec as js
from jaxspec.hooks import (
    make_early_stopping_hook,
    stop_if_higher_hook,
    stop_if_lower_hook,
    stop_if_no_decrease_hook,
    stop_if_no_increase_hook,
)


@scenario("early_stopping/in_train_and_evaluate")
def early_stopping(run, metric_by_step, patience, threshold, min_steps, max_steps):
    # Slow: eight runs, in which a checkpoint and an evaluation follow each step.
    def score(x, w):
        return {"score": js.metrics.mean(np.float32(metric_by_step[int(w[0])]))}

    def attempt(label, make, **kwargs):
        def model_fn(variables, features, mode, params):
            w = jnp.broadcast_to(variables["params"]["w"], features["x"].shape)
            counting = run.model(eval_metrics=lambda x: (score, [x, w]))
            return counting(variables, features, mode, params)

        estimator = run.estimator(model_fn=model_fn, save_checkpoints_steps=1, keep_checkpoint_max=1)
        hook = make(estimator, **{"run_every_secs": None, "run_every_steps": 1, **kwargs})
        run.call(
            label,
            lambda: js.train_and_evaluate(
                estimator,
                js.TrainSpec(run.input(logged=False), max_steps=max_steps, hooks=[hook]),
                js.EvalSpec(run.input(1, logged=False), steps=1, throttle_secs=0),
            ),
            list,
        )
        run.state(estimator)

    no_decrease = {"metric_name": "score", "max_steps_without_decrease": patience}
    lower = {"metric_name": "score", "threshold": threshold}
    attempt("stop_if_no_decrease_hook(score, patience)", stop_if_no_decrease_hook, **no_decrease)
    attempt(
        "stop_if_no_increase_hook(score, patience)",
        stop_if_no_increase_hook,
        metric_name="score",
        max_steps_without_increase=patience,
    )
    attempt("stop_if_lower_hook(score, threshold)", stop_if_lower_hook, **lower)
    attempt("stop_if_higher_hook(score, threshold)", stop_if_higher_hook, **lower)
    label = "stop_if_no_decrease_hook(score, patience, min_steps)"
    attempt(label, stop_if_no_decrease_hook, **no_decrease, min_steps=min_steps)
    every = run.recorded.number("stop_if_lower_hook(score, threshold, run_every_steps={})")
    label = f"stop_if_lower_hook(score, threshold, run_every_steps={every})"
    attempt(label, stop_if_lower_hook, **lower, run_every_steps=every)
    loss_patience = run.recorded.number("stop_if_no_decrease_hook(loss, {})")
    loss = {"metric_name": "loss", "max_steps_without_decrease": loss_patience}
    attempt(f"stop_if_no_decrease_hook(loss, {loss_patience})", stop_if_no_decrease_hook, **loss)
    label = "stop_if_lower_hook(a metric that is not there)"
    attempt(label, stop_if_lower_hook, metric_name="nothing", threshold=threshold)


@scenario("early_stopping/make_hook")
def make_hook(run, stop):
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) > stop

    estimator = run.estimator()
    ((every, steps),) = run.recorded.numbers("make_early_stopping_hook(run_every_steps={}): train(steps={})")
    hook = make_early_stopping_hook(estimator, should_stop, run_every_secs=None, run_every_steps=every)
    label = f"make_early_stopping_hook(run_every_steps={every}): train(steps={steps})"
    train(run, estimator, label, hooks=[hook], steps=steps, logged=False)
    run.note(f"should_stop_fn was asked {len(asked)} times")
    run.state(estimator)
    run.call(
        "get_variable_names()", estimator.get_variable_names, lambda names: [n.removeprefix("params/") for n in names]
    )
    for label, args, kwargs in (
        ("run_every_secs and run_every_steps", (estimator, should_stop), {"run_every_secs": 60, "run_every_steps": 1}),
        ("run_every_steps=1 and the default run_every_secs", (estimator, should_stop), {"run_every_steps": 1}),
        ("neither", (estimator, should_stop), {"run_every_secs": None}),
        ("should_stop_fn=3", (estimator, 3), {}),
        ("estimator=3", (3, should_stop), {}),
    ):
        run.call(label, lambda args=args, kwargs=kwargs: make_early_stopping_hook(*args, **kwargs))


def both(run, estimator, label, *, train_kwargs, **eval_kwargs):
    """Writes down one call of train_and_evaluate, with one exporter unless told otherwise."""
    count = train_kwargs.pop("count", None)
    evaluated = run.recorded.batches_evaluated()
    eval_count = eval_kwargs.pop("count", evaluated)
    eval_kwargs = {"steps": evaluated, "throttle_secs": 0, "exporters": RecordingExporter(run, "one"), **eval_kwargs}
    run.call(
        label,
        lambda: js.train_and_evaluate(
            estimator,
            js.TrainSpec(run.input(count, name="train input_fn"), **train_kwargs),
            js.EvalSpec(run.input(eval_count, name="eval input_fn"), **eval_kwargs),
        ),
        list,
    )


def eval_events(run, estimator):
    """Writes down what the evaluations without a name have written."""
    run.data("eval events", run.scalars(estimator.eval_dir()))


@scenario("train_and_evaluate/sequence")
def sequence(run, a, save):
    estimator = run.estimator(save_checkpoints_steps=save)
    training = {"max_steps": a, "hooks": [run.hook("train_hook")], "saving_listeners": [run.listener("listener")]}
    exporters = [RecordingExporter(run, "one"), RecordingExporter(run, "two")]
    label = "train_and_evaluate(max_steps=a), throttle_secs=0"
    both(run, estimator, label, train_kwargs=training, hooks=[run.hook("eval_hook")], exporters=exporters)
    run.state(estimator)
    eval_events(run, estimator)


@scenario("train_and_evaluate/throttle")
def throttle(run, a, save):
    estimator = run.estimator(save_checkpoints_steps=save)
    label = "train_and_evaluate(max_steps=a), throttle_secs=600"
    both(run, estimator, label, train_kwargs={"max_steps": a}, throttle_secs=600)
    run.state(estimator)
    eval_events(run, estimator)


@scenario("train_and_evaluate/again")
def again(run, b, save):
    estimator = run.estimator(save_checkpoints_steps=save)
    for label, max_steps in (("max_steps=b)", b), ("max_steps=b) again", b), ("max_steps=b+2)", b + 2)):
        both(run, estimator, f"train_and_evaluate({label}", train_kwargs={"max_steps": max_steps})
        run.state(estimator)


@scenario("train_and_evaluate/no_max_steps")
def no_max_steps(run, n, k, save):
    estimator = run.estimator(save_checkpoints_steps=save)
    label = "train_and_evaluate() over n batches, eval steps=None over k batches, name='dev'"
    both(run, estimator, label, train_kwargs={"count": n}, count=k, steps=None, name="dev")
    run.state(estimator)


@scenario("train_and_evaluate/stops")
def stops(run, a):
    estimator = run.estimator(save_checkpoints_steps=2)
    at, after = (run.recorded.number(f"asks to stop {when} {{}}") for when in ("at step", "after run"))
    listener = run.listener("listener", stop_from=at)
    training = {"max_steps": a, "saving_listeners": [listener]}
    both(run, estimator, f"a listener asks to stop at step {at}", train_kwargs=training)
    run.state(estimator)
    estimator = run.estimator(save_checkpoints_steps=2)
    hook = run.hook("hook", steps=False, after_run={after: "stop"})
    both(run, estimator, f"a hook asks to stop after run {after}", train_kwargs={"max_steps": a, "hooks": [hook]})
    run.state(estimator)
    estimator = run.estimator(save_checkpoints_steps=None, save_checkpoints_secs=None)
    both(run, estimator, "checkpoints switched off", train_kwargs={"max_steps": a})

    def failing(x):
        raise KeyError("scripted")

    model_fn = run.model(eval_metrics=lambda x: (failing, [x]))
    estimator = run.estimator(model_fn=model_fn, save_checkpoints_steps=2)
    both(run, estimator, "the evaluation fails", train_kwargs={"max_steps": a})
    run.state(estimator)


@scenario("train_and_evaluate/arguments")
def arguments(run):
    estimator = run.estimator()
    training, evaluation = js.TrainSpec(run.input(), max_steps=1), js.EvalSpec(run.input(1))
    for label, args in (
        ("estimator is a string", ("estimator", training, evaluation)),
        ("train_spec is None", (estimator, None, evaluation)),
        ("eval_spec is None", (estimator, training, None)),
        ("eval_spec is a train_spec", (estimator, training, training)),
    ):
        run.call(label, lambda args=args: js.train_and_evaluate(*args))
    run.state(estimator)


class Exporting:
    """Stands for an estimator: its exports are empty folders named by ten digits."""

    def __init__(self, run):
        self.run, self.model_dir, self.count = run, run.folder(), 0

    def eval_dir(self, name=None):
        return os.path.join(self.model_dir, "eval")

    def export_saved_model(self, export_dir_base, serving_input_receiver_fn, assets_extra=None, checkpoint_path=None):
        self.count += 1
        self.run.note(f"export {self.count} of {os.path.basename(checkpoint_path).removeprefix('model.')}")
        path = os.path.join(export_dir_base, str(1_000_000_000 + self.count))
        os.makedirs(path)
        return path


def ask(run, name, exporter, estimator, *, final=True, key="loss"):
    """Writes down what an exporter does at each of the recorded evaluations; the last one is final, or not."""
    run.note(f"exporter {name}")
    values = run.recorded.values(f"exporter {name}", key)
    path = os.path.join(estimator.model_dir, "export", "name")
    for number, value in enumerate(values):
        is_final = final and number + 1 == len(values)
        run.call(
            f"{key}={value:g} final={is_final}",
            lambda number=number, value=value, is_final=is_final: exporter.export(
                estimator, path, f"{estimator.model_dir}/model.ckpt-{number}", {key: value}, is_final
            ),
            lambda path: path and os.path.basename(path),
        )
    folders = sorted(f for f in os.listdir(path) if f.isdigit()) if os.path.isdir(path) else []
    run.data("folders left", folders)


@scenario("exporters/decisions")
def decisions(run, k, **_):
    def receiver():
        return None

    def higher(best_eval_result, current_eval_result):
        return current_eval_result["loss"] > best_eval_result["loss"]

    def final():
        return js.FinalExporter("name", receiver)

    def latest(keep):
        return js.LatestExporter("name", receiver, exports_to_keep=keep)

    def best(**kwargs):
        return js.BestExporter("name", receiver, **kwargs)

    for name, exporter in (
        ("FinalExporter", final()),
        ("FinalExporter, never final", final()),
        ("LatestExporter(exports_to_keep=k)", latest(k)),
        ("LatestExporter(exports_to_keep=None)", latest(None)),
        ("BestExporter(exports_to_keep=k)", best(exports_to_keep=k)),
        ("BestExporter()", best()),
        ("BestExporter(compare_fn=higher loss)", best(compare_fn=higher)),
        ("BestExporter(event_file_pattern=None)", best(event_file_pattern=None)),
    ):
        ask(run, name, exporter, Exporting(run), final="never" not in name)
    name = "BestExporter, results without loss"
    ask(run, name, best(), Exporting(run), key="score")


@scenario("exporters/best_after_restart")
def best_after_restart(run, **_):
    def best(**kwargs):
        return js.BestExporter("name", lambda: None, **kwargs)

    estimator = Exporting(run)
    ask(run, "first process", best(), estimator)
    ask(run, "after restart, same model_dir", best(), estimator)
    estimator = Exporting(run)
    ask(run, "first process, no pattern", best(event_file_pattern=None), estimator)
    ask(run, "after restart, no pattern", best(event_file_pattern=None), estimator)


@scenario("exporters/real")
def real(run, save):
    def receiver_fn():
        tensors = {"x": js.export.TensorSpec((None,), jnp.float32)}
        return js.export.ServingInputReceiver(tensors, tensors)

    def export(label, estimator, receiver_fn=receiver_fn):
        path = os.path.join(estimator.model_dir, "by_hand")
        run.call(label, lambda: estimator.export_saved_model(path, receiver_fn), lambda path: type(path).__name__)

    estimator, batches = run.estimator(save_checkpoints_steps=save), run.recorded.batches_evaluated()
    exporter = js.FinalExporter("final", receiver_fn)
    evaluated = js.EvalSpec(run.input(name="eval input_fn"), steps=batches, exporters=exporter, throttle_secs=0)
    run.call(
        "train_and_evaluate(max_steps=save), FinalExporter",
        lambda: js.train_and_evaluate(
            estimator, js.TrainSpec(run.input(name="train input_fn"), max_steps=save), evaluated
        ),
        lambda returned: returned[0],
    )
    base = os.path.join(estimator.model_dir, "export")
    files = sorted(
        os.path.relpath(os.path.join(folder, name), base) for folder, _, names in os.walk(base) for name in names
    )
    run.data("export files", [re.sub(r"\b\d{10}\b", "<TIMESTAMP>", f"export/{file}") for file in files])
    export("export_saved_model(receiver)", estimator)
    export("export_saved_model(None)", estimator, None)
    export("export_saved_model before training", run.estimator(run.folder("fresh")))
    settings = {"model_dir": estimator.model_dir, "params": {}, "use_tpu": run.setup.use_tpu}
    neither = js.TPUEstimator(
        run.model(), contract_models.init_fn, **settings, export_to_cpu=False, export_to_tpu=False
    )
    export("export_to_cpu=False, export_to_tpu=False: export_saved_model", neither)
