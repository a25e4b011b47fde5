"""Summaries for TensorBoard, written on the host.

A host function writes to the writer in force: the one made default by `as_default()`, or the run's own: of training
that of model_dir, of an evaluation that of its `eval_dir`. The step is that of the run, unless given. All batches of an
evaluation are at one step, that of the weights: each writes, and readers that keep one value of a tag at a step keep
the last batch's. What concerns the whole set is a metric.
"""

from jaxspec._src.summary.context import record_if as record_if
from jaxspec._src.summary.functions import histogram as histogram
from jaxspec._src.summary.functions import host_call as host_call
from jaxspec._src.summary.functions import image as image
from jaxspec._src.summary.functions import scalar as scalar
from jaxspec._src.summary.functions import text as text
from jaxspec._src.summary.writer import SummaryWriter as SummaryWriter
from jaxspec._src.summary.writer import create_file_writer as create_file_writer
