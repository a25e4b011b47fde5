"""What `jaxspec` exports, and what importing it loads."""

import operator
import subprocess
import sys
import types

import pytest

import jaxspec

NAMES = {
    # The spec.
    "Mode",
    "ModeKeys",
    "TPUEstimatorSpec",
    "EstimatorSpec",
    "Scaffold",
    "TrainOp",
    "fetches",
    "minimize",
    "apply_gradients",
    "CrossShardOptimizer",
    "ExponentialMovingAverage",
    "global_mean",
    "SHARD_AXIS",
    # For people with their own loop.
    "TrainState",
    "create_train_state",
    "make_train_step",
    "make_eval_step",
    "make_predict_step",
    "replicate",
    "shard",
    "gather",
    # The runner.
    "TPUEstimator",
    "RunConfig",
    "TPUConfig",
    "InputPipelineConfig",
    "TrainSpec",
    "EvalSpec",
    "train_and_evaluate",
    "Exporter",
    "BestExporter",
    "LatestExporter",
    "FinalExporter",
    "checkpoints_iterator",
    "load_global_step",
    "init_from_checkpoint",
    "OtherProcessError",
    "named_leaves",
    "path_name",
    "WarmStartReport",
    "WarmStartSettings",
}
HOOKS = {
    "SessionRunHook",
    "SessionRunArgs",
    "SessionRunContext",
    "SessionRunValues",
    "Session",
    "CheckpointSaverHook",
    "CheckpointSaverListener",
    "ExamplesPerSecondHook",
    "FinalOpsHook",
    "LoggingTensorHook",
    "NanLossDuringTrainingError",
    "NanTensorHook",
    "ProfilerHook",
    "Rates",
    "SecondOrStepTimer",
    "StepCounterHook",
    "StopAtStepHook",
    "TrainingSession",
    "SummarySaverHook",
    "make_early_stopping_hook",
    "read_eval_metrics",
    "stop_if_higher_hook",
    "stop_if_lower_hook",
    "stop_if_no_decrease_hook",
    "stop_if_no_increase_hook",
}
EXPORT = {
    "Batcher",
    "ClassificationOutput",
    "ExportOutput",
    "LoadedExport",
    "LoadedSignature",
    "PredictOutput",
    "RegressionOutput",
    "ServingInputReceiver",
    "TensorSpec",
    "build_raw_serving_input_receiver_fn",
    "load",
    "load_safetensors",
    "save_safetensors",
    "write_tensorflow_saved_model",
}
SUMMARY = {
    "Sink",
    "SummaryWriter",
    "create_file_writer",
    "histogram",
    "host_call",
    "image",
    "record_if",
    "scalar",
    "text",
}
TF = {
    "CheckpointReader",
    "batch_norm",
    "dense",
    "depthwise_conv",
    "embedding",
    "init_from_checkpoint",
    "keras_lstm",
    "layer_norm",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "rnn_cell_lstm",
}
SUBMODULES = {"checkpoint", "export", "hooks", "inputs", "metrics", "optim", "summary"}
LOADED_ON_USE = ["orbax", "tensorboardX", "tensorboard", "tensorflow", "sklearn", "PIL", "tqdm"]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (jaxspec, NAMES),
        (jaxspec.checkpoint.tf, TF),
        (jaxspec.export, EXPORT),
        (jaxspec.hooks, HOOKS),
        (jaxspec.summary, SUMMARY),
    ],
    ids=["jaxspec", "jaxspec.checkpoint.tf", "jaxspec.export", "jaxspec.hooks", "jaxspec.summary"],
)
def test_a_module_exports_these_names_and_no_others(module, names):
    # The files of a package are attributes of it, too, as with any package; they are not exported.
    exported = {
        name
        for name, value in attributes(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert exported == names


def attributes(module):
    """All attributes of a module. Those of `jaxspec` are imported at their first use."""
    return {name: getattr(module, name) for name in dir(module)}


def test_the_public_submodules_are_imported_with_the_package():
    modules = {name: value for name, value in attributes(jaxspec).items() if isinstance(value, types.ModuleType)}
    assert modules.keys() >= SUBMODULES
    assert all(module.__name__ == f"jaxspec.{name}" for name, module in modules.items())


@pytest.mark.parametrize("name", sorted(NAMES - {"SHARD_AXIS", "Mode"}) + sorted(f"hooks.{name}" for name in HOOKS))
def test_every_exported_name_has_a_docstring(name):
    assert operator.attrgetter(name)(jaxspec).__doc__


def loaded_by(code):
    """Which of LOADED_ON_USE a new Python has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*[name for name in {LOADED_ON_USE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_nothing_that_is_only_sometimes_needed():
    assert loaded_by("import jaxspec") == []


def test_the_test_above_can_fail(tmp_path):
    code = f"import jaxspec; jaxspec.summary.create_file_writer({str(tmp_path)!r}).scalar('x', 1.0, 0)"
    assert "tensorboardX" in loaded_by(code)
