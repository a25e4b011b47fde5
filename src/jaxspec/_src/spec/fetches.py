"""fetches: gives arrays of model_fn names, by which hooks ask for them, in the field host_call of the spec."""

from collections.abc import Iterator

from jaxspec._src.base.arrays import is_array
from jaxspec._src.base.callables import describe
from jaxspec._src.base.types import AnyFunction, Array, HostFunction, PyTree
from jaxspec._src.spec.host_functions import check_host_function, check_keywords, refuse_key


class HostCallBesideFetches:
    """The function of the pair that `fetches` returns. It calls that of the real host_call, if there is one."""

    def __init__(self, fn: AnyFunction | None) -> None:
        self.fn = fn

    def __call__(self, fetches: dict[str, Array], host_call: PyTree) -> None:
        if self.fn is None:
            return
        if isinstance(host_call, dict):
            self.fn(**host_call)
        else:
            self.fn(*host_call)

    def __repr__(self) -> str:
        return "fetches" if self.fn is None else describe(self.fn)


def fetches(host_call: HostFunction | None = None, /, **arrays: Array | float) -> HostFunction:
    """Gives arrays names, by which hooks ask for them: `host_call=jaxspec.fetches(learning_rate=rate)`.

    The names are fetch names in training and evaluation: `LoggingTensorHook("learning_rate")` logs the value,
    `SummarySaverHook(summary_op="learning_rate")` writes it for TensorBoard, and a hook of yours gets it with
    `SessionRunArgs("learning_rate")`. It is TensorFlow's `tf.identity(rate, name="learning_rate")`. In training, an
    array is copied to the host only when a hook asks for it; in evaluation, only if there are hooks.

    Args:
      host_call: `(fn, tensors)`, if the spec has a host_call besides; or other `fetches`, whose names are added.
      **arrays: arrays of one shard, or numbers, by name. A hook gets a scalar as its mean over the shards, and another
        array as that of the whole batch: the shards, concatenated along axis 0.

    Returns:
      What the field `host_call` of a spec takes.

    Raises:
      TypeError: for anything but an array or a number, and for a typed random key.
      ValueError, TypeError, RuntimeError: for a host_call that the spec would refuse; for a name that is given twice.
    """
    for name, array in arrays.items():
        if not is_array(array) and not isinstance(array, bool | int | float):
            raise TypeError(
                f"fetches: {name} is a {type(array).__name__}; expected an array or a number. Pass each array under a "
                "name: jaxspec.fetches(name=array)."
            )
        refuse_key(f"fetches: {name}", array)
    pair = check_host_function("host_call", host_call)
    check_keywords("host_call", pair)
    fn, tensors = (None, ()) if pair is None else pair
    if isinstance(fn, HostCallBesideFetches) and isinstance(tensors, dict):
        if twice := sorted(arrays.keys() & tensors["fetches"].keys()):
            raise ValueError(f"fetches: {twice} are names in the fetches that are passed, too. Rename them.")
        fn, arrays, tensors = fn.fn, {**tensors["fetches"], **arrays}, tensors["host_call"]
    return HostCallBesideFetches(fn), {"fetches": arrays, "host_call": tensors}


def without_fetches(host_call: HostFunction | None) -> HostFunction | None:
    """The field host_call of a spec without the arrays that have only a name; None if nothing is to be called."""
    fn, tensors = host_call or (None, ())
    if isinstance(fn, HostCallBesideFetches) and isinstance(tensors, dict):
        return None if fn.fn is None else (fn.fn, tensors["host_call"])
    return host_call


def named_tensors(field: str, pair: HostFunction | None) -> Iterator[tuple[str, dict[str, PyTree]]]:
    """Yields (name of the field, tensors by fetch name) of eval_metrics or host_call; those of `fetches` first."""
    fn, tensors = pair or (None, ())
    if isinstance(fn, HostCallBesideFetches) and isinstance(tensors, dict):
        yield "fetches", tensors["fetches"]
        fn, tensors = fn.fn, tensors["host_call"]
    if isinstance(tensors, dict):
        # The names of summary.host_call are tags: such a tag does not replace the spec's own loss or step.
        tags = {"loss", "global_step"} if getattr(fn, "names_are_tags", False) else ()
        yield field, {name: tensor for name, tensor in tensors.items() if name not in tags}
