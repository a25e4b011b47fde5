"""Summaries: scalars, images, histograms and text for TensorBoard or for a writer of your own, written on the host.

A host function calls `scalar`, `image`, `histogram` or `text`. They write to the default writer, if there is one: that
of `with create_file_writer(...).as_default()`. Else they write to the writer of the run: in training to the event file
in model_dir, in an evaluation to that in its `eval_dir`, and to the sinks of `RunConfig(writers=[...])`.

The step is the global step of the run, unless it is given. All batches of an evaluation have one step, that of the
weights: where several of them write one tag, readers show the last one. What concerns the whole set is a metric.
"""

from jaxspec._src.summary.context import record_if as record_if
from jaxspec._src.summary.functions import histogram as histogram
from jaxspec._src.summary.functions import host_call as host_call
from jaxspec._src.summary.functions import image as image
from jaxspec._src.summary.functions import scalar as scalar
from jaxspec._src.summary.functions import text as text
from jaxspec._src.summary.sink import Sink as Sink
from jaxspec._src.summary.writer import SummaryWriter as SummaryWriter
from jaxspec._src.summary.writer import create_file_writer as create_file_writer
