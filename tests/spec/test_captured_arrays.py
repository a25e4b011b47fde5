"""Arrays of model_fn that host functions hold on to are found at once, wherever they are, and however much else is
there."""

import collections
import dataclasses
import functools
import time
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import data, linear_init, linear_model_fn

import jaxspec as js

X, Y = data(rows=4)


class Slots:
    __slots__ = ("held", "unset")

    def __init__(self, held):
        self.held = held


class MoreSlots(Slots):
    __slots__ = ("other",)


class Plain:
    def __init__(self, held):
        self.held = held

    def method(self, *args):
        return {}


@dataclasses.dataclass
class Record:
    held: object


class Pair(NamedTuple):
    held: object
    other: int = 0


class ListOfMine(list):
    pass


def generator(held):
    yield
    yield held


def begun(held):
    made = generator(held)
    next(made)
    return made


def objects(held):
    made = np.empty(3, object)
    made[2] = held
    return made


def deep(held, depth=12):
    return held if depth == 0 else [deep(held, depth - 1)]


HOLDERS = {
    "itself": lambda x: x,
    "slots": Slots,
    "inherited slots": MoreSlots,
    "attribute": Plain,
    "dataclass": Record,
    "namedtuple": Pair,
    "deque": lambda x: collections.deque([1, x]),
    "list": lambda x: [*range(200), x],
    "list subclass": lambda x: ListOfMine([x]),
    "set": lambda x: {id(x): x}.values(),
    "dict": lambda x: collections.OrderedDict(a={"b": (x,)}),
    "read-only dict": lambda x: types.MappingProxyType({"a": x}),
    "namespace": lambda x: types.SimpleNamespace(held=x),
    "partial": lambda x: functools.partial(print, x),
    "keyword of partial": lambda x: functools.partial(print, sep=x),
    "bound method": lambda x: Plain(x).method,
    "function": lambda x: lambda: x,
    "default": lambda x: lambda a=x: a,
    "keyword default": lambda x: lambda *, a=x: a,
    "wrapped": lambda x: functools.lru_cache(lambda: x),
    "jitted": lambda x: jax.jit(lambda: x),
    "generator": begun,
    "iterator": lambda x: map(print, iter([x])),
    "array of objects": objects,
    "deep": deep,
    "behind a vocabulary": lambda x: ({str(i): i for i in range(100_000)}, [[i] for i in range(100_000)], Slots(x)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_it_is_found_in(holder):
    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        box = HOLDERS[holder](spec.loss)

        def metric_fn(labels):
            return {"box": box}

        return spec._replace(eval_metrics=(metric_fn, [labels]))

    text = r"metric_fn uses `\w+`, an array of model_fn \(float32\[\]\).*pass it: eval_metrics=\(metric_fn, \[\.\.\., \w+\]\)"
    with pytest.raises(ValueError, match=text):
        js.create_train_state(model_fn, linear_init, jax.random.key(0), X, Y)


def test_it_is_called_by_the_name_nearest_to_it():
    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        box, loss_box = Plain([spec.loss]), Plain(0)

        def metric_fn(labels):
            return {"box": (box, loss_box)}

        return spec._replace(eval_metrics=(metric_fn, [labels]))

    with pytest.raises(ValueError, match="metric_fn uses `held`, an array"):
        js.create_train_state(model_fn, linear_init, jax.random.key(0), X, Y)


COUNT = 1_000_000
VOCABULARIES = {
    "dict": lambda: {f"token{i}": i for i in range(COUNT)},
    "list of strings": lambda: [f"token{i}" for i in range(COUNT)],
    "list of lists": lambda: [[i] for i in range(COUNT)],
    "array of objects": lambda: np.array([f"token{i}" for i in range(COUNT)], object),
    "nested": lambda: {"a": [{str(i): (i,)} for i in range(COUNT // 5)]},
    "deque": lambda: collections.deque(range(COUNT)),
    "set": lambda: set(range(COUNT)),
    "attributes": lambda: types.SimpleNamespace(**{f"token{i}": i for i in range(COUNT)}),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_vocabulary_costs_no_more_than_a_millisecond(kind):
    vocabulary = VOCABULARIES[kind]()

    def metric_fn(x):
        return {"m": vocabulary}

    def secs():
        begin = time.perf_counter()
        js.TPUEstimatorSpec("eval", loss=np.float32(1), eval_metrics=(metric_fn, [np.ones(2)]))
        return time.perf_counter() - begin

    assert min(secs() for _ in range(20)) < 1e-3


@pytest.mark.parametrize("use", [float, np.asarray, lambda x: x + 1], ids=["float", "NumPy", "JAX"])
def test_what_was_not_found_gets_its_note_when_the_function_runs(use):
    specs = []
    far = [[] for _ in range(3000)]

    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        hidden = [*far, spec.loss]

        def metric_fn(labels):
            return {"m": use(hidden[-1])}

        specs.append(spec._replace(eval_metrics=(metric_fn, [labels])))
        return spec

    state = js.create_train_state(linear_model_fn, linear_init, jax.random.key(0), X, Y)
    jax.jit(js.make_eval_step(model_fn))(state, X, Y)
    concrete = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), specs[0])
    concrete = concrete._replace(mode="eval")
    with pytest.raises(Exception, match="racer") as caught:
        concrete.as_estimator_spec()
    notes = "\n".join(caught.value.__notes__)
    assert "metric_fn uses `hidden`, an array of model_fn (float32[])" in notes
    assert "pass it: eval_metrics=(metric_fn, [..., hidden])" in notes


def test_an_error_of_its_own_gets_no_such_note():
    def metric_fn(labels):
        return jax.jit(lambda x: float(x))(jnp.ones(()))

    spec = js.TPUEstimatorSpec("eval", loss=np.float32(1), eval_metrics=(metric_fn, [Y]))
    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        spec.as_estimator_spec()
    assert not any("array of model_fn" in note for note in caught.value.__notes__)
