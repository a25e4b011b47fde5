"""An estimator with all its verbs, hooks, a RunConfig, and inputs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from a_model import Net, model_fn

import jaxspec as js

X, Y = np.zeros((8, 4), np.float32), np.zeros(8, np.int32)


class CountingHook(js.hooks.SessionRunHook):
    def begin(self) -> None:
        self.loops = 0

    def after_create_session(self, session: js.hooks.TrainingSession, coord: object) -> None:
        assert_type(session.global_step, int)
        session.save_checkpoint("elsewhere")

    def before_run(self, run_context: js.hooks.SessionRunContext) -> js.hooks.SessionRunArgs:
        return js.hooks.SessionRunArgs({"loss": "loss", "more": ["global_step"]})

    def after_run(self, run_context: js.hooks.SessionRunContext, run_values: js.hooks.SessionRunValues) -> None:
        self.loops += 1
        assert_type(run_context.last_step, int)
        if run_values.results["loss"] > 3:
            run_context.request_stop()

    def end(self, session: js.hooks.Session) -> None:
        loss = session.loss
        assert_type(loss, float | None)


class Listener(js.hooks.CheckpointSaverListener):
    def after_save(self, session: js.hooks.TrainingSession, global_step: int) -> bool:
        return global_step > 100


class Batches:
    """An iterator of batches that reports its position."""

    def __init__(self) -> None:
        self.number = 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        self.number += 1
        return X, Y

    def get_state(self) -> int:
        return self.number

    def set_state(self, state: int) -> None:
        self.number = state


def input_fn(params: Mapping[str, Any], mode: js.Mode) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield X[: params["batch_size"]], Y[: params["batch_size"]]


class EveryTime(js.Exporter):
    @property
    def name(self) -> str:
        return "every_time"

    def export(
        self,
        estimator: js.TPUEstimator,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> str | None:
        return None


config = js.RunConfig(
    js.TPUConfig(iterations_per_loop="30s", num_shards=1),
    tf_random_seed=1,
    save_checkpoints_steps=100,
    keep_checkpoint_max=None,
)
assert_type(config.replace(model_dir="runs/other"), js.RunConfig)

estimator = js.TPUEstimator(
    model_fn, Net(), model_dir="runs/here", config=config, params={"learning_rate": 0.1}, train_batch_size=8
)
assert_type(estimator.train(input_fn, steps=3), js.TPUEstimator)
estimator.train(lambda: Batches(), hooks=[CountingHook()], max_steps=10, saving_listeners=[Listener()])
estimator.train(js.inputs.numpy_input_fn({"x": X}, Y, num_epochs=None, shuffle=True))
metrics = estimator.evaluate(input_fn, steps=None, name="test")
print(metrics["loss"] + metrics["accuracy"])
for prediction in estimator.predict(js.inputs.numpy_input_fn(X), predict_keys="class"):
    print(prediction["class"])
assert_type(estimator.latest_checkpoint(), str | None)
assert_type(estimator.get_variable_names(), list[str])
assert_type(estimator.save(), str)
estimator.get_variable_value("params/Dense_0/kernel").mean()
assert_type(estimator.eval_dir(), str)
assert_type(estimator.config, js.RunConfig)

train_spec = js.TrainSpec(input_fn, max_steps=100, hooks=[CountingHook()])
eval_spec = js.EvalSpec(
    input_fn, exporters=[EveryTime(), js.LatestExporter("latest", js.export.build_raw_serving_input_receiver_fn(X))]
)
results, exports = js.train_and_evaluate(estimator, train_spec, eval_spec)
if results is not None:
    print(results["loss"])
for path in js.checkpoints_iterator("runs/here", timeout=10):
    assert_type(path, str)
assert_type(js.load_global_step("runs/here"), int)

weights = js.checkpoint.load_variables(Path("runs/here/model.ckpt-3"), ["params/Dense_0/kernel"])
js.export.save_safetensors(Path("weights.safetensors"), weights, {"params/Dense_0/kernel": {"fc.weight": np.transpose}})
settings = js.WarmStartSettings(
    Path("weights.safetensors"), ["params/Dense_0/"], {"params/Dense_0/kernel": "fc.weight"}
)
warm = js.TPUEstimator(model_fn, Net(), warm_start_from=settings)
assert_type(warm.warm_start_report, js.WarmStartReport | None)
js.Scaffold(js.init_from_checkpoint(Path("runs/here"), {"params/Dense_0/": "params/Dense_1/"}))
