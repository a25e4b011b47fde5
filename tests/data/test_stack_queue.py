"""What passes between the thread of the input and the thread that dispatches, without an input and without devices."""

import threading
import time

import jax
import numpy as np
import pytest
from take import take

from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.stack_queue import QUEUED_ITEMS, End, StackQueue
from jaxspec._src.device.stack_placement import ResidentArrays, StackPlacement

ROWS, SOON, LONG = 4, 0.0, 20
PLACEMENT = StackPlacement(jax.devices()[:2])


def batch(number, rows=ROWS):
    return InputBatch((np.full(rows, number, np.int32), None), rows, f"after {number}")


def numbers(item):
    """The numbers of the batches in what `take` gave."""
    if isinstance(item, InputBatch):
        return [item.data[0][0]]
    return list(np.asarray(item.data[0])[item.start : item.start + item.count, 0, 0])


@pytest.fixture
def queue():
    made = StackQueue()
    made.begin(3, PLACEMENT)
    return made


def test_full_batches_are_stacked_and_taken_in_slices(queue):
    for number in range(4):
        queue.put(batch(number), full=True)
    first, second = take(queue, 2, SOON), take(queue, 2, SOON)
    assert (numbers(first), first.position_at(), first.data[0].shape) == ([0, 1], "after 1", (3, 2, 2))
    assert (numbers(second), second.position_at()) == ([2], "after 2")
    assert numbers(take(queue, 2, SOON)) == [3]  # the stack that was being filled
    assert take(queue, 2, SOON) is None


def test_a_ragged_batch_keeps_its_place_and_its_values(queue):
    mine = batch(1, rows=2)
    queue.put(batch(0), full=True)
    queue.put(mine, full=False)
    mine.data[0][:] = 9
    queue.put(batch(2), full=True)
    assert [numbers(take(queue, 5, SOON)) for _ in range(3)] == [[0], [1], [2]]


def test_a_stack_is_not_written_to_after_it_has_been_taken_early(queue):
    queue.put(batch(0), full=True)
    early = take(queue, 5, SOON)
    queue.put(batch(1), full=True)
    assert numbers(early) == [0]
    assert numbers(take(queue, 5, SOON)) == [1]


def test_the_end_comes_last_and_stays(queue):
    error = ValueError("late")
    queue.put(batch(0), full=True)
    queue.flush()
    queue.end(error)
    assert numbers(take(queue, 5, SOON)) == [0]
    assert [take(queue, 5, SOON), take(queue, 5, SOON)] == [End(error)] * 2


def test_no_more_than_the_bound_waits_and_a_stop_ends_the_wait(queue):
    queue.begin(1, PLACEMENT)
    put = []

    def fill():
        for number in range(QUEUED_ITEMS + 3):
            queue.put(batch(number), full=True)
            put.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    assert numbers(take(queue, 1, LONG)) == [0]
    deadline = time.monotonic() + LONG
    while len(put) < QUEUED_ITEMS + 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    thread.join(0.05)
    assert put == list(range(QUEUED_ITEMS + 1))
    queue.stop()
    thread.join()
    assert [int(left.data[0][0]) for left in queue.left_over()] == list(range(1, QUEUED_ITEMS + 3))
    assert queue.left_over() == []


def test_batches_that_were_not_taken_are_left_over_in_order(queue):
    for number in range(3):
        queue.put(batch(number), full=True)
    queue.put(batch(3, rows=1), full=False)
    assert numbers(take(queue, 1, SOON)) == [0]
    left = queue.left_over()
    assert [(int(b.data[0][0]), b.rows, b.position) for b in left] == [
        (1, 4, "after 1"),
        (2, 4, "after 2"),
        (3, 1, "after 3"),
    ]


def test_on_demand_no_more_may_be_fetched_than_was_asked_for(queue):
    assert queue.may_fetch(100)
    queue.fetch_on_demand()
    allowed = []

    def fetch():
        number = 1
        while queue.may_fetch(number):
            allowed.append(number)
            queue.put(batch(number), full=True)
            number += 1

    thread = threading.Thread(target=fetch)
    thread.start()
    queue.ask(2)
    got = numbers(take(queue, 2, LONG))
    while len(got) < 2:
        got += numbers(take(queue, 2 - len(got), LONG))
    assert (got, allowed) == ([1, 2], [1, 2])
    queue.stop()
    thread.join()
    assert not queue.may_fetch(1)


def test_rows_of_arrays_are_stacked_behind_the_batches_before_them(queue):
    x = np.arange(20)
    queue.put(batch(7), full=True)
    assert queue.room() == 2
    queue.put_rows((x, None), np.array([[8, 1, 5, 0], [2, 2, 19, 3]]), [lambda: "after 8", lambda: "after 9"])
    item = take(queue, 3, SOON)
    expected = [[[7, 7], [7, 7]], [[8, 1], [5, 0]], [[2, 2], [19, 3]]]
    np.testing.assert_array_equal(item.data[0], expected)
    assert (item.count, item.position_at()) == (3, "after 9")


def test_rows_of_resident_arrays_are_a_stack_like_any_other(queue):
    x = {"a": np.arange(40).reshape(20, 2)}
    arrays = ResidentArrays((x, None), PLACEMENT)
    rows = np.array([[8, 1, 5, 0], [2, 2, 19, 3]])
    queue.put(batch(7), full=True)
    queue.put_resident(arrays, rows, [lambda: "after 8", lambda: "after 9"])
    assert numbers(take(queue, 3, SOON)) == [7]
    item = take(queue, 3, SOON)
    assert (item.start, item.count, item.capacity, item.position_at()) == (0, 2, 3, "after 9")
    np.testing.assert_array_equal(np.asarray(item.data[0]["a"])[:2].reshape(2, 4, 2), x["a"][rows])


def test_the_memory_of_a_stack_is_used_again_once_the_devices_have_read_it_and_not_before(queue):
    def stack(first):
        for number in range(first, first + 3):
            queue.put(batch(number), full=True)
        return [take(queue, 2, SOON), take(queue, 2, SOON)]

    def addresses(item):
        return [shard.data.unsafe_buffer_pointer() for shard in item.data[0].addressable_shards]

    first, second = stack(0), stack(3)
    assert not set(addresses(first[0])) & set(addresses(second[0]))
    first[0].finish(first[0].data)
    third = stack(6)  # batch 2 of the first may still be read
    assert not set(addresses(first[0])) & set(addresses(third[0]))
    first[1].finish(first[1].data)
    assert addresses(stack(9)[0]) == addresses(first[0])


def test_batches_on_the_devices_are_not_copied_to_the_host(queue):
    x = jax.device_put(np.arange(4.0), jax.devices()[0])
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        queue.put(InputBatch((x, None), 4, "after 0", on_devices=True), full=True)
        item = take(queue, 3, SOON)
    assert (item.capacity, item.count, item.position_at()) == (1, 1, "after 0")
    assert item.data[0].sharding.device_set == set(jax.devices()[:2])
    np.testing.assert_array_equal(item.data[0], [[[0, 1], [2, 3]]])
