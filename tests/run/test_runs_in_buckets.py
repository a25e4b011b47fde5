"""A run whose model_dir is in a bucket: trained, killed, resumed, evaluated elsewhere, and refused before it begins."""

import os
import signal
import subprocess
import sys

import digits
import pytest
from bucket_servers import NO_ACCESS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.base import buckets


def estimator(model_dir, **config):
    return js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=model_dir, use_tpu=False, config=run_config(**{"save": 2, **config})
    )


def test_training_evaluating_and_exporting_work_as_in_a_directory(bucket):
    made = estimator(bucket.directory)
    stop = js.hooks.stop_if_higher_hook(made, "loss", 1e9, run_every_secs=None, run_every_steps=2)
    results, _ = js.train_and_evaluate(
        made,
        js.TrainSpec(counting_input(), max_steps=4, hooks=[stop]),
        js.EvalSpec(counting_input(2), steps=None, throttle_secs=0),
    )
    assert results["global_step"] == 4
    assert made.latest_checkpoint() == f"{bucket.directory}/model.ckpt-4"
    assert made.eval_dir() == f"{bucket.directory}/eval"
    assert list(js.hooks.read_eval_metrics(made.eval_dir())) == [2, 4]
    assert {name.split("/")[0] for name in buckets.objects_under(bucket.directory) if "tfevents" not in name} == {
        *(f"model.ckpt-{step}" for step in (0, 2, 4))
    }
    another = estimator(bucket.directory)
    assert another.get_variable_value("params/w") == made.get_variable_value("params/w")
    assert another.evaluate(counting_input(2), checkpoint_path=f"{bucket.directory}/model.ckpt-2")["global_step"] == 2
    another.train(counting_input(), max_steps=6)
    assert js.load_global_step(bucket.directory) == 6


def test_a_bucket_that_cannot_be_written_is_refused_before_training(bucket):
    def input_fn():
        raise AssertionError("the input must not be opened")

    bucket.fail(NO_ACCESS[bucket.scheme], methods=("POST", "PUT"))
    match = f"checkpoints cannot be written to {bucket.directory}: .*no access for you.*Nothing was trained"
    with pytest.raises(PermissionError, match=match):
        estimator(bucket.directory).train(input_fn, max_steps=4)
    bucket.works_again()
    missing = f"{bucket.scheme}://no-such-bucket/run"
    with pytest.raises(FileNotFoundError, match=f"there is no such bucket.*{missing}"):
        estimator(missing).train(input_fn, max_steps=4)


_TRAIN = """
import sys, jax, digits
jax.config.update("jax_num_cpu_devices", 1)
print(digits.main(steps=int(sys.argv[2]), shards=1, model_dir=sys.argv[1])["accuracy"])
"""


def child(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow("three processes compile and train a network for images")
def test_digits_is_killed_resumes_and_is_evaluated_in_another_process(bucket):
    killed = child(_TRAIN, bucket.directory, "400")
    bucket.at(("POST", "PUT"), "model.ckpt-200", lambda: os.kill(killed.pid, signal.SIGKILL))
    try:
        out, _ = killed.communicate(timeout=300)
    finally:
        killed.kill()
    assert killed.returncode == -signal.SIGKILL, out
    assert js.checkpoint.checkpoint_steps(bucket.directory) == [0]

    done = child(_TRAIN, bucket.directory, "400")
    try:
        out, _ = done.communicate(timeout=300)
    finally:
        done.kill()
    assert done.returncode == 0, out
    assert js.checkpoint.checkpoint_steps(bucket.directory) == [0, 200, 400]
    assert float(out.split()[-1]) > 0.95

    # This process has not trained.
    (_, test) = digits.load_digits()
    reader = js.TPUEstimator(
        digits.model_fn,
        digits.INIT_FN,
        model_dir=bucket.directory,
        params=digits.PARAMS,
        config=js.RunConfig(tpu_config=js.TPUConfig(num_shards=1)),
        eval_batch_size=64,
    )
    results = reader.evaluate(js.inputs.numpy_input_fn(*test))
    assert results["global_step"] == 400
    assert results["accuracy"] == pytest.approx(float(out.split()[-1]))

    events = EventAccumulator(bucket.directory).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(400))
    evaluations = EventAccumulator(f"{bucket.directory}/eval").Reload()
    assert {event.step for event in evaluations.Scalars("accuracy")} == {200, 400}
