"""Checkpoints: a directory for each step, with separate parts. orbax is imported at the first save or restore."""

from .directory import checkpoint_path as checkpoint_path
from .directory import checkpoint_step as checkpoint_step
from .directory import checkpoint_steps as checkpoint_steps
from .directory import latest_checkpoint as latest_checkpoint
from .directory import latest_whole_checkpoint as latest_whole_checkpoint
from .directory import load_global_step as load_global_step
from .manifest import DamagedCheckpointError as DamagedCheckpointError
from .saver import Saver as Saver
from .store import array_names as array_names
from .store import read_array as read_array
from .store import read_position as read_position
from .store import read_state as read_state
from .store import read_variables as read_variables
from .store import state_arrays as state_arrays
from .store import stored_variables as stored_variables
