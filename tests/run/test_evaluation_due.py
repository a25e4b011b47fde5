"""A run that was ended between a checkpoint and its evaluation, or its exports, makes up for it when it starts
again."""

import os

import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec.checkpoint import checkpoint_steps
from jaxspec.hooks import read_eval_metrics


class Killed(BaseException):
    """Stands for the end of the process: nothing that follows is done."""


def estimator(model_dir, save=4):
    """A new one each time, as in a new process."""
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size"), 4)
    return js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=model_dir,
        config=run_config(save=save, every=2, num_shards=1),
        **sizes,
    )


class Exports(js.Exporter):
    name = "exports"

    def __init__(self, kill_at=None):
        self.kill_at, self.steps, self.final = kill_at, [], []

    def export(self, estimator, export_path, checkpoint_path, eval_result, is_the_final_export):
        if eval_result["global_step"] == self.kill_at:
            raise Killed
        assert checkpoint_path.endswith(f"model.ckpt-{eval_result['global_step']}")
        self.steps.append(eval_result["global_step"])
        self.final.append(is_the_final_export)
        return eval_result["global_step"]


def run(model_dir, *, exports=None, kill_evaluation=None, max_steps=8, **kwargs):
    """train_and_evaluate; the evaluation with this number, from 1, is killed in its input."""
    begun = []

    def eval_input():
        begun.append(True)
        yield from counting_input(1)()
        if len(begun) == kill_evaluation:
            raise Killed
        yield from counting_input(1)()

    spec = {"steps": None, "throttle_secs": 0, "exporters": exports or Exports(), **kwargs}
    return js.train_and_evaluate(
        estimator(model_dir), js.TrainSpec(counting_input(), max_steps), js.EvalSpec(eval_input, **spec)
    )


def evaluated(model_dir, name="eval"):
    return list(read_eval_metrics(os.path.join(model_dir, name)))


@pytest.mark.parametrize("number", [1, 2])
def test_the_evaluation_that_was_killed_is_made_first(tmp_path, caplog, number):
    with pytest.raises(Killed):
        run(tmp_path, kill_evaluation=number)
    assert checkpoint_steps(tmp_path) == [0, 4, 8][: number + 1]
    assert evaluated(tmp_path) == [4, 8][: number - 1]
    exports = Exports()
    metrics, exported = run(tmp_path, exports=exports)
    assert "ended before it had evaluated and exported" in caplog.text
    assert (metrics["global_step"], exported) == (8, [8])
    assert evaluated(tmp_path) == [4, 8]
    assert exports.steps == [4, 8][number - 1 :]
    assert exports.final == [False, True][number - 1 :]
    # All is done: a third start finds nothing to do.
    assert run(tmp_path) == (None, None)


def test_an_export_that_is_missing_is_made_after_its_evaluation(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, exports=Exports(kill_at=8))
    exports = Exports()
    assert run(tmp_path, exports=exports)[1] == [8]
    assert (exports.steps, exports.final) == ([8], [True])


def test_a_signal_in_an_evaluation_leaves_it_to_the_next_start(tmp_path):
    import signal

    def interrupted_input():
        yield from counting_input(1)()
        os.kill(os.getpid(), signal.SIGINT)
        yield from counting_input()()

    with pytest.raises(KeyboardInterrupt):
        js.train_and_evaluate(
            estimator(tmp_path),
            js.TrainSpec(counting_input(), 8),
            js.EvalSpec(interrupted_input, steps=None, throttle_secs=0),
        )
    assert checkpoint_steps(tmp_path) == [0, 4]
    exports = Exports()
    run(tmp_path, exports=exports)
    assert exports.steps == [4, 8]


def test_a_kill_between_the_last_checkpoint_and_its_evaluation_although_it_was_throttled(tmp_path, monkeypatch):
    """The last checkpoint is evaluated whatever throttle_secs says: it is not forgotten either."""

    class KilledThere(js.hooks.CheckpointSaverListener):
        def after_save(self, session, global_step):
            if global_step == 8:
                raise Killed

    with pytest.raises(Killed):
        js.train_and_evaluate(
            estimator(tmp_path),
            js.TrainSpec(counting_input(), 8, saving_listeners=[KilledThere()]),
            js.EvalSpec(counting_input(2), throttle_secs=600),
        )
    assert evaluated(tmp_path) == [4]
    exports = Exports()
    assert run(tmp_path, exports=exports)[0]["global_step"] == 8
    assert (exports.steps, exports.final) == ([8], [True])


def test_checkpoints_that_were_never_to_be_evaluated_are_not(tmp_path):
    estimator(tmp_path).train(counting_input(), max_steps=4)
    exports = Exports()
    run(tmp_path, exports=exports)
    assert exports.steps == [8]
    # Throttled ones: 4 is evaluated, 8 is not, and the run is stopped there.
    other = tmp_path / "throttled"

    class KilledLater(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.session.global_step == 10:
                raise Killed

    with pytest.raises(Killed):
        js.train_and_evaluate(
            estimator(other),
            js.TrainSpec(counting_input(), 100, hooks=[KilledLater()]),
            js.EvalSpec(counting_input(2), throttle_secs=600),
        )
    assert checkpoint_steps(other) == [0, 4, 8]
    exports = Exports()
    run(other, exports=exports, max_steps=12)
    assert exports.steps == [12]


def test_each_evaluation_by_name_has_a_note_of_its_own(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_evaluation=2, name="one")
    exports = Exports()
    assert run(tmp_path, exports=exports, name="other") == (None, None)
    assert run(tmp_path, exports=exports, name="one")[0]["global_step"] == 8
    assert evaluated(tmp_path, "eval_one") == [4, 8]
