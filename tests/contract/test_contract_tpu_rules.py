"""TPUEstimator's rules on devices: batch sizes, checks at the start of a call, loops and checkpoints."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import contract_batches
import contract_models
import jax
import pytest
from contract_differences import ACCEPTED, LEFT_OUT, LOOPS, PER_HOST_V2, TPU_RULES, difference
from contract_values import load_cases, other_recordings

import jaxspec as js

CASES = load_cases("tpu_rules")
BATCH = [case for case in CASES if case["name"].startswith("batch/")]
CHECKS = [case for case in CASES if "call" in case]
LOOP = [case for case in CASES if case["name"].startswith("loops/")]


def by_name(cases):
    """The cases as test parameters, with their names."""
    return [pytest.param(case, id=case["name"]) for case in cases]


def replayed(cases):
    """Those that no rule takes."""
    return [case for case in cases if difference(case, TPU_RULES) is None]


def listed(cases):
    """The others."""
    return [case for case in cases if difference(case, TPU_RULES) is not None]


# Batch sizes.


def expected_batch(case, mode):
    """What is recorded, but for the batch size of input_fn in PER_HOST_V2."""
    expected = dict(case["expect"][mode])
    if "raises" not in expected and case["per_host_input_for_training"] == "PER_HOST_V2":
        assert PER_HOST_V2
        verb = {"train": "train", "eval": "eval", "infer": "predict"}[mode]
        expected["input_fn params batch_size"] = case[f"{verb}_batch_size"] // case["num_hosts"]
    return expected


def assert_batch(case, mode, seen):
    """What was seen is what is recorded; of a refusal, its type and the numbers and names in its message."""
    expected = expected_batch(case, mode)
    if "raises" not in expected:
        assert seen == expected, (case["name"], mode)
        return
    classes, message = seen["raises"]
    assert expected["raises"]["type"] in classes, (case["name"], mode, message)
    verb = {"train": "train", "eval": "eval", "infer": "predict"}[mode]
    size = case[f"{verb}_batch_size"]
    named = [f"{verb}_batch_size"] if size is None else [verb, str(size), str(case["num_cores"])]
    assert all(word in message for word in named), message


def has_devices(case):
    """Whether this process has a device for each core of the case."""
    return case["num_cores"] <= len(jax.devices())


@pytest.mark.parametrize("mode", contract_batches.MODES)
@pytest.mark.parametrize("case", by_name(case for case in replayed(BATCH) if has_devices(case)))
def test_batch_sizes(case, mode, tmp_path):
    assert_batch(case, mode, contract_batches.observe(case, mode, str(tmp_path)))


@pytest.mark.slow(reason="a process of its own for each larger number of devices")
def test_batch_sizes_on_more_cores():
    """The same in a process of its own for each larger number of cores, with virtual devices."""
    larger = collections.defaultdict(list)
    for case in replayed(BATCH):
        if not has_devices(case):
            larger[case["num_cores"]].append(case)
    for cores, cases in larger.items():
        done = subprocess.run(
            [sys.executable, contract_batches.__file__],
            input=json.dumps(cases),
            env={**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={cores}"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        for case in cases:
            for mode in contract_batches.MODES:
                assert_batch(case, mode, seen[case["name"]][mode])


@pytest.mark.parametrize("case", by_name(listed(BATCH)))
def test_batch_sizes_different_as_listed(case, tmp_path):
    _, rule = difference(case, TPU_RULES)
    if rule.ours == LEFT_OUT:
        assert case["num_hosts"] != 1
        return
    with pytest.raises(rule.ours, match=r"PER_SHARD|BROADCAST|SLICED"):
        contract_batches.make_estimator(case, contract_models.model_fn, str(tmp_path))


SIZES = [(64, 32, 16), (24, 10, 8), (12, 8, None)]


@pytest.mark.parametrize("kind", ["PER_HOST_V1", "PER_HOST_V2"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("mode", contract_batches.MODES)
def test_batch_sizes_on_four_cores(mode, sizes, kind, tmp_path):
    """The recorded rules on as many devices as there are, four: the same arithmetic with other numbers."""
    case = dict(
        zip(("train_batch_size", "eval_batch_size", "predict_batch_size"), sizes, strict=True),
        name="batch/4cores",
        num_cores=4,
        num_hosts=1,
        per_host_input_for_training=kind,
        eval_training_input_configuration="PER_HOST_V1",
    )
    size = sizes[contract_batches.MODES.index(mode)]
    case["expect"] = {mode: {"raises": {"type": "ValueError"}}}
    if size is not None and size % 4 == 0:
        case["expect"][mode] = {
            "input_fn params batch_size": size,
            "model_fn params batch_size": size // 4,
            "input_fn calls": 1,
            "replicas fed by one call": 4,
            "num_replicas": 4,
        }
    assert_batch(case, mode, contract_batches.observe(case, mode, str(tmp_path)))


# Checks at the start of a call.


def call(case, model_dir):
    """Does what the case says; `num_shards` is as many too many, or too few, as it was there."""
    tpu_config = dict(case["tpu_config"])
    if tpu_config.get("num_shards"):
        tpu_config["num_shards"] += len(jax.devices()) - case["num_cores"]
    estimator = js.TPUEstimator(
        contract_models.model_fn,
        contract_models.init_fn,
        model_dir=model_dir,
        config=js.RunConfig(js.TPUConfig(**tpu_config)),
        train_batch_size=case.get("train_batch_size"),
        eval_batch_size=case.get("eval_batch_size"),
    )

    def input_fn(params):
        return contract_models.batches(params["batch_size"], 3)

    return estimator, getattr(estimator, case["call"])(input_fn, **case["call_kwargs"])


@pytest.mark.parametrize("case", by_name(replayed(CHECKS)))
def test_checks_of_a_call(case, tmp_path):
    expected = case["expect"]["raises"]
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        call(case, str(tmp_path))
    assert expected["type"] in [cls.__name__ for cls in type(caught.value).__mro__]
    given = {**case["tpu_config"], **case["call_kwargs"]}
    assert any(name in str(caught.value) for name in given)


@pytest.mark.parametrize("case", by_name(listed(CHECKS)))
def test_checks_different_as_listed(case, tmp_path):
    _, rule = difference(case, TPU_RULES)
    if rule.ours == LEFT_OUT:
        assert case["num_cores"] == 0
        return
    assert rule.ours == ACCEPTED
    estimator, result = call(case, str(tmp_path))
    if case["call"] == "train":
        wanted = case["call_kwargs"].get("steps") or case["call_kwargs"].get("max_steps") or 3
        assert contract_models.global_step(estimator) == wanted
    else:
        assert result["mean_x"] == pytest.approx(1.0)  # of all three batches: 0, 1 and 2


def fewer_shards():
    """A case like the recorded one where num_shards is not the number of cores, with too few instead."""
    tpu_config = {"num_shards": 6}
    return {
        "name": "train check/fewer shards than cores",
        "num_cores": 8,
        "tpu_config": tpu_config,
        "train_batch_size": 64,
        "call": "train",
        "call_kwargs": {"steps": 1},
    }


def test_fewer_shards_than_devices(tmp_path):
    """TensorFlow refuses any num_shards but the number of cores; here it chooses."""
    assert difference(fewer_shards(), TPU_RULES)[1].ours == ACCEPTED
    estimator, _ = call(fewer_shards(), str(tmp_path))
    assert contract_models.global_step(estimator) == 1


# Loops and checkpoints.


def due_steps(case, start, stop):
    """The steps inside the run at which a checkpoint is due: multiples, counted from its start."""
    return list(range(start + case["save_checkpoints_steps"], stop, case["save_checkpoints_steps"]))


def exact(case):
    """(loop lengths, checkpoints) when loops end exactly where a checkpoint or the last step is due."""
    start = case["start_global_step"]
    stop = case["max_steps"] if case["steps"] is None else start + case["steps"]
    due = due_steps(case, start, stop)
    lengths, step = [], start
    while step < stop:
        end = min([step + case["iterations_per_loop"], stop, *(d for d in due if d > step)])
        lengths.append(end - step)
        step = end
    return lengths, [start, *due, stop]


def loops_end_when_due(case):
    """Whether the recorded loops end at every due step, so that nothing differs."""
    ends = case["expect"]["global_step after each run"]
    return set(due_steps(case, case["start_global_step"], ends[-1])) <= set(ends)


class LoopLengths(js.hooks.SessionRunHook):
    """Notes the steps of every loop."""

    def __init__(self):
        self.lengths = []

    def after_run(self, run_context, run_values):
        self.lengths.append(run_context.last_step - run_context.first_step + 1)


def train_noting_loops(estimator, input_fn, **kwargs):
    """Trains; returns the lengths of the loops."""
    hook = LoopLengths()
    estimator.train(input_fn, hooks=[hook], **kwargs)
    return hook.lengths


def make_loop_estimator(model_dir, iterations, save_steps):
    """An estimator of the counting model on one device that keeps all checkpoints."""
    return js.TPUEstimator(
        contract_models.model_fn,
        contract_models.init_fn,
        model_dir=model_dir,
        config=js.RunConfig(
            js.TPUConfig(iterations_per_loop=iterations, num_shards=1),
            save_checkpoints_steps=save_steps,
            keep_checkpoint_max=None,
        ),
        train_batch_size=2,
    )


def checkpoints(model_dir):
    """The steps of the checkpoints in a directory."""
    return sorted(int(path.name.rpartition("-")[2]) for path in pathlib.Path(model_dir).glob("model.ckpt-*"))


@pytest.mark.parametrize("case", by_name(LOOP))
def test_loops_and_checkpoints(case, tmp_path):
    """As recorded where the recorded loops end at every due step; exactly on the due steps everywhere."""
    start = case["start_global_step"]

    def input_fn():
        return contract_models.batches(2, case["max_steps"] or start + case["steps"])

    if start:
        make_loop_estimator(str(tmp_path), start, 2 * start).train(input_fn, steps=start)
    before = checkpoints(tmp_path)
    estimator = make_loop_estimator(str(tmp_path), case["iterations_per_loop"], case["save_checkpoints_steps"])
    lengths = train_noting_loops(estimator, input_fn, steps=case["steps"], max_steps=case["max_steps"])
    written = sorted(set(checkpoints(tmp_path)) - set(before) | {start})
    assert start in checkpoints(tmp_path)
    assert (lengths, written) == exact(case)
    if loops_end_when_due(case):
        assert lengths == case["expect"]["steps in each loop"]
        assert written == case["expect"]["checkpoints written"]
    else:
        assert LOOPS
        assert sum(lengths) == sum(case["expect"]["steps in each loop"])


# The list.


def test_every_case_is_replayed_or_listed():
    """Nothing is dropped in silence."""
    assert len(BATCH) + len(CHECKS) + len(LOOP) == len(CASES)
    assert not listed(LOOP)


@pytest.mark.skipif(bool(other_recordings("tpu_rules")), reason="other recordings may lack a case")
def test_no_rule_is_idle():
    """Every difference that is listed is one that was recorded."""
    used = {difference(case, TPU_RULES)[0] for case in [*listed(CASES), fewer_shards()]}
    assert used == set(TPU_RULES)
    assert any(not loops_end_when_due(case) for case in LOOP)
    assert any(loops_end_when_due(case) for case in LOOP)
