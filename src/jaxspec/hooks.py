"""Hooks: user code that runs on the host around the steps."""

from jaxspec._src.base.errors import NanLossDuringTrainingError as NanLossDuringTrainingError
from jaxspec._src.hooks.checkpoint_saver import CheckpointSaverHook as CheckpointSaverHook
from jaxspec._src.hooks.checkpoint_saver import CheckpointSaverListener as CheckpointSaverListener
from jaxspec._src.hooks.early_stopping import make_early_stopping_hook as make_early_stopping_hook
from jaxspec._src.hooks.early_stopping import read_eval_metrics as read_eval_metrics
from jaxspec._src.hooks.early_stopping import stop_if_higher_hook as stop_if_higher_hook
from jaxspec._src.hooks.early_stopping import stop_if_lower_hook as stop_if_lower_hook
from jaxspec._src.hooks.early_stopping import stop_if_no_decrease_hook as stop_if_no_decrease_hook
from jaxspec._src.hooks.early_stopping import stop_if_no_increase_hook as stop_if_no_increase_hook
from jaxspec._src.hooks.final_ops import FinalOpsHook as FinalOpsHook
from jaxspec._src.hooks.logging_tensor import LoggingTensorHook as LoggingTensorHook
from jaxspec._src.hooks.nan_tensor import NanTensorHook as NanTensorHook
from jaxspec._src.hooks.profiler import ProfilerHook as ProfilerHook
from jaxspec._src.hooks.rates import ExamplesPerSecondHook as ExamplesPerSecondHook
from jaxspec._src.hooks.rates import Rates as Rates
from jaxspec._src.hooks.rates import StepCounterHook as StepCounterHook
from jaxspec._src.hooks.session import Session as Session
from jaxspec._src.hooks.session import TrainingSession as TrainingSession
from jaxspec._src.hooks.stop_at_step import StopAtStepHook as StopAtStepHook
from jaxspec._src.hooks.summary_saver import SummarySaverHook as SummarySaverHook
from jaxspec._src.hooks.timer import SecondOrStepTimer as SecondOrStepTimer
from jaxspec._src.spec.hook import SessionRunArgs as SessionRunArgs
from jaxspec._src.spec.hook import SessionRunContext as SessionRunContext
from jaxspec._src.spec.hook import SessionRunHook as SessionRunHook
from jaxspec._src.spec.hook import SessionRunValues as SessionRunValues
