"""The recordings of this folder, and the values in them that JSON cannot hold."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import oracle_read

import jaxspec as js

HERE = pathlib.Path(__file__).parent


def other_recordings(family):
    """Other recordings to replay: the path in `JAXSPEC_VALIDATION`, `JAXSPEC_TPU_RULES` or `JAXSPEC_CONTROL_FLOW`, or
    None."""
    return os.environ.get(f"JAXSPEC_{family.upper()}")


def load(family):
    """The recordings of `validation`, `tpu_rules` or `control_flow`."""
    return oracle_read.load(other_recordings(family) or HERE / f"{family}.json")


def load_cases(family):
    """Their cases."""
    return load(family)["cases"]


def find(name):
    """What the library calls `name`, wherever it keeps it; None if there is no such thing yet."""
    owner, _, attribute = name.partition(".")
    for place in (js, js.hooks, js.checkpoint, js.export):
        if hasattr(place, owner):
            found = getattr(place, owner)
            return getattr(found, attribute) if attribute else found
    return None


class Thing:
    """An object of no use here."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"a thing called {self.name}"


class _PlainRunConfig:
    """Stands for a RunConfig that is not the library's own."""


def make_function(arguments):
    """A function with these arguments, as `["a", "b=1", "*c"]`, that returns None."""
    namespace = {}
    exec(f"def fn({', '.join(arguments)}): return None", namespace)
    return namespace["fn"]


def _make_exporter(name):
    base = find("Exporter") or object
    return type("AnExporter", (base,), {"name": name, "export": lambda self, *args, **kwargs: None})()


def _make_listener(name):
    return (find("CheckpointSaverListener") or (lambda: Thing(f"listener {name}")))()


class Values:
    """Builds the arguments of a case.

    Args:
      directory: where `$dir` and `$path` lie.
    """

    def __init__(self, directory):
        self._makers = {
            "$fn": make_function,
            "$hook": lambda _: js.hooks.SessionRunHook(),
            "$listener": _make_listener,
            "$exporter": _make_exporter,
            "$thing": Thing,
            "$class": find,
            "$tensor": lambda spec: jnp.zeros(spec[1], spec[0]),
            "$array": lambda spec: np.zeros(spec[1], spec[0]),
            "$op": lambda _: js.minimize(optax.sgd(0.1)),
            "$enum": lambda name: js.InputPipelineConfig[name],
            "$tpu_config": lambda kwargs: js.TPUConfig(**self.build(kwargs)),
            "$run_config": lambda kwargs: js.RunConfig(**self.build(kwargs)),
            "$plain_run_config": lambda _: _PlainRunConfig(),
            "$tuple": lambda items: tuple(self.build(items)),
            "$set": lambda items: set(self.build(items)),
            "$np": lambda spec: np.dtype(spec[0]).type(spec[1]),
            "$bytes": lambda text: text.encode() if isinstance(text, str) else bytes(text),
            "$dir": lambda name: str(directory / name),
            "$path": lambda name: directory / name,
            "$config_proto": lambda _: Thing("ConfigProto"),
            "$export_output": lambda _: js.export.PredictOutput(jnp.zeros(2)),
        }

    @property
    def kinds(self):
        """The keys of the objects that are known."""
        return self._makers.keys()

    def build(self, value):
        """`value` with every one-key object `{"$...": ...}` in it replaced by what it stands for."""
        if isinstance(value, dict):
            if len(value) == 1 and next(iter(value)).startswith("$"):
                ((key, inner),) = value.items()
                return self._makers[key](inner)
            return {key: self.build(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.build(inner) for inner in value]
        return value


def holds(value, kind):
    """Whether a `{kind: ...}` object, or any dict with this key, stands anywhere in the arguments."""
    if isinstance(value, dict):
        return kind in value or any(holds(inner, kind) for inner in value.values())
    return isinstance(value, list) and any(holds(inner, kind) for inner in value)
