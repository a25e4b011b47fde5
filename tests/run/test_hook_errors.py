"""Errors of hooks come out as themselves and name their hook, wherever they are raised."""

import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec.hooks import SessionRunHook


def counting(model_dir):
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
    return js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=model_dir, config=run_config(save=2, every=2, num_shards=1), **sizes
    )


class Raises(SessionRunHook):
    """Raises an error in one method."""

    def __init__(self, method, error):
        def fail(*args):
            raise error

        setattr(self, method, fail)


@pytest.mark.parametrize("method", ["next_step", "wants_loop_end"])
def test_an_error_in_what_is_asked_about_loops_names_its_hook(tmp_path, method):
    with pytest.raises(ZeroDivisionError) as caught:
        counting(tmp_path).train(counting_input(), steps=4, hooks=[Raises(method, ZeroDivisionError("mine"))])
    assert caught.value.__notes__ == [f"raised by Raises.{method}, in training"]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("method", ["begin", "after_create_session", "end"])
def test_a_stop_iteration_outside_a_loop_is_itself(tmp_path, verb, method):
    hook = Raises(method, StopIteration("mine"))
    with pytest.raises(StopIteration, match="mine") as caught:
        getattr(counting(tmp_path), verb)(counting_input(2), hooks=[hook])
    assert f"raised by Raises.{method}" in caught.value.__notes__[0]


def test_in_a_generator_it_is_pythons_own_answer(tmp_path):
    with pytest.raises(RuntimeError, match="generator raised StopIteration") as caught:
        list(counting(tmp_path).predict(counting_input(2), hooks=[Raises("begin", StopIteration("mine"))]))
    assert "raised by Raises.begin" in caught.value.__cause__.__notes__[0]


def test_a_hook_whose_begin_fails_is_aborted(tmp_path):
    log = []

    class First(SessionRunHook):
        def abort(self):
            log.append("abort")

    with pytest.raises(ValueError, match="mine"):
        counting(tmp_path).train(counting_input(), steps=2, hooks=[First(), Raises("begin", ValueError("mine"))])
    assert log == ["abort"]


def test_an_error_while_a_prediction_is_closed_early_is_told(tmp_path, caplog):
    class Cleans(SessionRunHook):
        def abort(self):
            raise KeyError("cleanup")

    predictions = counting(tmp_path).predict(counting_input(3), hooks=[Cleans()])
    next(predictions)
    predictions.close()
    assert "closed before its end; an error came then, in Cleans.abort: KeyError: 'cleanup'" in caplog.text
