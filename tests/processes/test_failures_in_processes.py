"""What happens in the other process when one fails, or has less input: all end alike, and stay usable."""

import re

import pytest

pytestmark = pytest.mark.slow(reason="starts programs of several processes")


@pytest.fixture(scope="module")
def ended(programs, tmp_path_factory):
    """What each process left of the program `failures`."""
    with programs.run(tmp_path_factory.mktemp("failures"), "training_programs:failures", timeout=180) as program:
        return program.results()


@pytest.fixture
def outcomes(ended):
    """The outcomes of all calls by name, in each process."""
    return [result["outcomes"] for result in ended]


def test_training_ends_in_all_processes_when_the_input_of_one_ends(outcomes):
    for outcome in outcomes:
        assert outcome["good"]["value"] == 20
        assert outcome["ends_early"]["value"] == 17


@pytest.mark.parametrize(
    ("name", "failing", "error", "text", "at"),
    [
        ("no_training_input", 1, "ValueError", "Training made no steps: input_fn", "train"),
        ("input_breaks", 1, "ValueError", "no more of this file", "global step 5"),
        ("hook_breaks", 1, "ValueError", "the hook broke", "global step 5"),
        ("host_call_breaks", 0, "ValueError", "host_call broke", "global step"),
        ("metric_breaks", 1, "ValueError", "metric_fn broke", "evaluate"),
    ],
)
def test_the_failing_process_raises_its_own_error_and_the_others_name_it(outcomes, name, failing, error, text, at):
    own, other = outcomes[failing][name], outcomes[1 - failing][name]
    assert own["error"] == error
    assert text in own["text"]
    assert other["error"] == "OtherProcessError"
    assert f"process {failing}" in other["text"]
    assert text in other["text"]
    assert at in other["text"]
    assert own["secs"] < 30
    assert other["secs"] < 30


def test_batches_of_one_step_must_have_the_same_shapes_in_all_processes(outcomes):
    for outcome in outcomes:
        assert outcome["shapes_change_in_both"]["value"] == 20
        assert outcome["shapes_change_in_one"]["error"] == "ValueError"
        text = outcome["shapes_change_in_one"]["text"]
        assert "at global step 7 the processes have batches of different shapes" in text
        assert re.search(r"process 0: features/columns: float32\[\d+,4,\d+,2\].*process 1: .*,3\]", text)


@pytest.mark.parametrize("name", ["input_breaks", "hook_breaks", "shapes_change_in_one"])
def test_the_estimator_trains_on_after_a_failure(outcomes, name):
    for outcome in outcomes:
        assert outcome[f"{name}, then again"]["value"] == 20


def test_a_process_may_have_nothing_to_evaluate_or_predict(outcomes):
    first, second = (outcome["evaluation_of_an_empty_part"]["value"] for outcome in outcomes)
    assert first == second
    assert first["mean_x"] == pytest.approx(9.5)  # batches 0 to 19 of process 0
    assert [outcome["prediction_of_an_empty_part"]["value"] for outcome in outcomes] == [40, 0]


def test_after_all_this_everything_works(outcomes):
    for outcome in outcomes:
        assert outcome["good_again"]["value"] == 20
        assert outcome["evaluation"]["value"]["mean_x"] == pytest.approx(1.5)


def test_nothing_outlives_the_calls(ended):
    for result in ended:
        before, after = result["opened"]
        assert before["threads"] == after["threads"] == []
        assert after["files"] == before["files"]


@pytest.mark.parametrize(
    ("what", "field"), [("seed", "seed"), ("model_dir", "model_dir"), ("rows", "rows"), ("model_fn", "model")]
)
def test_processes_that_are_not_started_alike_are_refused(programs, tmp_path, what, field):
    with programs.run(tmp_path, "training_programs:differ", what=what) as program:
        first, second = program.results()
    for outcome in (first, second):
        assert outcome["error"] in ("ValueError", "OtherProcessError")
        assert field in outcome["text"]
        assert outcome["secs"] < 40


def test_a_coordinator_that_cannot_be_reached_is_an_error_in_the_stated_time(programs, tmp_path):
    with programs.run(tmp_path, "training_programs:unreachable") as program:
        _, outcome = program.results()
    assert outcome["error"] == "RuntimeError"
    assert re.search(
        r"could not be joined.*ConnectionRefusedError.*Is process 0 running, is the address", outcome["text"]
    )
    assert 3 <= outcome["secs"] < 20


@pytest.mark.parametrize("where", ["input_fn", "before_train"])
def test_an_error_that_nobody_catches_ends_all_processes(programs, tmp_path, where):
    with programs.run(tmp_path, "training_programs:fail_for_good", where=where) as program:
        assert program.exit_codes() == [1, 1], program.story()
        assert "ValueError: nobody catches this" in program.log(1)
        assert "process 1" in program.log(0)


def test_a_process_that_does_not_come_is_named_in_the_stated_time(programs, tmp_path):
    with programs.run(tmp_path, "training_programs:hang") as program:
        program.wait_for_log("process 1 did not come", process=0)
