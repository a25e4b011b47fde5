"""The fetch names of a spec: what hooks, log lines and progress call its arrays."""

from collections.abc import Iterator

import jax

from jaxspec._src.base.arrays import describe_array, named_leaves, path_name
from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.spec.fetches import named_tensors
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec


def named_outputs(spec: TPUEstimatorSpec) -> dict[str, Array]:
    """The arrays of a spec that have a fetch name. The spec is one that has left the device."""
    return {name: leaf for _, tree in _named_trees(spec) for name, leaf in named_leaves(tree).items()}


def _named_trees(spec: TPUEstimatorSpec) -> Iterator[tuple[str, dict[str, PyTree]]]:
    """Yields (name of a field, tree whose paths are fetch names)."""
    yield from named_tensors("eval_metrics", spec.eval_metrics)
    yield from named_tensors("host_call", spec.host_call)
    yield "predictions", {"predictions": spec.predictions}
    yield "loss", {"loss": spec.loss}


def check_fetch_names(spec: TPUEstimatorSpec, step: Array) -> None:
    """Raises ValueError if two arrays have one fetch name: hooks would see only one of them.

    The same array may have a name twice, as `labels` in the dicts of eval_metrics and host_call.

    Args:
      spec: as model_fn returned it.
      step: the global step that was passed to model_fn.
    """
    taken: dict[str, tuple[str, Array]] = {"global_step": ("the global step", step)}
    for field, tree in _named_trees(spec):
        unused = field == "eval_metrics" and spec.mode != ModeKeys.EVAL
        # Predictions without keys leave the device only in PREDICT, and there they are alone.
        if unused or (field == "predictions" and not isinstance(spec.predictions, dict)):
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = path_name(path)
            other, held = taken.setdefault(name, (field, leaf))
            if held is leaf or (isinstance(held, bool | int | float) and held == leaf):
                continue
            same = {"loss": "the loss itself (a scalar needs no reshape)", "global_step": "`step` itself, a scalar"}
            raise ValueError(
                f"two arrays have the fetch name {name!r}: one of {other} ({describe_array(held)}), one of {field} "
                f"({describe_array(leaf)}). Hooks would see only one of them. Rename the key in "
                f"{other if field == 'loss' else field}, and the argument of its function, or pass "
                f"{same.get(name, 'the same array in both')}."
            )
