"""numpy_input_fn in several processes: together they yield what one process would."""

import numpy as np
import pytest
from tiny_models import data

import jaxspec as js
from jaxspec._src.base.tpu_context import TPUContext
from jaxspec._src.data.resume import difference, input_identity

X, Y = data(rows=22)


def iterator(host=0, hosts=1, size=4, mode="train", x=X, **kwargs):
    """The input of one process, whose batches have `size` rows."""
    input_fn = js.inputs.numpy_input_fn(x, **kwargs)
    return input_fn({"batch_size": size, "context": TPUContext(4, hosts, host)}, mode)


def side_by_side(hosts, size, **kwargs):
    """The global batches: those of all processes, in their order."""
    parts = [list(iterator(host, hosts, size, **kwargs)) for host in range(hosts)]
    return [np.concatenate(batch) for batch in zip(*parts, strict=True)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("hosts", [2, 4])
def test_the_processes_yield_the_rows_of_the_global_batch_in_their_order(hosts, shuffle):
    alone = list(iterator(size=8, num_epochs=3, shuffle=shuffle))
    assert len(alone) == 8
    together = side_by_side(hosts, 8 // hosts, num_epochs=3, shuffle=shuffle)
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(side_by_side(hosts, None, num_epochs=3, shuffle=shuffle, batch_size=8), alone)


@pytest.mark.parametrize(("hosts", "sizes"), [(2, [[8, 6], [8]]), (4, [[4, 4], [4, 2], [4], [4]])])
@pytest.mark.parametrize("mode", ["eval", "infer"])
def test_each_example_of_a_short_last_batch_is_given_once_over_all_processes(hosts, sizes, mode):
    parts = [list(iterator(host, hosts, 16 // hosts, mode)) for host in range(hosts)]
    assert [[len(batch) for batch in part] for part in parts] == sizes
    rows = np.concatenate([batch for part in parts for batch in part])
    np.testing.assert_array_equal(np.sort(rows, 0), np.sort(X, 0))


def test_a_process_may_have_no_example_in_evaluation():
    assert [len(batch) for batch in iterator(0, 2, 32, "eval")] == [22]
    assert list(iterator(1, 2, 32, "eval")) == []


def test_training_ends_in_all_processes_with_the_last_full_global_batch():
    assert [len(list(iterator(host, 2, 8))) for host in range(2)] == [1, 1]


def test_the_position_is_the_same_in_all_processes_and_good_for_any_number_of_them():
    kwargs = dict(num_epochs=None, shuffle=True)
    processes = [iterator(host, 2, 4, **kwargs) for host in range(2)]
    for _ in range(3):
        for process in processes:
            next(process)
    first, second = (process.get_state() for process in processes)
    assert first == second
    for hosts in (1, 4):
        alone = iterator(size=8, **kwargs)
        for _ in range(3):
            next(alone)
        assert alone.get_state() == first
        resumed = [iterator(host, hosts, 8 // hosts, **kwargs) for host in range(hosts)]
        for process in resumed:
            process.set_state(first)
        np.testing.assert_array_equal(np.concatenate([next(process) for process in resumed]), next(alone))


def test_all_processes_recognise_the_input_by_the_same_identity():
    def identity(*args):
        # Arrays of their own, as those of two processes are.
        return input_identity(iterator(*args, x=X.copy(), shuffle=True), js.inputs.numpy_input_fn)

    assert difference(identity(0, 2), identity(1, 2)) is None
    assert difference(identity(0, 2), identity(0, 1)) is None


def test_process_local_arrays_are_read_whole_by_each_process():
    parts = [X[0::2], X[1::2]]
    for host, part in enumerate(parts):
        batches = list(iterator(host, 2, 4, "eval", x=part, process_local=True))
        np.testing.assert_array_equal(np.concatenate(batches), part)
        batches = list(iterator(host, 2, x=part, process_local=True, batch_size=8))
        assert [len(batch) for batch in batches] == [4, 4]


def test_refusals():
    with pytest.raises(
        ValueError, match=r"batch_size=9 rows of all processes are no multiple of the 2 processes\. Cho"
    ):
        iterator(0, 2, batch_size=9)
    with pytest.raises(ValueError, match="22 examples, given 1 times, are fewer than the 24 rows of one batch"):
        iterator(0, 2, size=12)
    with pytest.raises(ValueError, match="seed must be a number, got None: all processes must shuffle alike"):
        iterator(shuffle=True, seed=None)
