"""RunConfig as a record: replaced, compared, shown, pickled; what TensorFlow's has besides."""

import copy
import dataclasses
import pickle

import pytest

import jaxspec as js

SAVING = [
    {},
    {"save_checkpoints_steps": 5},
    {"save_checkpoints_secs": 60},
    {"save_checkpoints_steps": None},
    {"save_checkpoints_secs": None},
    {"save_checkpoints_steps": None, "save_checkpoints_secs": None},
    {"save_checkpoints_steps": 7, "save_checkpoints_secs": None},
]


def saved(config):
    return config.save_checkpoints_steps, config.save_checkpoints_secs


@pytest.mark.parametrize("before", SAVING, ids=str)
@pytest.mark.parametrize("name", ["save_checkpoints_steps", "save_checkpoints_secs"])
def test_replacing_how_often_to_save_replaces_the_other_way(before, name):
    config = js.RunConfig(**before)
    for replaced in (dataclasses.replace(config, **{name: 9}), config.replace(**{name: 9})):
        assert replaced == js.RunConfig(**{name: 9})
        assert dataclasses.replace(replaced, tf_random_seed=3) == js.RunConfig(**{name: 9}, tf_random_seed=3)


@pytest.mark.parametrize("before", SAVING, ids=str)
@pytest.mark.parametrize("replace", [dataclasses.replace, lambda config, **kwargs: config.replace(**kwargs)])
def test_replacing_another_field_keeps_them(before, replace):
    config = js.RunConfig(**before)
    again = replace(replace(config, tf_random_seed=3), log_step_count_steps=7, tpu_config=js.TPUConfig(num_shards=1))
    assert saved(again) == saved(config)
    assert (again.tf_random_seed, again.log_step_count_steps, again.tpu_config.num_shards) == (3, 7, 1)


@pytest.mark.parametrize("before", SAVING, ids=str)
def test_both_set_is_refused_by_replace_as_by_the_constructor(before):
    message = r"cannot be both set. Got 8 and 9; leave one of them out"
    with pytest.raises(ValueError, match=message):
        js.RunConfig(save_checkpoints_steps=8, save_checkpoints_secs=9)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(js.RunConfig(**before), save_checkpoints_steps=8, save_checkpoints_secs=9)


def test_none_for_both_switches_checkpoints_off():
    config = dataclasses.replace(js.RunConfig(), save_checkpoints_steps=None, save_checkpoints_secs=None)
    assert saved(config) == (None, None)


@pytest.mark.parametrize("before", SAVING, ids=str)
def test_equal_fields_are_equal_configs_whatever_they_were_made_from(before):
    config = js.RunConfig(**before)
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), copy.copy(config), js.RunConfig(**before)):
        assert other == config
        assert hash(other) == hash(config)
        assert repr(other) == repr(config)
    assert dataclasses.replace(pickle.loads(pickle.dumps(config)), save_checkpoints_steps=4) == js.RunConfig(
        save_checkpoints_steps=4
    )
    assert config != dataclasses.replace(config, tf_random_seed=1)


def test_the_repr_names_what_the_constructor_takes():
    config = js.RunConfig(save_checkpoints_steps=5, model_dir="runs/a")
    names = {"InputPipelineConfig": js.InputPipelineConfig, "RunConfig": js.RunConfig, "TPUConfig": js.TPUConfig}
    text = repr(config).replace("<InputPipelineConfig.PER_HOST_V1: 2>", "InputPipelineConfig.PER_HOST_V1")
    assert eval(text, names) == config


@pytest.mark.parametrize("name", ["train_distribute", "eval_distribute", "experimental_distribute"])
def test_an_argument_that_would_change_results_is_refused_with_what_to_write(name):
    with pytest.raises(TypeError, match=rf"'{name}'.*{name}: leave it out.*TPUConfig\(num_shards=\.\.\.\)"):
        js.RunConfig(**{name: "mirrored"}, save_checkpoints_steps=5)


def test_an_argument_that_nobody_has_is_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'save_checkpoint_steps'"):
        js.RunConfig(save_checkpoint_steps=5)
