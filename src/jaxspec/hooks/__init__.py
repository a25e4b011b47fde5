"""Hooks: user code that runs on the host around the steps."""

from .checkpoint_saver import CheckpointSaverHook as CheckpointSaverHook
from .final_ops import FinalOpsHook as FinalOpsHook
from .listener import CheckpointSaverListener as CheckpointSaverListener
from .logging_tensor import LoggingTensorHook as LoggingTensorHook
from .nan import NanLossDuringTrainingError as NanLossDuringTrainingError
from .nan import NanTensorHook as NanTensorHook
from .profiler import ProfilerHook as ProfilerHook
from .rates import ExamplesPerSecondHook as ExamplesPerSecondHook
from .rates import Rates as Rates
from .rates import StepCounterHook as StepCounterHook
from .session import Session as Session
from .session_run_hook import SessionRunArgs as SessionRunArgs
from .session_run_hook import SessionRunContext as SessionRunContext
from .session_run_hook import SessionRunHook as SessionRunHook
from .session_run_hook import SessionRunValues as SessionRunValues
from .stop_at_step import StopAtStepHook as StopAtStepHook
from .summary_saver import SummarySaverHook as SummarySaverHook
from .timer import SecondOrStepTimer as SecondOrStepTimer
