"""What a host function calls to write summaries: `scalar`, `image`, `histogram`, `text`; and a ready host_call."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.base.arrays import describe_array, is_array
from jaxspec._src.base.types import HostFunction
from jaxspec._src.metrics.shard_scalars import ShardScalars
from jaxspec._src.summary.context import destination, in_evaluation


def scalar(name: str, data: ArrayLike, step: ArrayLike | None = None) -> None:
    """Writes the mean of `data` under the tag `name`.

    Args:
      name: the tag.
      data: a number or an array; of an array the mean is written, so a scalar tensor that arrives as one entry for
        each shard needs no care.
      step: the global step, one number, or one for each shard and all equal; None: that of the run.

    Raises:
      ValueError: if no step is given and no run is calling, or if there is no writer.
      TypeError: for an array of a model_fn that is being traced.
    """
    if at := destination("scalar", name, data=data, step=step):
        at.writer.scalar(name, _mean(data), at.step)


def image(name: str, data: ArrayLike, step: ArrayLike | None = None, max_outputs: int = 3) -> None:
    """Writes images: one under the tag `name`, several under `name/0`, `name/1`, ...

    Args:
      name: the tag.
      data: `[k, height, width, channels]`, or one image `[height, width, channels]`, with 1 (grey), 3 (RGB) or 4 (RGBA)
        channels; uint8 of 0 to 255, or floats of 0 to 1 (what lies outside is clipped).
      step: as in `scalar`.
      max_outputs: how many of the k images are written at most, the first ones; 1 or more.

    Raises:
      ValueError: for another shape or type of data, or max_outputs below 1; and as `scalar`.
      TypeError: as `scalar`.
      ImportError: without Pillow: `pip install 'jaxspec[images]'`.
    """
    if max_outputs < 1:
        raise ValueError(f"summary.image({name!r}): max_outputs is {max_outputs}; expected 1 or more.")
    if at := destination("image", name, data=data, step=step):
        pixels = _pixels(name, data)[:max_outputs]
        for i, one in enumerate(pixels):
            at.writer.image(name if len(pixels) == 1 else f"{name}/{i}", one, at.step)


def histogram(name: str, data: ArrayLike, step: ArrayLike | None = None) -> None:
    """Writes the distribution of the entries of `data` (any shape) under the tag `name`.

    Entries that are not finite are left out, with a warning at the first time. The distribution of nothing is not
    written.

    Args and errors: as `scalar`.
    """
    if at := destination("histogram", name, data=data, step=step):
        at.writer.histogram(name, np.asarray(data), at.step)


def text(name: str, data: str, step: ArrayLike | None = None) -> None:
    """Writes a string, shown as Markdown, under the tag `name/text_summary`, which TensorBoard shows as `name`.

    Raises:
      TypeError: if `data` is no string.
      ValueError: as `scalar`.
    """
    if not isinstance(data, str):
        raise TypeError(
            f"summary.text({name!r}): got {type(data).__name__}, expected a str. Write str(data) or f'{{data}}'."
        )
    if at := destination("text", name, step=step):
        at.writer.text(name, data, at.step)


def host_call(**tensors: ArrayLike | None) -> HostFunction:
    """A host_call that writes its tensors at each step of training: `host_call=summary.host_call(loss=loss)`.

    It writes nothing in evaluation, where the metrics are written once. It obeys `record_if`.

    Args:
      tensors: arrays of one shard, by tag. A scalar, or an array of one entry, is written as a scalar: its mean over
        all shards. A larger array is written as a histogram of its entries on all shards. None is left out.

    Raises:
      TypeError: for anything but an array or a number.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if not is_array(tensor) and not isinstance(tensor, bool | int | float):
            raise TypeError(
                f"summary.host_call: {name} is a {type(tensor).__name__}; expected an array or a number. Pass each "
                "array under a name of its own."
            )
    # The shapes of one shard are known only here; on the host a scalar has one entry for each shard.
    arrays = frozenset(name for name, tensor in given.items() if np.size(tensor) != 1)

    def write_tensors(**tensors: np.ndarray) -> None:
        if in_evaluation() or not (at := destination("host_call", *tensors)):
            return
        at.writer.scalars({name: _mean(value) for name, value in tensors.items() if name not in arrays}, at.step)
        for name, value in tensors.items():
            if name in arrays:
                at.writer.histogram(name, value, at.step)

    # Its names are tags, not fetch names: for hooks, `loss` remains the loss of the spec.
    write_tensors.names_are_tags = True  # type: ignore[attr-defined]
    return write_tensors, given


def _mean(data: ArrayLike) -> float:
    if isinstance(data, ShardScalars):
        return float(data.mean())
    array = np.asarray(data)
    # Not numpy.mean, which takes five times as long for the few entries that a scalar has.
    return float(array.item() if array.size == 1 else array.sum(dtype=np.float64) / array.size)


def _pixels(name: str, data: ArrayLike) -> np.ndarray:
    """uint8 `[k, height, width, channels]`."""
    images = np.asarray(data)
    if images.ndim not in (3, 4) or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"summary.image({name!r}): got {describe_array(images)}, expected [k, height, width, channels] or [height, "
            "width, channels] with 1, 3 or 4 channels. A grey image [height, width] is passed as image[..., None]."
        )
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"summary.image({name!r}): got {describe_array(images)}, expected uint8 of 0 to 255 or floats of 0 to 1. "
            "Write image.astype(np.uint8), or divide by the largest value."
        )
    if images.dtype != np.uint8:
        images = np.round(np.clip(np.nan_to_num(images.astype(np.float32)), 0, 1) * 255)
    return np.asarray(images, np.uint8).reshape(-1, *images.shape[-3:])
