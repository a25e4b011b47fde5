"""Summaries for TensorBoard, written on the host.

A host function writes to the writer in force: the one made default by `as_default()`, or the run's own. The step is
that of the run, unless given.
"""

from .functions import histogram as histogram
from .functions import host_call as host_call
from .functions import image as image
from .functions import scalar as scalar
from .functions import text as text
from .in_force import record_if as record_if
from .writer import SummaryWriter as SummaryWriter
from .writer import create_file_writer as create_file_writer
