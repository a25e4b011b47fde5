"""Training on torchdata's StatefulDataLoader goes on, after a restart, with the batch that follows.

`make test-torch` installs torch and runs these.
"""

import multiprocessing

import numbered_rows
import numpy as np
import pytest
from tiny_models import counting_init, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.data.position import decode_position, encode_position

torch = pytest.importorskip("torch", reason="torch is large; `make test-torch` installs it")
stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it

WORKERS = [0, pytest.param(2, marks=pytest.mark.slow(reason="torch starts processes, which import it again"))]


def loader(workers=0, **kwargs):
    """One epoch of 16 batches."""
    torch.manual_seed(3)  # of the order, if it is shuffled: a restart gets it from the state, whatever the seed is then
    return stateful_dataloader.StatefulDataLoader(
        numbered_rows.Rows(),
        batch_size=numbered_rows.BATCH,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        **{"shuffle": True, **kwargs},
    )


@pytest.mark.parametrize("workers", WORKERS)
def test_training_goes_on_with_the_batch_that_follows(workers, tmp_path, caplog):
    def again():
        made = loader(workers)
        torch.manual_seed(len(made))
        return made

    undisturbed = numbered_rows.train_in_parts(tmp_path, lambda: loader(workers), [14])
    assert len({tuple(batch) for batch in undisturbed}) == 14
    assert undisturbed[0] != [0, 1, 2, 3]
    assert numbered_rows.train_in_parts(tmp_path, again, [3, 4, 11, 14]) == undisturbed
    assert "not the one before" not in caplog.text
    assert "begins again" not in caplog.text
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("held", ["loader", "iterator", "neither"])
def test_in_one_process_training_goes_on_whoever_holds_the_loader(held, tmp_path, caplog):
    seen, made = [], loader(shuffle=False)
    batches = iter(made)
    input_fn = {"loader": lambda: made, "iterator": lambda: batches, "neither": lambda: loader(shuffle=False)}[held]

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=(lambda x: seen.append(float(x[0])), [features["x"]]))

    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, config=run_config(num_shards=1), train_batch_size=4
    )
    for steps in (3, 1, 5):
        estimator.train(input_fn, steps=steps)
    assert seen == [4 * i for i in range(9)]
    estimator.train(input_fn)
    assert seen == [4 * i for i in range(16)]
    assert "begins again" not in caplog.text
    if held != "iterator":
        estimator.train(input_fn, steps=2)
        assert seen[16:] == [0, 4]


@pytest.mark.parametrize("workers", WORKERS)
def test_the_state_of_a_loader_comes_back_as_it_was(workers):
    made = loader(workers)
    batches = iter(made)
    next(batches)
    state = made.state_dict()
    text = encode_position(state)
    expected = [batch["x"].tolist() for batch in batches]
    made.load_state_dict(decode_position(text))
    assert [batch["x"].tolist() for batch in made] == expected
    assert encode_position(decode_position(text)) == text


def test_tensors_come_back_as_tensors():
    tensor = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    back = decode_position(encode_position({0: tensor}))[0]
    assert isinstance(back, torch.Tensor)
    assert back.dtype == tensor.dtype
    np.testing.assert_array_equal(back, tensor)


def test_an_iterator_of_several_processes_cannot_be_set_and_the_warning_names_the_loader(tmp_path, caplog):
    class Batches:
        """As `iter(StatefulDataLoader(num_workers=2))`, which has one of the two methods."""

        def __init__(self):
            self.batches = iter(loader())

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.batches)

        def state_dict(self):
            return self.batches.state_dict()

    numbered_rows.train_in_parts(tmp_path, Batches, [2, 3])
    assert "StatefulDataLoader (the loader, not iter(loader))" in caplog.text
