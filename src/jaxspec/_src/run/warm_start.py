"""Warm start: fresh variables that take their values from weights stored elsewhere."""

import logging
import os
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxspec._src.base.activities import doing
from jaxspec._src.base.arrays import describe_array, key_data, named_leaves
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import DType, Variables
from jaxspec._src.checkpoint.fitted import fitted
from jaxspec._src.checkpoint.names_in_messages import MOST_NAMES, listed
from jaxspec._src.checkpoint.weights import Weights, open_weights
from jaxspec._src.run.warm_start_settings import WarmStartReport, WarmStartSettings

_logger = logging.getLogger("jaxspec")


class WarmStart:
    """Does what `WarmStartSettings` say."""

    def __init__(self, settings: WarmStartSettings) -> None:
        self._settings = settings
        self._path = absolute_path(settings.ckpt_to_initialize_from)
        self.report: WarmStartReport | None = None
        """Of the last warm start, whether it succeeded or not."""

    def __call__(self, variables: Variables) -> Variables:
        """Fresh variables, with stored values for those that the settings ask for. They are on the default device.

        Raises:
          ValueError: if the weights cannot be read; if a variable is missing there, has another shape, or cannot hold a
            stored value; if a pattern matches nothing, or the settings name what does not exist.
        """
        with doing("the weights to start from"):
            weights = open_weights(self._path)
            leaves = named_leaves(variables)
            self.report = report = _report(weights, named_leaves(key_data(variables)), _asked(self._settings, leaves))
            _raise_problems(report)
            stored = weights.read(list(report.matched.values()))
            values = {
                name: fitted(stored[prev], leaves[name], f"warm start: {name} from {prev!r} of {weights.path}")
                for name, prev in report.matched.items()
            }
        _log(self._settings, report)
        new = [jnp.asarray(values[name]) if name in values else leaf for name, leaf in leaves.items()]
        started: Variables = jax.tree.unflatten(jax.tree.structure(variables), new)
        return started


def as_warm_start(warm_start_from: str | os.PathLike[str] | WarmStartSettings | None) -> WarmStart | None:
    """The argument of TPUEstimator, checked."""
    if warm_start_from is None:
        return None
    if isinstance(warm_start_from, str | os.PathLike):
        warm_start_from = WarmStartSettings(warm_start_from)
    if not isinstance(warm_start_from, WarmStartSettings):
        raise ValueError(
            f"warm_start_from must be a string or a WarmStartSettings, instead got {type(warm_start_from)}. Write the "
            "path of a checkpoint, or WarmStartSettings(path, vars_to_warm_start=...)."
        )
    return WarmStart(warm_start_from)


def _asked(settings: WarmStartSettings, leaves: Mapping[str, jax.Array]) -> dict[str, str]:
    """By the name of each variable that the settings select, the name to look for in the checkpoint."""
    patterns, renames = settings.vars_to_warm_start, settings.var_name_to_prev_var_name or {}
    among, advice = leaves, ""
    if isinstance(patterns, str):
        among, advice = _trained(leaves), f" A list selects among all collections: [{patterns!r}]."
        patterns = [patterns]
    selected = {pattern: {name for name in among if re.match(pattern, name)} for pattern in patterns or ()}
    for pattern, names in selected.items():
        if not names:
            raise ValueError(
                f"vars_to_warm_start={pattern!r} matches none of the variables: {listed(among)}. It is a regular "
                f"expression that the beginning of a name must match.{advice}"
            )
    asked = {name: renames.get(name, name) for name in among if name in set().union(*selected.values())}
    unused = sorted(renames.keys() - asked.keys())
    if unused:
        raise ValueError(
            f"You provided the following variables in var_name_to_prev_var_name that were not used: {unused}. Perhaps "
            "you misspelled them, or vars_to_warm_start does not select them. Here is the list of viable variable "
            f"names: {listed(asked) or 'none'}"
        )
    by_source: dict[str, str] = {}
    for name, prev in asked.items():
        if prev in by_source:
            raise ValueError(
                f"var_name_to_prev_var_name: {by_source[prev]} and {name} both take {prev}. Give one of them another "
                "name, leave it out of vars_to_warm_start, or copy it in Scaffold.init_fn."
            )
        by_source[prev] = name
    return asked


def _trained(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What an optimizer may change: the floats of the collection `params`."""
    return {
        name: leaf
        for name, leaf in leaves.items()
        if name.partition("/")[0] == "params" and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def _report(weights: Weights, leaves: Mapping[str, jax.Array], asked: Mapping[str, str]) -> WarmStartReport:
    have = weights.arrays
    found = {name: prev for name, prev in asked.items() if prev in have}
    matched = {name: prev for name, prev in found.items() if _fits(have[prev], leaves[name])}
    return WarmStartReport(
        path=weights.path,
        matched=matched,
        converted={
            name: f"{have[prev].dtype} to {leaves[name].dtype}"
            for name, prev in matched.items()
            if have[prev].dtype != leaves[name].dtype
        },
        missing={name: prev for name, prev in asked.items() if prev not in have},
        differing={
            name: f"{describe_array(have[prev])} in the checkpoint, {describe_array(leaves[name])} in the model"
            for name, prev in found.items()
            if name not in matched
        },
        fresh=tuple(name for name in leaves if name not in asked),
        unused=tuple(sorted(have.keys() - set(asked.values()))),
    )


def _fits(stored: jax.ShapeDtypeStruct, leaf: jax.Array) -> bool:
    """Whether the shapes are equal, and the kind of number. The values may still be too large for the dtype."""

    def both(kind: DType) -> bool:
        return bool(jnp.issubdtype(stored.dtype, kind) and jnp.issubdtype(leaf.dtype, kind))

    return stored.shape == leaf.shape and (
        stored.dtype == leaf.dtype or both(jnp.floating) or both(jnp.complexfloating) or both(jnp.integer)
    )


def _raise_problems(report: WarmStartReport) -> None:
    """Raises a ValueError that names all variables that are missing or differ."""
    problems = [f"{name} is {what}" for name, what in report.differing.items()]
    problems += [
        f"{name} is not in the checkpoint" + ("" if prev == name else f" as {prev}")
        for name, prev in report.missing.items()
    ]
    if not problems:
        return
    names = [*report.differing, *report.missing]
    left_out = "|".join(f"{re.escape(name)}$" for name in names[:MOST_NAMES])
    raise ValueError(
        f"warm start from {report.path}: {listed(problems, '; ')}. Nothing was taken. For a variable that has another "
        f"name there, write WarmStartSettings(path, var_name_to_prev_var_name={{{names[0]!r}: NAME}}); the checkpoint "
        f"also has {listed(report.unused) or 'nothing else'}. To keep what init_fn makes, leave variables out: "
        f"vars_to_warm_start='(?!{left_out})'."
    )


def _log(settings: WarmStartSettings, report: WarmStartReport) -> None:
    patterns = settings.vars_to_warm_start
    _logger.info(
        "Warm-starting from: %s. %d variables take stored values%s. %d keep those of init_fn: %s. Left unused in the "
        "checkpoint: %s.",
        report.path,
        len(report.matched),
        "".join(f"; {name}: {dtypes}" for name, dtypes in report.converted.items()),
        len(report.fresh),
        listed(report.fresh) or "none",
        listed(report.unused) or "none",
    )
    if not report.matched:
        _logger.warning("vars_to_warm_start=%r selects nothing: the warm start left %s unused.", patterns, report.path)
    surprising = [name for name in report.fresh if isinstance(patterns, str) and re.match(patterns, name)]
    if surprising:
        _logger.warning(
            "The warm start leaves %s as init_fn made them: as in TensorFlow, vars_to_warm_start=%r selects among what "
            "is trained, the collection params. To take other collections, too, write it as a list: [%r].",
            *(listed(surprising), patterns, patterns),
        )
