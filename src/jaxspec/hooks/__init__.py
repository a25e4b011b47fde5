"""Hooks: user code that runs on the host around the steps."""

from .checkpoint_saver import CheckpointSaverHook as CheckpointSaverHook
from .early_stopping import make_early_stopping_hook as make_early_stopping_hook
from .early_stopping import read_eval_metrics as read_eval_metrics
from .early_stopping import stop_if_higher_hook as stop_if_higher_hook
from .early_stopping import stop_if_lower_hook as stop_if_lower_hook
from .early_stopping import stop_if_no_decrease_hook as stop_if_no_decrease_hook
from .early_stopping import stop_if_no_increase_hook as stop_if_no_increase_hook
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
from .session import TrainingSession as TrainingSession
from .session_run_hook import SessionRunArgs as SessionRunArgs
from .session_run_hook import SessionRunContext as SessionRunContext
from .session_run_hook import SessionRunHook as SessionRunHook
from .session_run_hook import SessionRunValues as SessionRunValues
from .stop_at_step import StopAtStepHook as StopAtStepHook
from .summary_saver import SummarySaverHook as SummarySaverHook
from .timer import SecondOrStepTimer as SecondOrStepTimer
