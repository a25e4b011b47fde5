"""Checkpoints: one directory for each step, with separate parts. orbax is imported at the first save or restore."""

from jaxspec._src.base.errors import DamagedCheckpointError as DamagedCheckpointError
from jaxspec._src.checkpoint.latest import checkpoint_step as checkpoint_step
from jaxspec._src.checkpoint.latest import checkpoint_steps as checkpoint_steps
from jaxspec._src.checkpoint.latest import checkpoints_iterator as checkpoints_iterator
from jaxspec._src.checkpoint.latest import latest_checkpoint as latest_checkpoint
from jaxspec._src.checkpoint.latest import load_global_step as load_global_step
from jaxspec._src.checkpoint.named_arrays import array_names as array_names
from jaxspec._src.checkpoint.named_arrays import load_variables as load_variables
from jaxspec._src.checkpoint.named_arrays import read_array as read_array
from jaxspec._src.checkpoint.named_arrays import read_arrays as read_arrays
from jaxspec._src.checkpoint.save import save as save
from jaxspec.checkpoint import tf as tf
