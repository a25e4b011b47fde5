"""estimator.save: a checkpoint without training."""

import numpy as np
import pytest
from tiny_models import Net, batches, counting_init, counting_input, counting_model_fn, data, net_model_fn, run_config

import jaxspec as js
from jaxspec._src.base.errors import NanLossDuringTrainingError


def counting_estimator(model_dir, init_fn=counting_init, model_fn=counting_model_fn, **kwargs):
    sizes = dict(train_batch_size=4, eval_batch_size=4, predict_batch_size=4)
    config = kwargs.pop("config", run_config(num_shards=2))
    return js.TPUEstimator(model_fn, init_fn, model_dir=model_dir, config=config, **sizes, **kwargs)


def test_fresh_variables_are_saved_and_training_goes_on_as_without(tmp_path):
    x, y = data(rows=8)

    def trained(model_dir, *, save):
        made = counting_estimator(model_dir, Net(), net_model_fn, params={"a": 1}, config=run_config(2))
        if save:
            path = made.save(lambda: batches(x, y, size=4))
            assert path == made.latest_checkpoint()
            assert js.checkpoint.load_global_step(str(model_dir)) == 0
            made = counting_estimator(model_dir, Net(), net_model_fn, params={"a": 1}, config=run_config(2))
        made.train(lambda: batches(x, y, size=4))
        return made.variables()

    saved, plain = (trained(tmp_path / str(save), save=save) for save in (True, False))
    np.testing.assert_equal(saved, plain)


def test_the_estimator_itself_goes_on_too_without_a_warning(tmp_path, caplog):
    made = counting_estimator(tmp_path)
    path = made.save(counting_input())
    assert made.save() == path  # there is one already
    assert made.get_variable_value("params/w") == 0
    made.train(counting_input(), steps=2)
    assert made.get_variable_value("params/w") == 2
    assert caplog.messages == []


def test_scaffold_and_warm_start_are_in_it(tmp_path):
    first = counting_estimator(tmp_path / "first")
    first.train(counting_input(), steps=3)
    source = first.save()

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        init_fn = lambda variables: {"params": {"w": variables["params"]["w"] + 10}}  # noqa: E731
        return spec._replace(scaffold_fn=lambda: js.Scaffold(init_fn))

    made = counting_estimator(tmp_path / "second", model_fn=model_fn, warm_start_from=source)
    assert js.checkpoint.read_array(made.save(counting_input()), "params/w") == 13


def test_the_state_in_memory_is_saved_with_its_step(tmp_path):
    made = counting_estimator(tmp_path)
    made.train(counting_input(), steps=3)
    assert made.latest_checkpoint() is None
    assert made.save() == made.latest_checkpoint() == made.save()
    again = counting_estimator(tmp_path)
    assert (again.get_variable_value("params/w"), again.get_variable_value("global_step")) == (3, 3)
    made.train(counting_input(), steps=1)
    assert made.get_variable_value("params/w") == 4


def test_the_batch_of_an_iterator_that_the_caller_holds_is_not_lost(tmp_path):
    made, batch = counting_estimator(tmp_path), counting_input(2)()
    made.save(lambda: batch)
    made.train(lambda: batch)
    assert made.get_variable_value("global_step") == 2


def test_it_is_refused_without_an_input_within_training_and_for_nan(tmp_path, monkeypatch):
    made = counting_estimator(tmp_path)
    with pytest.raises(ValueError, match=r"save: there are no variables yet.*estimator\.save\(input_fn\)"):
        made.save()
    with pytest.raises(ValueError, match="save: input_fn .* yielded no batch"):
        made.save(list)

    class Saving(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            with pytest.raises(RuntimeError, match="save was called while this estimator is training"):
                made.save()

    made.train(counting_input(), steps=1, hooks=[Saving()])
    bad = counting_estimator(tmp_path / "bad", lambda: {"params": {"w": np.float32(np.nan)}})
    with pytest.raises(NanLossDuringTrainingError, match="params/w"):
        bad.save(counting_input())
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(RuntimeError, match="save writes with one process, and this is one of 2"):
        made.save()
