"""Each row of the table of removed arguments is what a caller reads."""

import pytest

import jaxspec as js
from jaxspec._src.base.removed_arguments import CALLS, IGNORED, REMOVED

ROWS = [(name, argument) for name, removed in REMOVED.items() for argument in removed]


@pytest.mark.parametrize(("name", "argument"), ROWS)
def test_a_call_with_a_removed_argument_says_what_to_write(name, argument):
    with pytest.raises(TypeError) as caught:
        getattr(js, name)(**{argument: None})
    assert str(caught.value).startswith(f"{name}: ")
    assert f"{argument}: {REMOVED[name][argument]}" in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_another_wrong_call_says_how_to_call(name):
    with pytest.raises(TypeError) as caught:
        getattr(js, name)(*range(20))
    assert str(caught.value) == f"{name}: too many positional arguments. {CALLS[name]}"


def test_arguments_of_a_run_config_that_mean_nothing_are_ignored_with_one_log_line(caplog):
    names = IGNORED["RunConfig"]
    config = js.RunConfig(js.TPUConfig(), save_checkpoints_steps=5, **dict.fromkeys(names, "x"))
    assert config == js.RunConfig(save_checkpoints_steps=5)
    config.replace(model_dir="y")
    assert caplog.messages == [f"RunConfig ignores {', '.join(names)}, which mean nothing in JAX: leave them out."]


def test_arguments_of_an_estimator_and_fields_of_a_tpu_config_are_ignored_with_one_log_line_each(tmp_path, caplog):
    fields = IGNORED["TPUConfig"]
    config = js.RunConfig(js.TPUConfig(**dict.fromkeys(fields, 1)), master=None, cluster=None)
    js.TPUEstimator(lambda features: None, model_dir=tmp_path, config=config, eval_on_tpu=False, export_to_tpu=True)
    assert caplog.messages == [
        "TPUEstimator ignores eval_on_tpu, export_to_tpu, which mean nothing in JAX: leave them out.",
        f"TPUConfig ignores {', '.join(fields)}, which mean nothing in JAX: leave them out.",
    ]
