"""Summaries as TensorBoard's protocol buffers. tensorboardX is imported at the first use."""

import functools
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

_BUCKETS = 30


def event(**fields: object) -> "Event":
    """An Event of now with these fields, such as `step`. The caller adds values to its `.summary.value`."""
    return _event_type()(wall_time=time.time(), **fields)


@functools.cache
def _event_type() -> "type[Event]":
    # Cached because an import statement costs as much as the event.
    from tensorboardX.proto import event_pb2

    event_type: type[Event] = event_pb2.Event
    return event_type


def add_text(event: "Event", name: str, text: str) -> None:
    """Adds Markdown to an event, under the tag that the text dashboard expects."""
    from tensorboardX import summary

    event.summary.MergeFrom(summary.text(name, text))


def add_histogram(event: "Event", name: str, values: np.ndarray) -> None:
    """Adds the distribution of finite float64 values `[n]`, n >= 1, in 30 equal buckets as TensorFlow 2 does."""
    from tensorboardX import summary

    # Edges of our own: a range too narrow for 30 different edges is an error to numpy.histogram.
    edges = np.linspace(values.min(), values.max(), _BUCKETS + 1)
    event.summary.value.add(tag=name, histo=summary.make_histogram(values, edges))


def add_image(event: "Event", name: str, pixels: np.ndarray) -> None:
    """Adds uint8 pixels `[height, width, channels]`, 1, 3 or 4 channels, as a PNG file.

    Raises:
      ImportError: without Pillow.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError("summary.image: encoding PNG needs Pillow. Run: pip install 'jaxspec[images]'") from error
    from tensorboardX import summary

    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)  # Pillow takes no array of one channel
    event.summary.value.add(tag=name, image=summary.make_image(pixels))
