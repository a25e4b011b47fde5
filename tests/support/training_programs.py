"""Programs of several processes that train, evaluate and predict. Called in one process, they are the reference."""

import logging
import os
import threading
import time

import flax.linen as nn
import numpy as np
import optax
import processes
from safetensors.numpy import save_file
from tiny_models import (
    accuracy_fn,
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    linear_init,
    linear_model_fn,
    run_config,
)

import jaxspec as js

BATCH = 24
EXAMPLES = 70
"""No multiple of a batch, of a process's part, or of a shard's."""


def config(**kwargs):
    """A RunConfig that joins the processes, if there are several."""
    names = ("coordinator_address", "num_processes", "process_id")
    joining = dict(zip(names, processes.address(), strict=True)) if processes.is_child() else {}
    return run_config(**{**joining, "process_timeout_secs": 20, **kwargs} if joining else kwargs)


class Net(nn.Module):
    """Batch norm of the shard's own batch, and dropout. No gradient is zero but for rounding, which Adam would enlarge."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=not train)(nn.relu(x)))


def net(model_dir, host_call=None, **kwargs):
    """An estimator for it, with Adam; host_call gets the step and the first column of the features."""

    def model_fn(variables, features, labels, mode, rng, step):
        updates = None
        if mode == js.ModeKeys.TRAIN:
            logits, updates = Net().apply(variables, features, True, rngs={"dropout": rng}, mutable=["batch_stats"])
        else:
            logits = Net().apply(variables, features)
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"logits": logits, "row": features[:, 0]})
        return js.TPUEstimatorSpec(
            mode,
            loss=optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(),
            train_op=js.minimize(optax.adam(1e-2), updates=updates),
            eval_metrics=(accuracy_fn, [labels, logits]),
            host_call=js.fetches(
                host_call and (host_call, {"step": step, "row": features[:, 0]}), column=features[:, 1]
            ),
        )

    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), BATCH)
    return js.TPUEstimator(model_fn, Net(), model_dir=model_dir, config=config(**kwargs), **sizes)


def train_input():
    x, y = data(rows=EXAMPLES)
    return js.inputs.numpy_input_fn(x, y, num_epochs=None, shuffle=True, seed=3)


def weights(estimator):
    """All variables that are not strings, by name."""
    return {name: np.asarray(estimator.get_variable_value(name)) for name in estimator.get_variable_names()}


class Kept(js.hooks.SessionRunHook):
    """Keeps an array of the last step of each loop, as a list or a number."""

    def __init__(self, name):
        self.name, self.values = name, []

    def before_run(self, run_context):
        return js.hooks.SessionRunArgs(self.name)

    def after_run(self, run_context, run_values):
        self.values.append(run_values.results.tolist())


# What succeeds.


def everything(model_dir, every=5, save=6):
    """Trains, evaluates ragged and nearly empty sets, and predicts; leaves the results of this process."""
    logging.basicConfig(level=logging.INFO)
    losses, columns, host_calls = Kept("loss"), Kept("column"), []

    def host_call(step, row):
        host_calls.append([step.tolist(), row.tolist()])

    estimator = net(model_dir, host_call, save=save, every=every)
    estimator.train(train_input(), max_steps=12, hooks=[losses, columns])
    in_training = len(host_calls)
    x, y = data(rows=EXAMPLES, seed=1)
    whole = estimator.evaluate(js.inputs.numpy_input_fn(x, y))
    nearly_empty = estimator.evaluate(js.inputs.numpy_input_fn(x[:3], y[:3]))
    part = list(estimator.predict(js.inputs.numpy_input_fn(x)))
    result = {
        "losses": losses.values,
        "columns": columns.values,
        "whole": numbers(whole),
        "nearly_empty": numbers(nearly_empty),
        "predicted": [[float(example["row"]), *map(float, example["logits"])] for example in part],
        "steps_of_checkpoints": js.checkpoint.checkpoint_steps(model_dir),
        "host_calls": host_calls[:in_training],
    }
    return {"result": result, "weights": weights(estimator)}


def numbers(metrics):
    return {name: float(value) for name, value in metrics.items()}


def leave_everything(**kwargs):
    """`everything`, in a process of several."""
    got = everything(**kwargs)
    np.savez(f"{os.environ['TEST_PROCESS']}.npz", **got["weights"])
    processes.finish(got["result"])


def train_to(model_dir, max_steps, save=None):
    """Trains on, from the checkpoint that there may be; leaves the weights."""
    logging.basicConfig(level=logging.INFO)
    # Its rows do not interact: the weights do not depend on the shards, but for rounding.
    made = config(every=2, save=save or max_steps)
    estimator = js.TPUEstimator(linear_model_fn, linear_init, model_dir=model_dir, config=made, train_batch_size=BATCH)
    estimator.train(train_input(), max_steps=max_steps)
    np.savez(f"{os.environ['TEST_PROCESS']}.npz", **weights(estimator))


# What fails, and is caught: the estimator and the process stay usable.


def counting(model_dir, model_fn=counting_model_fn, save=100, warm_start_from=None, **kwargs):
    """The counting model. Its input has 2 rows for each process and step."""
    size = 2 * int(os.environ["TEST_PROCESSES"])
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), size)
    made = config(save=save, every=5, **kwargs)
    return js.TPUEstimator(
        model_fn, counting_init, model_dir=model_dir, config=made, warm_start_from=warm_start_from, **sizes
    )


def part(count=None, rows=2):
    """Batches of this process."""
    return counting_input(count, rows=rows)


def outcome(call):
    """What a call returned or raised, and how many seconds it took."""
    began = time.monotonic()
    try:
        value = call()
    except BaseException as error:
        notes = getattr(error, "__notes__", [])
        return {"error": type(error).__name__, "text": str(error), "notes": notes, "secs": time.monotonic() - began}
    return {"value": value, "secs": time.monotonic() - began}


def warm_starts():
    """Each process starts from a file of its own; then process 1 from a file that is not there."""
    me = int(os.environ["TEST_PROCESS"])
    save_file({"params/w": np.float32([10 * (me + 1)]).reshape(())}, f"{me}.safetensors")
    estimator = counting("model", warm_start_from=f"{me}.safetensors").train(part(), max_steps=3)
    lost = counting("other", warm_start_from="0.safetensors" if me == 0 else "lost.safetensors")
    failed = outcome(lambda: lost.train(part(), max_steps=3))
    processes.finish({"w": float(estimator.get_variable_value("params/w")), "failed": failed})


def exports(model_dir):
    """Exports in a run, and loads the export in each process."""
    estimator = net(model_dir, save=2)
    x, y = data(rows=EXAMPLES)
    receiver_fn = js.export.build_raw_serving_input_receiver_fn(x)
    exporters = [js.LatestExporter("latest", receiver_fn, exports_to_keep=1), js.FinalExporter("final", receiver_fn)]
    _, paths = js.train_and_evaluate(
        estimator,
        js.TrainSpec(train_input(), max_steps=4),
        js.EvalSpec(js.inputs.numpy_input_fn(x, y), steps=None, exporters=exporters, throttle_secs=0),
    )
    loaded = js.export.load(paths[1])
    devices = loaded(input=x[:4])["logits"].devices()
    processes.finish({"paths": paths, "devices": len(devices), "step": loaded.content["global_step"]})


def failures():
    """One failure after the other, each caught; then a training that succeeds, and what is open before and after."""
    me = int(os.environ["TEST_PROCESS"])
    outcomes, opened = {}, []

    def train(name, input_fn=None, model_fn=counting_model_fn, hooks=(), again=False):
        estimator = counting(name, model_fn)

        def call(input_fn, hooks):
            estimator.train(input_fn, max_steps=20, hooks=hooks)
            return js.load_global_step(name)

        outcomes[name] = outcome(lambda: call(input_fn or part(), hooks))
        if again:
            outcomes[name + ", then again"] = outcome(lambda: call(part(), ()))
        return estimator

    def broken_input():
        for number, batch in enumerate(part()()):
            if number == 7 and me == 1:
                raise ValueError("no more of this file")
            yield batch

    def of_other_shapes(processes_with_them):
        def input_fn():
            for number, batch in enumerate(part()()):
                columns = 3 if number >= 7 and me in processes_with_them else 2
                yield {**batch, "columns": np.zeros((len(batch["x"]), columns), np.float32)}

        return input_fn

    class Broken(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            if me == 1 and run_context.session.global_step >= 10:
                raise ValueError("the hook broke")

    def broken_host_call(step):
        if int(step[0]) == 7:
            raise ValueError("host_call broke")

    def with_host_call(variables, features, mode, step):
        return counting_model_fn(variables, features, mode)._replace(host_call=(broken_host_call, [step]))

    def broken_metric(x):
        if me == 1:
            raise ValueError("metric_fn broke")
        return {"mean_x": js.metrics.mean(x)}

    def with_metric(variables, features, mode):
        return counting_model_fn(variables, features, mode)._replace(eval_metrics=(broken_metric, [features["x"]]))

    def empty_or_short(count_of_1):
        return part(count_of_1 if me == 1 else 20)

    train("good")
    train("ends_early", empty_or_short(17))
    train("no_training_input", empty_or_short(0))
    train("input_breaks", broken_input, again=True)
    train("shapes_change_in_one", of_other_shapes([1]), again=True)
    train("shapes_change_in_both", of_other_shapes([0, 1]))
    train("hook_breaks", hooks=[Broken()], again=True)
    train("host_call_breaks", model_fn=with_host_call)
    estimator = train("metric_breaks", model_fn=with_metric)
    outcomes["metric_breaks"] = outcome(lambda: numbers(estimator.evaluate(part(4))))
    estimator = counting("good")
    outcomes["evaluation_of_an_empty_part"] = outcome(lambda: numbers(estimator.evaluate(empty_or_short(0))))
    outcomes["prediction_of_an_empty_part"] = outcome(lambda: len(list(estimator.predict(empty_or_short(0)))))
    opened.append(what_is_open())
    train("input_breaks_again", broken_input)
    train("hook_breaks_again", hooks=[Broken()])
    estimator = train("good_again")
    outcomes["evaluation"] = outcome(lambda: numbers(estimator.evaluate(part(4))))
    opened.append(what_is_open())
    processes.finish({"outcomes": outcomes, "opened": opened})


def what_is_open():
    """The names of the library's threads, and what is open, sorted."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    files = [os.readlink(link) for link in links if os.path.islink(link)]
    return {
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("jaxspec")),
        "files": sorted(file.split(":[")[0] for file in files),
    }


# What ends the processes.


class Reports(js.hooks.SessionRunHook):
    """Prints the step after each loop."""

    def after_run(self, run_context, run_values):
        print(f"step {run_context.session.global_step}", flush=True)


def endless(at=None, do=None):
    """An input without an end; this process does something before batch `at`."""

    def input_fn():
        for number, batch in enumerate(part()()):
            if number == at:
                do()
            time.sleep(0.005)
            yield batch

    return input_fn


def train_for_ever(model_dir, **kwargs):
    """Trains until something happens to it."""
    logging.basicConfig(level=logging.INFO)
    counting(model_dir, **kwargs).train(endless(), hooks=[Reports()])


def evaluate_for_ever(model_dir):
    """Evaluates until something happens to it."""
    logging.basicConfig(level=logging.INFO)
    estimator = counting(model_dir)

    class Counts(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            print("batch", flush=True)

    estimator.evaluate(endless(), hooks=[Counts()])


def fail_for_good(where):
    """Process 1 raises an error that nobody catches."""
    logging.basicConfig(level=logging.INFO)

    def do():
        raise ValueError("nobody catches this")

    at = 9 if int(os.environ["TEST_PROCESS"]) == 1 else None
    if where == "input_fn":
        counting("model").train(endless(at, do))
    else:
        estimator = counting("model")
        if at is not None:
            do()
        estimator.train(endless())


def hang(secs=600, **kwargs):
    """The input of process 1 stops to answer."""
    logging.basicConfig(level=logging.INFO)
    at = 9 if int(os.environ["TEST_PROCESS"]) == 1 else None
    counting("model", **{"process_timeout_secs": 5, **kwargs}).train(endless(at, lambda: time.sleep(secs)))


def differ(what):
    """The processes are not started alike."""
    me = int(os.environ["TEST_PROCESS"])
    kwargs = {}
    model_dir, model_fn = "model", counting_model_fn
    if what == "seed":
        kwargs["tf_random_seed"] = me
    if what == "model_dir":
        model_dir = f"model-{me}"

    def other_model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(loss=spec.loss + me)

    if what == "model_fn":
        model_fn = other_model_fn
    estimator = counting(model_dir, model_fn, **kwargs)
    input_fn = part(rows=2 + 2 * me) if what == "rows" else part()
    processes.finish(outcome(lambda: estimator.train(input_fn, max_steps=5) and None))


def unreachable():
    """Process 0 does not come."""
    if int(os.environ["TEST_PROCESS"]) == 1:
        processes.finish(outcome(lambda: counting("model", process_timeout_secs=3)))
