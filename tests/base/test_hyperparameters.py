"""`params` may be a dict, a ConfigDict, a namespace, a dataclass or another object, and hold what cannot be copied."""

import argparse
import collections.abc
import dataclasses
import threading
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from tiny_models import run_config

import jaxspec as js

X = np.arange(8, dtype=np.float32).reshape(8, 1)


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


@dataclasses.dataclass
class Config:
    rate: float = 0.5
    sizes: list = dataclasses.field(default_factory=lambda: [3])


@dataclasses.dataclass(frozen=True)
class FrozenConfig:
    rate: float = 0.5
    sizes: list = dataclasses.field(default_factory=lambda: [3])


class Strict(collections.abc.MutableMapping):
    """A mapping with attributes that takes the keys it was made with."""

    def __init__(self, **data):
        object.__setattr__(self, "data", data)

    def __getattr__(self, name):
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def __getitem__(self, name):
        return self.data[name]

    def __setitem__(self, name, value):
        if name not in self.data:
            raise KeyError(name)
        self.data[name] = value

    def __delitem__(self, name):
        raise KeyError(name)

    def __iter__(self):
        return iter(self.data)

    def __len__(self):
        return len(self.data)


class Checked:
    """Refuses attributes that it does not know, as models of pydantic do."""

    def __init__(self, rate, sizes):
        self.rate, self.sizes = rate, sizes

    def __setattr__(self, name, value):
        if name not in ("rate", "sizes"):
            raise ValueError(name)
        super().__setattr__(name, value)


class Settings:
    """Looks attributes up in a dict, and so recurs for ever while it is copied."""

    def __init__(self, **data):
        self.data = data

    def __getattr__(self, name):
        return self.data[name]


class Tokenizer:
    def __init__(self):
        self.lock = threading.RLock()


def locked():
    made = ml_collections.ConfigDict({"rate": 0.5, "sizes": [3]})
    made.lock()
    return made


KINDS = {
    "dict": lambda: AttributeDict(rate=0.5, sizes=[3]),
    "ConfigDict": locked,
    "FrozenConfigDict": lambda: ml_collections.FrozenConfigDict({"rate": 0.5, "sizes": [3]}),
    "SimpleNamespace": lambda: types.SimpleNamespace(rate=0.5, sizes=[3]),
    "argparse": lambda: argparse.Namespace(rate=0.5, sizes=[3]),
    "dataclass": Config,
    "frozen dataclass": FrozenConfig,
    "namespace with a lock": lambda: types.SimpleNamespace(rate=0.5, sizes=[3], lock=threading.Lock()),
    "dict with a lock": lambda: AttributeDict(rate=0.5, sizes=[3], lock=threading.Lock()),
    "__getattr__": lambda: Settings(rate=0.5, sizes=[3]),
    "strict mapping": lambda: Strict(rate=0.5, sizes=[3]),
    "checked attributes": lambda: Checked(0.5, [3]),
}


def value(params, name):
    return params[name] if hasattr(type(params), "keys") else getattr(params, name)


def train(tmp_path, params, model_fn, input_fn=None, **kwargs):
    estimator = js.TPUEstimator(
        model_fn,
        lambda: {"params": {"w": jnp.zeros(1)}},
        model_dir=tmp_path / "model",
        config=run_config(num_shards=2),
        train_batch_size=4,
        params=params,
        **kwargs,
    )
    return estimator.train(input_fn or js.inputs.numpy_input_fn(X))


def spec(variables, features, mode, rate):
    loss = (features * variables["params"]["w"]).mean()
    return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(rate)))


@pytest.mark.parametrize("kind", KINDS)
def test_params_reach_every_function_as_what_they_are(tmp_path, kind):
    given = KINDS[kind]()
    seen = {}

    def input_fn(params):
        seen["input_fn"] = (value(params, "batch_size"), value(params, "context").num_replicas, params.rate)
        return [X[:4], X[4:]]

    def model_fn(variables, features, mode, params):
        seen["model_fn"] = (
            value(params, "batch_size"),
            value(params, "context").num_replicas,
            value(params, "use_tpu"),
        )
        if kind not in ("FrozenConfigDict", "strict mapping"):
            assert isinstance(params, type(given))
        sizes = params.sizes
        if isinstance(sizes, list) and kind not in ("__getattr__",):
            sizes.append(4)  # must not reach the estimator
        return spec(variables, features, mode, params.rate)

    trained = train(tmp_path, given, model_fn, input_fn)
    assert seen == {"input_fn": (4, 2, 0.5), "model_fn": (2, 2, True)}
    # Two steps down the mean of x: by 0.5 times its means, 1.5 and 5.5.
    np.testing.assert_allclose(trained.get_variable_value("params/w"), [-0.5 * (1.5 + 5.5)])
    for params in (given, trained.params):
        assert list(params.sizes) == [3]
        assert params.rate == 0.5
        assert "batch_size" not in str(params)
    assert type(trained.params) is type(given)


def test_numpy_input_fn_finds_the_batch_size_in_a_namespace(tmp_path):
    def model_fn(variables, features, mode, params):
        return spec(variables, features, mode, params.rate)

    trained = train(tmp_path, types.SimpleNamespace(rate=0.5), model_fn)
    assert trained.get_variable_value("global_step") == 2


THINGS = {
    "lock": Tokenizer,
    "__getattr__": lambda: Settings(rate=0.5),
    "tuple": lambda: (Tokenizer(), [3]),
    "list": lambda: [Tokenizer()],
    "dict": lambda: {"a": Tokenizer()},
}


@pytest.mark.parametrize("case", THINGS)
def test_what_cannot_be_copied_is_passed_as_it_is(tmp_path, case):
    thing = THINGS[case]()
    seen = []

    def parts(thing):
        if isinstance(thing, dict | list | tuple):
            return [
                part for element in (thing.values() if isinstance(thing, dict) else thing) for part in parts(element)
            ]
        return [thing]

    def model_fn(variables, features, mode, params):
        seen.append(params["thing"])
        return spec(variables, features, mode, 0.5)

    train(tmp_path, {"thing": thing, "list": [1]}, model_fn)
    for got, expected in zip(parts(seen[0]), parts(thing), strict=True):
        assert got is expected if isinstance(expected, Tokenizer | Settings) else got == expected


def test_containers_around_what_cannot_be_copied_are_copies(tmp_path):
    given = {"nested": {"lock": threading.Lock(), "list": [1]}, "config": Config()}
    given["nested"]["itself"] = given["nested"]

    def model_fn(variables, features, mode, params):
        params["nested"]["list"].append(2)
        params["config"].sizes.append(4)
        params["nested"]["lock"].acquire(blocking=False)
        assert params["nested"]["itself"] is params["nested"]
        return spec(variables, features, mode, 0.5)

    trained = train(tmp_path, given, model_fn)
    assert given["nested"]["list"] == trained.params["nested"]["list"] == [1]
    assert given["config"].sizes == trained.params["config"].sizes == [3]
    assert trained.params["nested"]["lock"] is given["nested"]["lock"]


class WithSlots:
    __slots__ = ("rate",)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    rate: float = 0.5


@pytest.mark.parametrize("params", [WithSlots(), FrozenSlots(), Config], ids=["slots", "frozen slots", "class"])
def test_params_that_take_no_attributes_are_refused_by_the_constructor(tmp_path, params):
    with pytest.raises(
        TypeError, match=r"params must be a dict, or .*attributes \['batch_size', .*Write params=\{\"config\": "
    ):
        train(tmp_path, params, lambda features, params: None)


def test_reserved_attributes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"reserved keys but existed in params .*Rename \['batch_size'\]"):
        train(tmp_path, types.SimpleNamespace(batch_size=3), lambda features, params: None)


def test_a_list_is_refused_when_it_is_used(tmp_path):
    with pytest.raises(TypeError, match=r"params must be a dict, .* given list \[1\].*Write params=\{\"config\": "):
        train(tmp_path, [1], lambda features, params: None)
