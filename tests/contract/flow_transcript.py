"""A transcript of real runs in the notation of the recordings, and the parts that write it."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re

import contract_models
import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

import jaxspec as js
from jaxspec import checkpoint
from jaxspec.checkpoint import checkpoint_steps
from jaxspec.hooks import CheckpointSaverListener, SessionRunArgs, SessionRunHook


@dataclasses.dataclass(frozen=True)
class Setup:
    """On what a scenario runs: one step a loop in each, as recorded."""

    name: str
    shards: int
    use_tpu: bool = True


FALLBACK = Setup("use_tpu=False", 1, use_tpu=False)


def setups(rows):
    """The fallback, and as many shards, at most 4, as batches of that many rows can be mapped over."""
    shards = next(n for n in (4, 3, 2, 1) if rows % n == 0)
    return [FALLBACK, Setup(f"{shards} shards", shards)]


class Recording:
    """A recorded case, and the numbers that it was recorded with, wherever they stand.

    Args:
      case: its `args` hold numbers by name; others stand in the labels of its events.
      parameters: those of the file; of them `batch`, the rows of a batch, is used.
    """

    def __init__(self, case, parameters):
        self.arguments = {key: value for key, value in (case.get("args") or {}).items() if key != "note"}
        self.events, self.rows = case["events"], parameters["batch"]

    def numbers(self, template):
        """The whole numbers (or None) that stand for each `{}` of a text in the labels, a tuple for each label that
        fits."""
        pattern = re.escape(template).replace(r"\{\}", r"(-?\d+|None)")
        found = [match.groups() for event in self.events if (match := re.search(pattern, label_of(event)))]
        assert found, f"no label {template!r} is recorded"
        return [tuple(None if text == "None" else int(text) for text in groups) for groups in found]

    def number(self, template):
        """The first one."""
        return self.numbers(template)[0][0]

    def values(self, start, key):
        """The numbers in the calls `KEY=NUMBER final=...` behind the line `start`, up to the next event that is no
        call."""
        calls = self.events[self.events.index(start) + 1 :]
        ends = (i for i, event in enumerate(calls) if not isinstance(event, dict) or "call" not in event)
        calls = calls[: next(ends, len(calls))]
        return [float(event["call"].removeprefix(f"{key}=").split()[0]) for event in calls]

    def returned(self, label=None):
        """What a call returned, of the first one with that label."""
        return next(e["returned"] for e in self.events if isinstance(e, dict) and e.get("call") == label)

    def batches_evaluated(self):
        """How many batches the first recorded evaluation saw: batch i is filled with i, so their mean tells."""
        results = (result for event in self.events if isinstance(event, dict) for result in _results(event))
        return round(2 * float(next(results)["mean_x"])) + 1


def _results(event):
    returned = event.get("returned")
    for value in returned if isinstance(returned, list) else [returned]:
        if isinstance(value, dict) and "mean_x" in value:
            yield value


def label_of(event):
    """What an event is about."""
    if isinstance(event, str):
        return event
    return next(f"{kind} {event[kind]}" for kind in ("call", "state", "event") if kind in event)


class Transcript:
    """What happened, as the recordings write it down.

    Args:
      directory: everything is written below it.
      recorded: the case, for the numbers it was recorded with.
      setup: the devices.
    """

    def __init__(self, directory, recorded, setup=FALLBACK):
        self.directory, self.setup, self.recorded, self.rows = pathlib.Path(directory), setup, recorded, recorded.rows
        self.events, self.losses, self._folders = [], [], 0
        self._inside = None
        self._seen = {}

    # What a scenario writes.

    def note(self, line):
        """A line: of the call that is under way, else of the transcript itself."""
        (self.events if self._inside is None else self._inside).append(line)

    def data(self, label, data):
        """A labelled value."""
        self.note({"event": label, "data": data})

    def call(self, label, fn, show=lambda value: value):
        """Calls `fn` and writes down what came of it: `show` of its value, or the exception; returns the value."""
        event = {"call": label}
        self.events.append(event)
        self._inside, self.losses = [], []
        value = None
        with _logged() as log:
            try:
                value = fn()
                event["returned"] = "<the estimator>" if isinstance(value, js.TPUEstimator) else show(value)
            except BaseException as error:
                if isinstance(error, AssertionError):
                    raise
                event["raised"] = {"type": type(error).__name__, "mro": [c.__name__ for c in type(error).__mro__]}
                event["raised"]["message"] = str(error)
        event.update({"inside": self._inside, "losses": self.losses, "log": log})
        self._inside, self.losses = None, []
        return value

    def state(self, model_dir, label="now"):
        """The checkpoints of a directory, and what is in the latest."""
        model_dir = model_dir.model_dir if isinstance(model_dir, js.TPUEstimator) else str(model_dir)
        latest = checkpoint.latest_checkpoint(model_dir)
        event = {"state": label, "checkpoints": checkpoint_steps(model_dir)}
        event["latest"] = latest and os.path.basename(latest)
        if latest:
            event["global_step"] = int(checkpoint.read_array(latest, "global_step"))
            event["w"] = float(checkpoint.read_array(latest, "params/w"))
        event["event folders"] = _event_folders(model_dir)
        self.events.append(event)

    def scalars(self, logdir, *, new=False):
        """The events of a directory as `[step, tag, kind, value]`; with `new` those since the last time."""
        events = list(read_events(logdir))
        start = self._seen.get(logdir, 0) if new else 0
        self._seen[logdir] = len(events)
        return events[start:]

    # What scenarios are made of.

    def folder(self, name=None):
        """A directory below that of the transcript; a new one without a name."""
        self._folders += 1
        return str(self.directory / (name or f"folder_{self._folders}"))

    def estimator(
        self,
        model_dir=None,
        *,
        model_fn=None,
        init_fn=contract_models.init_fn,
        sizes=None,
        warm_start_from=None,
        **config,
    ):
        """An estimator of the counting model. Unless `config` says otherwise, only the first and last step are
        saved."""
        tpu = config.pop("tpu", {})
        if self.setup.use_tpu:
            tpu = {"iterations_per_loop": 1, **tpu, "num_shards": self.setup.shards}
        settings = {"save_checkpoints_steps": 1000, "save_summary_steps": None, "log_step_count_steps": None, **config}
        return js.TPUEstimator(
            model_fn or self.model(),
            init_fn,
            model_dir=model_dir or self.folder(),
            config=js.RunConfig(js.TPUConfig(**tpu), **settings),
            params={},
            use_tpu=self.setup.use_tpu,
            warm_start_from=warm_start_from,
            **dict(
                zip(
                    ("train_batch_size", "eval_batch_size", "predict_batch_size"), sizes or [self.rows] * 3, strict=True
                )
            ),
        )

    def model(self, model_fn=contract_models.model_fn, *, losses=True, training_hooks=(), **fields):
        """The counting model, with fields of its spec set: `name=function of x`, or plain values."""

        def counting(variables, features, mode, params):
            spec = model_fn(variables, features, mode, params)
            set_to = {name: v(features["x"]) if callable(v) else v for name, v in fields.items()}
            recorder = [Losses(self)] if losses else []
            return spec._replace(training_hooks=[*training_hooks, *recorder], **set_to)

        return counting

    def input(self, count=None, *, last=None, logged=True, name="input_fn", labels=False, nan_at=None, bad=None):
        """An input_fn whose batch i holds the number i (or `bad` in batch `nan_at`); `last` rows in the last batch, or
        all."""

        def input_fn(params):
            if logged:
                self.note(f"{name} batch_size={params.get('batch_size')}")
            return self._batches(count, last or self.rows, labels, nan_at, bad)

        return input_fn

    def _batches(self, count, last, labels, nan_at, bad):
        i = 0
        while count is None or i < count:
            x = np.full(last if i + 1 == count else self.rows, bad if i == nan_at else i, np.float32)
            yield ({"x": x}, np.zeros(len(x), np.int32)) if labels else {"x": x}
            i += 1

    def hook(self, name, *, steps=True, **doing):
        """A recording hook; see `Hook`."""
        return Hook(self, name, steps=steps, **doing)

    def listener(self, name, **doing):
        """A recording listener; see `Listener`."""
        return Listener(self, name, **doing)


class Hook(SessionRunHook):
    """Writes a line for each call.

    Args:
      steps: whether the line says the global step.
      doing: what to do in a method, `{run: action}` for before_run and after_run (runs count from 1), an action for
        the others: an exception to raise, or "stop".
    """

    def __init__(self, transcript, name, *, steps=True, **doing):
        self._transcript, self._name, self._steps, self._doing = transcript, name, steps, doing

    def _did(self, method, session=None, context=None):
        step = f" global_step={session.global_step}" if session is not None and self._steps else ""
        self._transcript.note(f"{self._name}.{method}{step}")
        action = self._doing.get(method)
        if context is not None:
            action = (action or {}).get(self._run)
        if action == "stop":
            context.request_stop()
        elif action is not None:
            raise action

    def begin(self):
        self._run = 0
        self._did("begin")

    def after_create_session(self, session, coord):
        self._did("after_create_session", session)

    def before_run(self, run_context):
        self._run += 1
        self._did("before_run", run_context.session, run_context)

    def after_run(self, run_context, run_values):
        self._did("after_run", run_context.session, run_context)

    def end(self, session):
        self._did("end", session)


class Losses(SessionRunHook):
    """Writes down the loss of every run; it is the last hook of the spec."""

    def __init__(self, transcript):
        self._transcript = transcript

    def before_run(self, run_context):
        return SessionRunArgs("loss")

    def after_run(self, run_context, run_values):
        self._transcript.losses.append(float(run_values.results))


class Listener(CheckpointSaverListener):
    """Writes a line for each call.

    Args:
      stop_from: `after_save` asks to stop from this step on.
      fails_at: `after_save` raises KeyError at this step.
    """

    def __init__(self, transcript, name, *, stop_from=None, fails_at=None):
        self._transcript, self._name, self._stop_from, self._fails_at = transcript, name, stop_from, fails_at

    def _did(self, method, step=None):
        self._transcript.note(f"{self._name}.{method}" + ("" if step is None else f" global_step={step}"))

    def begin(self):
        self._did("begin")

    def before_save(self, session, global_step):
        self._did("before_save", global_step)

    def after_save(self, session, global_step):
        self._did("after_save", global_step)
        if global_step == self._fails_at:
            raise KeyError("scripted")
        return self._stop_from is not None and global_step >= self._stop_from

    def end(self, session, global_step):
        self._did("end", global_step)


class RecordingExporter(js.Exporter):
    """Writes down what it is asked for; its result names itself and the step."""

    def __init__(self, transcript, name):
        self._transcript, self._name = transcript, name

    @property
    def name(self):
        return self._name

    def export(self, estimator, export_path, checkpoint_path, eval_result, is_the_final_export):
        step = int(eval_result["global_step"])
        self._transcript.note(
            {
                "event": f"{self._name}.export",
                "path": os.path.relpath(export_path, estimator.model_dir),
                "checkpoint": os.path.basename(checkpoint_path),
                "keys": sorted(eval_result),
                "global_step": step,
                "final": is_the_final_export,
            }
        )
        return f"result of {self._name} at {step}"


@contextlib.contextmanager
def _logged():
    """The lines that the library logs within the block, times replaced."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(re.sub(r"\([\d.]+ sec\)", "(<SECS> sec)", record.getMessage()))
    logger = logging.getLogger("jaxspec")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _event_folders(model_dir):
    """The folders below `model_dir` that hold event files of evaluations."""
    paths = {path.parent.relative_to(model_dir) for path in pathlib.Path(model_dir).rglob("events.out.tfevents.*")}
    return sorted(str(path) for path in paths if path.parts and path.parts[0].startswith("eval"))


def read_events(logdir):
    """`[step, tag, kind, value]` of every summary, read by TensorBoard; rates as the recordings write them."""
    for path in sorted(pathlib.Path(logdir).glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield [event.step, *_summary(value)]


def _summary(value):
    plugin = value.metadata.plugin_data.plugin_name
    content = tensor_util.make_ndarray(value.tensor)
    if plugin == "scalars":
        tag = value.tag
        return [tag, "simple_value", "<number>" if tag.endswith("/sec") else float(content.reshape(-1)[0])]
    if plugin == "text":
        texts = [os.path.basename(text.decode()) for text in content.reshape(-1)]
        return [value.tag.removesuffix("/text_summary"), "tensor", texts]
    return [value.tag, "histo" if plugin == "histograms" else plugin, None]
