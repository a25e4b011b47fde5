"""init_fn: fresh variables from one batch."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import jax

from jaxspec._src.base.arrays import describe_array, describe_leaves, named_leaves
from jaxspec._src.base.callables import call_by_name, describe
from jaxspec._src.base.types import AnyFunction, Batch, HyperParameters, PyTree, Variables
from jaxspec._src.base.validate import check_arguments
from jaxspec._src.step.axis import bind_shard_axis
from jaxspec._src.step.error_notes import note_traced_error
from jaxspec._src.step.variables import strong_arrays

if TYPE_CHECKING:
    from flax.linen import Module

INIT_FN_ARGUMENTS = ("rng", "features", "labels", "params")


if TYPE_CHECKING:
    InitFn: TypeAlias = Module | AnyFunction
else:
    InitFn = AnyFunction
"""A Flax Linen Module, or a function: called by keyword with those of `INIT_FN_ARGUMENTS` that it names; returns
`Variables`."""


def as_init_fn(init_fn: InitFn) -> AnyFunction:
    """`init_fn` as a function of the keywords rng, features, labels, params that returns the variables.

    Args:
      init_fn: a function that names any of these, or a `flax.linen.Module`, which then means
        `module.init({"params": k1, "dropout": k2}, features)`.
    """
    from flax import linen

    if isinstance(init_fn, linen.Module):
        return _module_init(init_fn)
    _refuse_other_modules(init_fn)
    check_arguments(init_fn, role="init_fn", allowed=INIT_FN_ARGUMENTS)

    def init(**available: object) -> Variables:
        return _check_variables(call_by_name(init_fn, available), describe(init_fn))

    return init


def _refuse_other_modules(init_fn: object) -> None:
    """Raises TypeError for what is easily mistaken for an init_fn. (An NNX module is callable, as a function of its
    inputs.)"""
    import flax.linen

    flax_nnx = sys.modules.get("flax.nnx")  # a user who has an NNX module has imported it
    kind = init_fn if isinstance(init_fn, type) else type(init_fn)
    if flax_nnx is not None and issubclass(kind, flax_nnx.Module):
        raise TypeError(
            f"init_fn must be a function or a Flax Linen Module, got the NNX module {kind.__name__}. Write net = "
            f"flax.nnx.bridge.ToLinen({kind.__name__}, args=(...)), init_fn=net, and net.apply(variables, features) in "
            "model_fn."
        )
    if isinstance(init_fn, type) and issubclass(kind, flax.linen.Module):
        raise TypeError(f"init_fn must be a Module, got its class. Write init_fn={kind.__name__}(...).")
    if isinstance(init_fn, str | os.PathLike):
        raise TypeError(
            f"init_fn must be a function or a Flax Linen Module, got {init_fn!r}: the second argument of TPUEstimator "
            f"makes the variables. For a directory write model_dir={init_fn!r}."
        )


def _module_init(module: "Module") -> AnyFunction:
    def init(rng: jax.Array, features: Batch, labels: Batch, params: HyperParameters) -> Variables:
        k1, k2 = jax.random.split(rng)
        name = type(module).__name__
        try:
            variables = module.init({"params": k1, "dropout": k2}, features)
        except Exception as error:
            if not isinstance(features, jax.Array) or "__call__()" in str(error) or "needs PRNG" in str(error):
                error.add_note(
                    f"jaxspec: init_fn={name}(...) is initialised as module.init({{'params': key, 'dropout': key}}, "
                    f"features), features "
                    f"being {_describe(features)}. Where it takes other arguments, or other keys, "
                    f"write an init_fn that passes them, "
                    f'for example: init_fn=lambda rng, features: {name}(...).init(rng, features["a"], features["b"])'
                )
            raise
        return _check_variables(variables, name)

    return init


def _check_variables(variables: object, source: str) -> Variables:
    from flax.core import unfreeze
    from flax.linen import Partitioned

    if isinstance(variables, Mapping):
        variables = unfreeze(dict(variables))
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = f"a dict with the keys {sorted(variables)}" if isinstance(variables, Mapping) else repr(type(variables))
        raise ValueError(
            f"init_fn ({source}) must return a dict of collections with 'params' among them, got {got}. "
            'Write return {"params": ...}: what is in "params" is trained, other collections are not.'
        )

    def is_box(x: object) -> bool:
        return isinstance(x, Partitioned)

    # Every device holds all variables. With the boxes of `with_partitioning`, Flax would look up the axes that they
    # name
    # in any mesh that is set.
    unboxed: Variables = jax.tree.map(
        lambda x: x.unbox(apply_constraint=False) if is_box(x) else x, variables, is_leaf=is_box
    )
    return unboxed


def init_on_one_shard(
    init_fn: InitFn, params_for: Callable[[Batch], HyperParameters]
) -> Callable[[jax.Array, Batch, Batch], Variables]:
    """A pure function `(rng, features, labels) -> variables` of one per-shard batch, with `SHARD_AXIS` bound.

    Args:
      init_fn: what `as_init_fn` takes.
      params_for: makes the `params` of init_fn from the features.
    """
    make = as_init_fn(init_fn)

    def init(rng: jax.Array, features: Batch, labels: Batch) -> Variables:
        params = params_for(features)
        try:
            variables: Variables = strong_arrays(make(rng=rng, features=features, labels=labels, params=params))
        except Exception as error:
            note_traced_error(error)
            error.add_note(
                f"raised by init_fn, which saw features: {_describe(features)}; labels: {_describe(labels)}."
            )
            raise
        return variables

    return bind_shard_axis(init)


@contextlib.contextmanager
def noting_verb(verb: str) -> Iterator[None]:
    """Adds a note to an error of init_fn: which verb (train, evaluate, predict) its batch belongs to."""
    try:
        yield
    except Exception as error:
        if any(note.startswith("raised by init_fn") for note in getattr(error, "__notes__", ())):
            no_labels = ", and predict gives no labels" if verb == "predict" else ""
            error.add_note(
                f"jaxspec: that was a batch of {verb}: init_fn runs with the first batch of whichever verb comes "
                f"first{no_labels}."
            )
        raise


def _describe(tree: PyTree) -> str:
    """The arrays of a tree: `float32[8,4]`, or `a dict of x: float32[8,4], y: int32[8]`."""
    leaves = named_leaves(tree)
    if list(leaves) == [""]:
        return describe_array(leaves[""])
    return f"a {type(tree).__name__} of {describe_leaves(leaves)}" if leaves else repr(tree)
