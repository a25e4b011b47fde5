"""Scenarios of hooks, host calls and summaries."""

import contract_models
import jax.numpy as jnp
import numpy as np
from flow_registry import scenario
from flow_train import train

import jaxspec as js
from jaxspec.hooks import (
    FinalOpsHook,
    LoggingTensorHook,
    SecondOrStepTimer,
    SessionRunArgs,
    SessionRunHook,
    StepCounterHook,
    StopAtStepHook,
    SummarySaverHook,
)


def numbered(run, kind, name):
    """Two hooks or listeners."""
    return [getattr(run, kind)(f"{name}_{number}") for number in (1, 2)]


@scenario("hooks/train_order")
def train_order(run, n, s):
    arguments, of_spec, listeners = (
        numbered(run, kind, name)
        for kind, name in (("hook", "arg_hook"), ("hook", "spec_hook"), ("listener", "listener"))
    )
    estimator = run.estimator(model_fn=run.model(training_hooks=of_spec), save_checkpoints_steps=s)
    train(run, estimator, "train(steps=n)", hooks=arguments, listeners=listeners, steps=n)
    run.state(estimator)
    label = "train(steps=1) again, spec hooks and listeners are the same objects"
    train(run, estimator, label, hooks=arguments[:1], listeners=listeners, steps=1)


@scenario("hooks/evaluate_order")
def evaluate_order(run, s):
    arguments, of_spec = numbered(run, "hook", "arg_hook"), numbered(run, "hook", "spec_hook")
    estimator = run.estimator(model_fn=run.model(evaluation_hooks=of_spec))
    run.call("evaluate(steps=s)", lambda: estimator.evaluate(run.input(), steps=s, hooks=arguments))
    run.call("evaluate() over 1 batch", lambda: estimator.evaluate(run.input(1), hooks=arguments[:1]))


@scenario("hooks/predict_order")
def predict_order(run, s):
    arguments, of_spec = numbered(run, "hook", "arg_hook"), numbered(run, "hook", "spec_hook")
    estimator = run.estimator(model_fn=run.model(prediction_hooks=of_spec))
    run.note("looping over predict() with s batches")
    for example in estimator.predict(run.input(s), hooks=arguments):
        run.note(f"row x={example['x']:g}")
    run.note("loop done")


@scenario("hooks/stop_and_fail_in_evaluate_and_predict")
def stop_and_fail(run, batches):
    estimator = run.estimator()

    def evaluate(hook):
        return estimator.evaluate(run.input(batches, logged=False), hooks=[hook])

    def predict(hook):
        return [row["x"] for row in estimator.predict(run.input(batches, logged=False), hooks=[hook])]

    number = run.recorded.number("request_stop after run {}")
    for name, verb in (("evaluate", evaluate), ("predict", predict)):
        for label, doing in (
            (f"request_stop after run {number}", {"after_run": {number: "stop"}}),
            (f"KeyError after run {number}", {"after_run": {number: KeyError("scripted")}}),
            (f"StopIteration before run {number}", {"before_run": {number: StopIteration("scripted")}}),
        ):
            hook = run.hook("hook", steps=False, **doing)
            run.call(f"{name}(), {label}", lambda verb=verb, hook=hook: verb(hook))


@scenario("hooks/run_args")
def run_args(run, s):
    class Asking(SessionRunHook):
        def __init__(self, args):
            self.args = args

        def before_run(self, run_context):
            return self.args

        def after_run(self, run_context, run_values):
            run.data("results", run_values.results)

    def named(x):
        return (lambda m: None, {"m": x.mean() + 100})

    for label, args in (
        ("nothing", None),
        ("a tensor", SessionRunArgs("m")),
        ("a list", SessionRunArgs(["m", "m"])),
        ("a dict", SessionRunArgs({"m": "m", "again": ["m"]})),
        ("an empty list", SessionRunArgs([])),
    ):
        estimator = run.estimator(model_fn=run.model(host_call=named))
        label = f"hook asks for {label}: train(steps=s)"
        train(run, estimator, label, hooks=[Asking(args)], steps=s, logged=False)


@scenario("host_call/calls", fallback_only="on several shards a scalar arrives as one entry for each")
def host_calls(run, n, s):
    def positional(x):
        def host_call(x, loss):
            run.data("host_call x", x)
            run.data("host_call loss", loss)

        return host_call, [x, x.mean()[None]]

    def by_keyword(x):
        def host_call(a, b):
            run.data("host_call a+b", (a + b)[0])

        return host_call, {"a": x.mean(), "b": factor * x.mean()}

    # Of batch 1, filled with 1: b is what its sum has beyond a.
    train_by_keyword = next(e for e in run.recorded.events if e["call"] == "tensors as dict: train(steps=n)")
    sums = [float(e["data"]) for e in train_by_keyword["inside"] if not isinstance(e, str)]
    factor = sums[1] - 1

    for kind, host_call in (("list", positional), ("dict", by_keyword)):
        estimator = run.estimator(model_fn=run.model(host_call=host_call))
        train(run, estimator, f"tensors as {kind}: train(steps=n)", steps=n, logged=False)
        run.call(
            f"tensors as {kind}: evaluate(steps=s)",
            lambda estimator=estimator: estimator.evaluate(run.input(logged=False), steps=s),
        )
        run.call(
            f"tensors as {kind}: list(predict()) of 1 batch",
            lambda estimator=estimator: len(list(estimator.predict(run.input(1, logged=False)))),
        )


@scenario("host_call/every_n_ignored_on_cpu", fallback_only="on several shards a scalar arrives as one entry for each")
def every_n(run, n):
    def host_call(x):
        return (lambda loss: run.data("host_call loss", loss)), [x.mean()]

    every = run.recorded.number("experimental_host_call_every_n_steps={}")
    tpu = {"experimental_host_call_every_n_steps": every}
    estimator = run.estimator(model_fn=run.model(host_call=host_call), tpu=tpu)
    label = f"experimental_host_call_every_n_steps={every}: train(steps=n+1)"
    train(run, estimator, label, steps=n + 1, logged=False)


@scenario("host_call/summaries")
def host_call_summaries(run, b):
    model_dir = run.folder()

    def model_fn(variables, features, mode, params, step):
        def host_call(step, loss):
            with js.summary.create_file_writer(model_dir).as_default(), js.summary.record_if(step[0] % 2 == 0):
                js.summary.scalar("training_loss", loss, step=step)

        spec = run.model()(variables, features, mode, params)
        return spec._replace(host_call=(host_call, [step[None], spec.loss[None]]))

    estimator = run.estimator(model_dir, model_fn=model_fn)
    train(run, estimator, "train(steps=b)", steps=b, logged=False)
    run.data("events", run.scalars(model_dir))


@scenario("events/train")
def events_train(run, long, combos):
    for save, log in combos:
        estimator = run.estimator(save_summary_steps=save, log_step_count_steps=log)
        label = f"save_summary_steps={save} log_step_count_steps={log} train(steps=long)"
        train(run, estimator, label, steps=long, logged=False)
        run.data("events", run.scalars(estimator.model_dir, new=True))
        train(run, estimator, "train(steps=2) again", steps=2, logged=False)
        run.data("new events", run.scalars(estimator.model_dir, new=True))
        run.note("1 event file(s)")  # TensorFlow's has the graph; ours is made at the first summary


@scenario("events/rates_and_iterations_per_loop")
def rates(run, a, log, long):
    for log_steps, loop in run.recorded.numbers("log_step_count_steps={} iterations_per_loop={}"):
        estimator = run.estimator(save_summary_steps=100, log_step_count_steps=log_steps)
        estimator.train(run.input(logged=False), steps=long)
        at = [step for step, tag, _, _ in run.scalars(estimator.model_dir) if tag == "global_step/sec"]
        run.data(f"log_step_count_steps={log_steps} iterations_per_loop={loop}: steps with a rate", at)


@scenario("events/loss_summary_name")
def loss_summary_name(run, s, a):
    model_fn = run.model(host_call=lambda x: js.summary.host_call(loss=x.mean() + 1000))
    estimator = run.estimator(model_fn=model_fn, save_summary_steps=s)
    train(run, estimator, "save_summary_steps=s train(steps=a)", steps=a, logged=False)
    run.data("events", run.scalars(estimator.model_dir))


@scenario("events/no_batch_size", fallback_only="each verb needs its batch size there")
def no_batch_size(run, log):
    def estimator(**config):
        return run.estimator(sizes=(None, None, None), **config)

    first = estimator(save_summary_steps=100, log_step_count_steps=log)
    train(run, first, "no train_batch_size, log_step_count_steps=log: train(steps=log)", steps=log)
    run.state(first)
    train(run, first, "train(steps=2*log)", steps=2 * log)
    run.state(first)
    second = estimator()
    train(run, second, "no train_batch_size, log_step_count_steps=None: train(steps=2*log)", steps=2 * log)
    run.call("evaluate(steps=1)", lambda: second.evaluate(run.input(1), steps=1))
    run.call("predict", lambda: len(list(second.predict(run.input(1)))))


@scenario("builtin_hooks/logging_tensor")
def logging_tensor(run, a, log):
    def named(x):
        return (lambda one_more: None, {"one_more": x.mean() + 1})

    seldom = run.recorded.number("LoggingTensorHook(every_n_iter={})")
    short = run.recorded.number("at_end=True): train(steps={})")
    for label, hook in (
        ("every_n_iter=log", lambda: LoggingTensorHook({"mean": "loss"}, every_n_iter=log)),
        ("every_n_iter=log, two tags", lambda: LoggingTensorHook({"z": "loss", "a": "one_more"}, every_n_iter=log)),
        (f"every_n_iter={seldom}", lambda: LoggingTensorHook({"mean": "loss"}, every_n_iter=seldom)),
        (
            "every_n_iter=log, formatter",
            lambda: LoggingTensorHook(
                {"mean": "loss"}, every_n_iter=log, formatter=lambda values: f"mean is {values['mean']}"
            ),
        ),
    ):
        estimator, hooks = run.estimator(model_fn=run.model(host_call=named)), [hook()]
        label = f"LoggingTensorHook({label}): train(steps=a)"
        train(run, estimator, label, hooks=hooks, steps=a, logged=False)
        train(run, estimator, "train(steps=2) again", hooks=hooks, steps=2, logged=False)
    hooks = [LoggingTensorHook({"step": "global_step"}, at_end=True)]
    label = f"LoggingTensorHook(['global_step:0'], at_end=True): train(steps={short})"
    train(run, run.estimator(), label, hooks=hooks, steps=short, logged=False)


@scenario("builtin_hooks/stop_at_step")
def stop_at_step(run, a):
    estimator = run.estimator()
    number = run.recorded.number
    steps, last = (
        number("StopAtStepHook(num_steps={}), train()"),
        number("StopAtStepHook(last_step={}), train(steps=a)"),
    )
    ((passed, at),) = run.recorded.numbers("StopAtStepHook(last_step={}) at step {}, train(steps=a)")
    again = number("one StopAtStepHook(num_steps={}) object, first train()")
    twice = StopAtStepHook(num_steps=again)
    for label, hook, kwargs in (
        (f"StopAtStepHook(num_steps={steps}), train()", StopAtStepHook(num_steps=steps), {}),
        (f"StopAtStepHook(last_step={last}), train(steps=a)", StopAtStepHook(last_step=last), {"steps": a}),
        (
            f"StopAtStepHook(last_step={passed}) at step {at}, train(steps=a)",
            StopAtStepHook(last_step=passed),
            {"steps": a},
        ),
        (f"one StopAtStepHook(num_steps={again}) object, first train()", twice, {}),
        ("the same object, second train(): it keeps its last step", twice, {}),
    ):
        train(run, estimator, label, hooks=[hook], logged=False, **kwargs)
        run.state(estimator)


@scenario("builtin_hooks/step_counter_and_summary_saver")
def step_counter_and_summary_saver(run, log, summary, long):
    estimator = run.estimator()
    hooks = [StepCounterHook(every_n_steps=log, output_dir=estimator.model_dir)]
    train(
        run, estimator, "StepCounterHook(every_n_steps=log), train(steps=long)", hooks=hooks, steps=long, logged=False
    )
    run.data("events", run.scalars(estimator.model_dir))
    estimator = run.estimator()
    hooks = [SummarySaverHook(save_steps=summary, output_dir=estimator.model_dir, summary_op={"mean_x": "loss"})]
    label = "SummarySaverHook(save_steps=summary), train(steps=long)"
    train(run, estimator, label, hooks=hooks, steps=long, logged=False)
    train(run, estimator, "train(steps=2) again", hooks=hooks, steps=2, logged=False)
    run.data("events", run.scalars(estimator.model_dir))


@scenario("builtin_hooks/others")
def others(run, b, log):
    estimator = run.estimator()
    final = FinalOpsHook({"w": "params/w"})
    train(run, estimator, "FinalOpsHook: train(steps=b)", hooks=[final], steps=b, logged=False)
    run.data("final_ops_values", final.final_ops_values)
    timer, table = SecondOrStepTimer(every_steps=log), []
    for step in (0, 1, 2, log, log, log + 1, 2 * log + 1, 3 * log, 3 * log + 1, 1):
        due, elapsed = timer.should_trigger_for_step(step), None
        if due:
            elapsed = timer.update_last_triggered_step(step)[1]
        table.append([step, due, elapsed, timer.last_triggered_step()])
    run.data("SecondOrStepTimer(every_steps=log): step, should trigger, elapsed steps, last step", table)


def with_everything(run):
    """A model whose spec has all fields in every mode."""

    def model_fn(variables, features, mode, params):
        def metric_fn(x):
            run.note(f"metric_fn called in mode {mode}")
            return {"m": js.metrics.mean(x)}

        x = features["x"]
        return js.TPUEstimatorSpec(
            mode,
            predictions={"x": x},
            loss=x.mean(),
            train_op=contract_models.model_fn(variables, features, "train", params).train_op,
            eval_metrics=(metric_fn, [x]),
            host_call=(lambda x: None, [x]),
            scaffold_fn=js.Scaffold,
            export_outputs={"x": js.export.PredictOutput({"x": x})},
            training_hooks=[SessionRunHook()],
            evaluation_hooks=[SessionRunHook()],
            prediction_hooks=[SessionRunHook()],
        )

    return model_fn


@scenario("contract/spec_in_every_mode")
def spec_in_every_mode(run, n, s):
    estimator = run.estimator(model_fn=with_everything(run))
    train(run, estimator, "train(steps=n)", steps=n, logged=False)
    run.call("evaluate(steps=s)", lambda: estimator.evaluate(run.input(logged=False), steps=s))
    run.call("predict()", lambda: len(list(estimator.predict(run.input(1, logged=False)))))
    run.state(estimator)


@scenario("contract/params", fallback_only="each verb needs its batch size there")
def contract_params(run, sizes):
    model_dir, rows = run.folder(), run.recorded.returned("all sizes: predict()")

    def watch(estimator_sizes):
        given = {"alpha": 0.5, "names": ["a"]}
        seen = set()

        def model_fn(variables, features, mode, params, config):
            # Its Python code runs when a program is made, perhaps more than once.
            if mode not in seen:
                seen.add(mode)
                shown = {key: value for key, value in params.items() if key != "context"}
                run.data(f"model_fn mode={mode} params", shown)
                same = config.model_dir == estimator.model_dir
                steps = config.log_step_count_steps
                run.note(f"model_fn config.model_dir is the estimator's: {same}, log_step_count_steps={steps}")
            return contract_models.model_fn(variables, features, mode, params)

        def input_fn(params, mode):
            run.data(f"input_fn mode={mode} params", {k: v for k, v in params.items() if k != "context"})
            params["names"] = []
            return [{"x": np.zeros(rows, np.float32)}]

        names = ("train_batch_size", "eval_batch_size", "predict_batch_size")
        estimator = js.TPUEstimator(
            model_fn,
            contract_models.init_fn,
            model_dir=model_dir,
            use_tpu=False,
            params=given,
            config=js.RunConfig(log_step_count_steps=None),
            **dict(zip(names, estimator_sizes, strict=True)),
        )
        return estimator, input_fn, given

    for label, estimator_sizes in (
        ("all sizes", sizes),
        ("train_batch_size only", [sizes[0], None, None]),
        ("no sizes", [None] * 3),
    ):
        estimator, input_fn, given = watch(estimator_sizes)
        run.call(f"{label}: train(steps=1)", lambda e=estimator, i=input_fn: e.train(i, steps=1))
        run.call(f"{label}: evaluate()", lambda e=estimator, i=input_fn: e.evaluate(i))
        run.call(f"{label}: predict()", lambda e=estimator, i=input_fn: len(list(e.predict(i))))
        run.data("est.params afterwards", estimator.params)
        run.data("the user's dict afterwards", given)


@scenario("contract/functions")
def functions(run):
    def attempt(label, input_fn=None, model_fn=None, steps=1):
        def build_and_train():
            estimator = run.estimator(model_fn=model_fn or contract_models.model_fn)
            return estimator.train(input_fn or run.input(2, logged=False), steps=steps)

        run.call(label, build_and_train)

    def batches():
        return [{"x": jnp.zeros(run.rows)}]

    def with_labels():
        return [({"x": jnp.zeros(run.rows)}, jnp.zeros(run.rows))]

    def no_mode(variables, features, labels, params):
        return contract_models.model_fn(variables, features, "train", params)

    def no_params(variables, features, labels, mode):
        return contract_models.model_fn(variables, features, mode, None)

    def no_labels(variables, features, mode, params):
        return contract_models.model_fn(variables, features, mode, params)

    def returns(value):
        return lambda variables, features, labels, mode, params: value

    def estimator_spec(variables, features, labels, mode, params, **fields):
        spec = contract_models.model_fn(variables, features, mode, params)
        return js.EstimatorSpec(mode, loss=spec.loss, train_op=spec.train_op)

    attempt("input_fn without params", batches)
    attempt("input_fn(params, other)", lambda params, other: batches())
    attempt("input_fn is not callable", 3)
    attempt("input_fn(params, mode)", lambda params, mode: batches())
    attempt("model_fn without labels, input without labels", batches, no_labels)
    attempt("model_fn without labels, input with labels", with_labels, no_labels)
    attempt("model_fn without mode", batches, no_mode)
    attempt("model_fn without params", batches, no_params)
    attempt("model_fn returns None", batches, returns(None))
    attempt("model_fn returns a dict", batches, returns({}))
    attempt("model_fn returns a number", batches, returns(3))
    attempt("model_fn returns an EstimatorSpec", batches, estimator_spec)


@scenario("contract/random_seed")
def random_seed(run):
    def init_fn(rng):
        import jax

        return {"params": {"w": jax.random.normal(rng, ())}}

    def weight(seed):
        estimator = run.estimator(init_fn=init_fn, tf_random_seed=seed)
        return float(next(estimator.predict(run.input(1, logged=False)))["w"])

    seed = run.recorded.number("seed {} twice gives equal weights")
    other = run.recorded.number("seed {} gives other weights")
    run.note(f"seed {seed} twice gives equal weights: {weight(seed) == weight(seed)}")
    run.note(f"seed {other} gives other weights: {weight(other) != weight(seed)}")
    run.note(f"no seed twice gives other weights: {weight(None) != weight(None)}")
