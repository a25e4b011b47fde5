"""Hooks: user code that runs on the host around the steps."""

from .nan import NanLossDuringTrainingError as NanLossDuringTrainingError
from .session_run_hook import SessionRunArgs as SessionRunArgs
from .session_run_hook import SessionRunContext as SessionRunContext
from .session_run_hook import SessionRunHook as SessionRunHook
from .session_run_hook import SessionRunValues as SessionRunValues
