"""Where a transcript of ours differs from the recorded one on purpose: what it is instead, and why.

A change is a function of the recorded events (copies, in the notation of the recordings) and the numbers of the case;
it makes of them what is expected here, so that the rest of the transcript is held to the recording.
"""

import math
import os

LEFT_OUT = {
    "hooks/session_recovery": "There are no sessions to lose: an error comes out of train, and a restart goes on from the "
    "latest checkpoint.",
}
"""Cases that are not replayed, with the reason."""

CHANGES = {}
"""Name of the case to a list of `(reason, change)`; a change takes the events and the numbers as keywords."""


def changed(name, reason):
    """Registers a change of the events of a case."""

    def register(change):
        CHANGES.setdefault(name, []).append((reason, change))
        return change

    return register


def labelled(events, label, number=0):
    """The event with that label; of several the given one."""
    found = [e for e in events if isinstance(e, dict) and label in (e.get("call"), e.get("event"), e.get("state"))]
    return found[number]


def raises(event, error):
    """Makes of a call one that raises."""
    event.pop("returned", None)
    event["raised"] = {"type": error.__name__, "mro": [c.__name__ for c in error.__mro__], "message": ""}


def returns(event, value):
    """Makes of a call one that returns."""
    event.pop("raised", None)
    event["returned"] = value


def state(checkpoints, step=None):
    """A state of the counting model."""
    out = {
        "state": "now",
        "checkpoints": checkpoints,
        "latest": f"model.ckpt-{checkpoints[-1]}" if checkpoints else None,
    }
    if checkpoints:
        step = checkpoints[-1] if step is None else step
        out |= {"global_step": step, "w": float(step)}
    return out


def states(events):
    """The positions of the states."""
    return [i for i, e in enumerate(events) if isinstance(e, dict) and "state" in e]


@changed("train/bad_arguments", "A part of a step is refused on every device, as TensorFlow does on a TPU; so is True.")
def no_parts_of_a_step(events, **_):
    for label in ("train(steps=2.5)", "train(steps=True)"):
        raises(labelled(events, label), TypeError)
        labelled(events, label).update(inside=[], losses=[])
    for i in states(events)[-2:]:
        events[i] = state([])


@changed(
    "train/input_runs_out", "Mapped over devices, a training batch must have all its rows; use_tpu=False takes any."
)
def no_short_batches(events, n, last, setup):
    if setup.use_tpu:
        call = labelled(events, "train(max_steps=100) with a short last batch")
        raises(call, ValueError)
        call["losses"] = call["losses"][:-1]
        events[-1] = events[-3]


@changed("train/keyboard_interrupt", "Ctrl-C saves.")
def an_interrupt_saves(events, a, stop, **_):
    events[-1] = state(sorted({*events[-1]["checkpoints"], stop}))


@changed("train/checkpoints_off", "The state stays in memory: the next call goes on with it.")
def the_state_stays(events, b, **_):
    labelled(events, "train(max_steps=2)").update(inside=[], losses=[])
    labelled(events, "evaluate(steps=1)")["returned"].update(w=2.0 * b, global_step=2 * b)


@changed("train/cross_shard_optimizer_on_cpu", "It works on any devices, one included.")
def cross_shard_optimizer_works(events, **_):
    returns(labelled(events, "train(steps=1)"), "<the estimator>")


@changed("warm_start/values", "A regular expression that matches nothing is refused.")
def nothing_matches(events, **_):
    first = events.index(
        labelled(events, "warm_start_from=WarmStartSettings(vars_to_warm_start='x'): evaluate before training")
    )
    for call in (events[first], events[first + 1], events[first + 3]):
        raises(call, ValueError)
    for values in (events[first + 2], events[first + 4]):
        values["data"] = None


@changed("checkpoints/restore_mismatch", "A checkpoint of another model is refused, whichever has more variables.")
def another_model(events, **_):
    call = labelled(events, "a variable fewer than the checkpoint: train(steps=1)")
    raises(call, ValueError)
    call["losses"] = []
    events[-2] = state([0, 1])
    returns(events[-1], ["global_step", "extra", "w"])


@changed("evaluate/steps", "The loss is the mean over examples, not over batches.")
def loss_over_examples(events, **_):
    for event in events:
        if isinstance(event.get("returned"), dict):
            event["returned"]["loss"] = event["returned"]["mean_x"]


@changed("evaluate/steps", "An evaluation of nothing is an error.")
def no_empty_evaluation(events, **_):
    for event in events[-2:]:
        raises(event, ValueError)


@changed("evaluate/metrics", "A vector is written as a scalar for each entry, a bool as 0 or 1.")
def arrays_as_scalars(events, **_):
    *_, event = (e for e in events if e.get("event") and any(tag == "vector" for _, tag, _, _ in e["data"]))
    kept = [e for e in event["data"] if e[1] != "vector"]
    event["data"] = kept + [
        [0, tag, "simple_value", v] for tag, v in (("vector/0", 1.0), ("vector/1", 2.0), ("bool", 1.0))
    ]


@changed("predict/predict_keys", "A text is one key, not a text to look for keys in.")
def a_text_is_a_key(events, predictions, **_):
    x, w, xw = predictions
    returns(labelled(events, f"keys of predict(predict_keys={xw!r})"), [xw])
    raises(labelled(events, f"keys of predict(predict_keys={f'{w} and {x}'!r})"), ValueError)


@changed("predict/shapes", "An accident of TensorFlow's; the message says what is wrong.")
def a_scalar_prediction(events, **_):
    raises(events[-1], ValueError)


@changed("host_call/calls", "The function itself runs once a step.")
def no_graph(events, **_):
    for event in events:
        event["inside"] = [
            e for e in event["inside"] if "host_call function called" not in (e if isinstance(e, str) else e["event"])
        ]


@changed("host_call/calls", "There is no host_call in predict.")
def none_in_predict(events, **_):
    for event in events:
        if "predict()" in event["call"]:
            event["inside"] = []


@changed("host_call/every_n_ignored_on_cpu", "Every device counts alike, by global step.")
def every_n_counts(events, **_):
    every = int(events[0]["call"].partition("every_n_steps=")[2].partition(":")[0])
    events[0]["inside"] = events[0]["inside"][::every]


@changed("events/train", "Only the loss and the rates are automatic: there are no summaries in a graph to collect.")
def automatic_summaries(events, **_):
    for event in events:
        if isinstance(event, dict) and "event" in event:
            event["data"] = [e for e in event["data"] if e[1] == "loss" or e[1].endswith("/sec")]


@changed("events/rates_and_iterations_per_loop", "log_step_count_steps counts steps.")
def log_steps_are_steps(events, long, **_):
    for event in events:
        log = int(event["event"].partition("log_step_count_steps=")[2].split()[0])
        event["data"] = list(range(1 + log, long + 1, log))


@changed("events/loss_summary_name", "host_call writes at every step, the one before the update.")
def host_call_writes_each_step(events, a, **_):
    labelled(events, "events")["data"] = [[i, "loss", "simple_value", 1000.0 + i] for i in range(a)]


@changed("events/no_batch_size", "examples/sec is left out where the batch size is not known.")
def no_examples_per_second(events, log, **_):
    call = labelled(events, "train(steps=2*log)")
    returns(call, "<the estimator>")
    call["losses"] = [float(i) for i in range(2 * log)]
    events[states(events)[1]] = state([0, log, 3 * log])


@changed("nan/train", "The hooks of the spec see the loop with the NaN, too.")
@changed("nan/own_hook", "The hooks of the spec see the loop with the NaN, too.")
def all_hooks_see_the_nan(events, **_):
    events[0]["losses"] = [*events[0]["losses"], math.nan]


@changed("nan/train", "A checkpoint is never written behind a NaN loss; TensorFlow's saver comes before its check.")
@changed("nan/own_hook", "A checkpoint is never written behind a NaN loss; TensorFlow's saver comes before its check.")
def no_checkpoint_behind_a_nan(events, nan, **_):
    first = states(events)[0]
    events[first] = state([step for step in events[first]["checkpoints"] if step <= nan])


@changed("builtin_hooks/others", "There is no GlobalStepWaiterHook: no workers start one after the other.")
def no_waiter(events, **_):
    events[:] = [e for e in events if "GlobalStepWaiterHook" not in e.get("call", "")]


@changed("early_stopping/make_hook", "Early stopping adds nothing to the checkpoint.")
def no_signal_variable(events, **_):
    names = labelled(events, "get_variable_names()")
    names["returned"] = [name for name in names["returned"] if not name.startswith("signal_early_stopping")]


def loss_of(event):
    """The loss that an exporter was called with; infinite where the event is no such call."""
    text = event.get("call", "").partition("loss=")[2] if isinstance(event, dict) else ""
    return float(text.split()[0]) if text else math.inf


KEPT = 5
"""Exports that a BestExporter keeps unless told otherwise."""


@changed("exporters/best_after_restart", "The best result is kept across restarts.")
def best_is_kept(events, **_):
    best = min(map(loss_of, events[: events.index("exporter after restart, same model_dir")]))
    first, *_, end = [i for i, e in enumerate(events) if isinstance(e, str) and "after restart" in e] + [len(events)]
    second = events.index("exporter after restart, no pattern")
    starts = {first: events.index("exporter first process, no pattern"), second: end}
    for start, stop in starts.items():
        before = events.index("exporter first process" if start == first else "exporter first process, no pattern")
        kept, count = best, sum(bool(e.get("inside")) for e in events[before:start] if isinstance(e, dict))
        folders = list(labelled(events, "folders left", 0 if start == first else 2)["data"])
        calls = [e for e in events[start:stop] if isinstance(e, dict) and "call" in e]
        for number, event in enumerate(calls):
            is_better = loss_of(event) < kept
            event["inside"] = []
            event["returned"] = None
            if is_better:
                kept, count = loss_of(event), count + 1
                event["inside"] = [f"export {count} of ckpt-{number}"]
                event["returned"] = str(1_000_000_000 + count)
                folders.append(event["returned"])
        events[stop - 1]["data"] = folders[-KEPT:]


@changed("exporters/real", "An export has other files, and its path is text.")
def other_files(events, **_):
    files = labelled(events, "export files")
    names = ("programs/0.jax", "signature.json", "weights.safetensors")
    files["data"] = [f"{os.path.dirname(files['data'][0])}/{name}" for name in names]
    labelled(events, "export_saved_model(receiver)")["returned"] = "str"


@changed("exporters/real", "An export is for the platforms that its argument names; export_to_* have no effect.")
def platforms_are_named(events, **_):
    event = labelled(events, "export_to_cpu=False, export_to_tpu=False: export_saved_model")
    del event["raised"]
    event["returned"] = "str"


@changed("contract/params", "params['batch_size'] of model_fn is always there and true: the rows at hand.")
def rows_at_hand(events, **_):
    rows = labelled(events, "all sizes: predict()")["returned"]
    for event in events:
        for inner in event.get("inside", ()):
            if isinstance(inner, dict) and inner["event"].startswith("model_fn"):
                inner["data"]["batch_size"] = rows


@changed("contract/functions", "input_fn and model_fn name what they need of their arguments, params or not.")
def named_arguments(events, **_):
    for label in ("input_fn without params", "model_fn without params"):
        returns(labelled(events, label), "<the estimator>")
    raises(labelled(events, "input_fn(params, other)"), ValueError)


@changed("contract/functions", "model_fn returns a TPUEstimatorSpec everywhere; an EstimatorSpec is for the host.")
def one_kind_of_spec(events, **_):
    raises(labelled(events, "model_fn returns an EstimatorSpec"), ValueError)
    events[:] = [e for e in events if "training_chief_hooks" not in e.get("call", "")]


@changed("contract/functions", "A train_op says how the variables change; the step counts itself.")
def the_step_counts_itself(events, **_):
    del events[-2:]


@changed("contract/spec_in_every_mode", "metric_fn is called in evaluation, once a batch.")
def metrics_in_evaluation(events, s, **_):
    for event in events:
        if "call" in event:
            event["inside"] = ["metric_fn called in mode eval"] * (s if "evaluate" in event["call"] else 0)


@changed("contract/random_seed", "tf_random_seed=None means 0: a run can always be repeated.")
def always_a_seed(events, **_):
    events[-1] = "no seed twice gives other weights: False"
