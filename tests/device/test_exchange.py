"""What processes tell each other, over a store in memory: each process is a thread here."""

import concurrent.futures
import sys
import threading
import time

import jax
import pytest

import jaxspec as js
from jaxspec._src.base.errors import Interrupted
from jaxspec._src.device import processes
from jaxspec._src.device.processes import Alone, Together


class Store:
    """The key-value store of the coordination service, without the service."""

    def __init__(self):
        self.values, self.changed, self.is_gone = {}, threading.Condition(), False
        self.asked_for_one = self.asked_for_all = 0

    def key_value_set_bytes(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.values:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: Config key {key} already exists.")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get_bytes(self, key, timeout_in_ms):
        with self.changed:
            self.asked_for_one += 1
            if self.is_gone:
                raise jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses")
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: GetKeyValue() timed out with key: {key}")
            return self.values[key]

    def key_value_try_get_bytes(self, key):
        with self.changed:
            if key not in self.values:
                raise jax.errors.JaxRuntimeError(f"NOT_FOUND: Config key {key} not found.")
            return self.values[key]

    def key_value_dir_get_bytes(self, key):
        with self.changed:
            self.asked_for_all += 1
            return [(name, value) for name, value in self.values.items() if name.startswith(key)]

    def key_value_delete(self, key):
        with self.changed:
            self.values = {name: value for name, value in self.values.items() if not name.startswith(key)}


@pytest.fixture
def store():
    return Store()


@pytest.fixture(autouse=True)
def _no_runs_before(monkeypatch):
    monkeypatch.setattr(processes, "_finished", [])


def together(store, *programs, timeout_secs=20.0, clock=time.monotonic, name="0"):
    """What each program returns, or the exception that it raises: a function of its exchange."""

    def run(index):
        try:
            with Together(
                store, index, len(programs), "train", name, timeout_secs=timeout_secs, clock=clock
            ) as exchange:
                return programs[index](exchange)
        except BaseException as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(programs)) as pool:
        return list(pool.map(run, range(len(programs))))


def test_each_process_gets_the_values_of_all_in_their_order(store):
    def program(exchange):
        return [exchange.gather("number", (exchange.index, i)) for i in range(3)]

    expected = [[(index, i) for index in range(3)] for i in range(3)]
    assert together(store, program, program, program) == [expected] * 3


def test_the_values_of_many_processes_are_fetched_together(store):
    came = threading.Barrier(9)
    set_one = store.key_value_set_bytes

    def set_and_wait(key, value, allow_overwrite=False):
        set_one(key, value)
        if not key.endswith("/all"):
            came.wait(20)

    store.key_value_set_bytes = set_and_wait

    def first(exchange):
        came.wait(20)
        return exchange.gather("number", 0)

    others = [lambda exchange: exchange.gather("number", exchange.index)] * 8
    assert together(store, first, *others) == [list(range(9))] * 9
    assert (store.asked_for_one, store.asked_for_all) == (1 + 8, 1)


def test_one_process_gets_back_what_it_gives():
    with Alone(clock=lambda: 7.0) as exchange:
        assert exchange.gather("number", 3) == [3]
        assert exchange.from_first("number", 4) == 4
        assert (exchange.index, exchange.count, exchange.is_first, exchange.clock()) == (0, 1, True, 7.0)
        exchange.compare({"seed": 1})


def test_an_error_of_one_process_ends_the_others_which_name_it_and_its_place(store):
    def fails(exchange):
        exchange.gather("loop", None)
        exchange.place = "at global step 7"
        raise ValueError("no more of this file")

    def goes_on(exchange):
        exchange.gather("loop", None)
        exchange.place = "at global step 7"
        exchange.gather("loop", None)

    own, *others = (fails, goes_on, goes_on)
    for failing in range(3):
        programs = [*others]
        programs.insert(failing, own)
        got = together(store, *programs, name=str(failing))
        assert isinstance(got[failing], ValueError)
        for index in {0, 1, 2} - {failing}:
            assert isinstance(got[index], js.OtherProcessError)
            assert str(got[index]) == (
                f"process {failing} of this run has failed at global step 7: ValueError: no more of this file. This "
                f"process, {index}, ends with it."
            )


@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt])
def test_an_interrupt_of_one_process_is_one_of_all(store, kind):
    def fails(exchange):
        raise kind("stop")

    _, other = together(store, fails, lambda exchange: exchange.gather("loop", None))
    assert type(other) is kind


def test_processes_that_do_not_do_the_same_are_told_apart(store):
    first, second = together(
        store, lambda exchange: exchange.gather("save", None), lambda exchange: exchange.gather("loop", None)
    )
    assert "process 0 is at 'save in train', and process 1 at 'loop in train'" in str(first)
    assert "process 1 is at 'loop in train', and process 0 at 'save in train'" in str(second)
    assert "Call the same verbs and hooks in the same order" in str(first)


def test_a_process_that_has_ended_is_not_waited_for(store, monkeypatch):
    monkeypatch.setattr(processes, "_store", lambda: store)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(sys, "last_value", ValueError("nobody catches this"), raising=False)
    processes._report_end()
    error, _ = together(store, lambda exchange: exchange.gather("loop", None), lambda exchange: None)
    assert str(error) == (
        "process 1 has ended with ValueError: nobody catches this, and did not come to 'loop in train', where process 0 "
        "waits for it. All processes must make the same calls."
    )


@pytest.mark.parametrize("last", ["failure", "end"])
def test_an_exchange_to_which_a_process_came_before_it_failed_or_ended_is_made(store, monkeypatch, last):
    """The others have gone on from it, and would wait on the devices for one that has not."""
    get = store.blocking_key_value_get_bytes

    def get_too_early(key, timeout_in_ms):
        with pytest.raises(jax.errors.JaxRuntimeError, match="DEADLINE_EXCEEDED"):
            get(key, 0)
        came = Together(store, 1, 2, "train", "0", timeout_secs=9)
        came._set(key, processes._Message("loop in train", "mine", 0.0))
        if last == "failure":
            came.__exit__(ValueError, ValueError("later"), None)
        else:
            came._set(processes._end_key(1), "")
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")

    monkeypatch.setattr(store, "blocking_key_value_get_bytes", get_too_early)
    with Together(store, 0, 2, "train", "0", timeout_secs=9) as exchange:
        assert exchange.gather("loop", "first") == ["first", "mine"]


def test_a_failure_shows_without_waiting_for_it(store):
    now = [0.0]

    def looks(exchange):
        exchange.gather("start", None)
        failed.wait(20)
        exchange.check()  # it has asked a moment ago
        now[0] = 2.0
        exchange.check()

    def fails(exchange):
        exchange.gather("start", None)
        try:
            raise ValueError("broken")
        finally:
            exchange.__exit__(ValueError, ValueError("broken"), None)
            failed.set()

    failed = threading.Event()
    own, other = together(store, fails, looks, clock=lambda: now[0])
    assert isinstance(own, ValueError)
    assert "process 0 of this run has failed in train: ValueError: broken" in str(other)


def test_a_process_that_does_not_come_is_named_after_a_warning(store, caplog, monkeypatch):
    monkeypatch.setattr(processes, "_POLL_SECS", 0.001)
    now = iter(range(0, 10_000, 10))
    (error,) = (
        one
        for one in together(
            store,
            lambda exchange: exchange.gather("loop", None),
            lambda exchange: "elsewhere",
            timeout_secs=130,
            clock=lambda: float(next(now)),
        )
        if one != "elsewhere"
    )
    assert isinstance(error, js.OtherProcessError)
    assert "process 1 did not come to 'loop in train', where process 0 has waited for it for 140 s" in str(error)
    assert "RunConfig(process_timeout_secs=...)" in str(error)
    assert [record.getMessage() for record in caplog.records] == [
        "Process 0 waits for process 1, at loop in train: 70 s.",
        "Process 0 waits for process 1, at loop in train: 140 s.",
    ][: len(caplog.records)]
    assert caplog.records


def test_the_loss_of_the_coordination_service_is_an_error_that_says_so(store):
    store.is_gone = True
    got = together(store, lambda exchange: "gone", lambda exchange: exchange.gather("loop", None))
    assert "process 1 has lost the coordination service, which process 0 runs, at 'loop in train'" in str(got[1])


def test_a_difference_between_processes_names_the_field_and_both_values(store):
    def program(exchange):
        exchange.compare({"seed": 3, "train_batch_size": 8 * (1 + exchange.index // 2), "of all": 1})

    for error in together(store, program, program, program):
        assert isinstance(error, ValueError)
        assert "differ in train_batch_size: 8 in process 0, 16 in process 2" in str(error)


def test_a_field_that_one_process_lacks_is_a_difference(store):
    def program(exchange):
        exchange.compare({"the variable w": "float32[2]"} if exchange.index else {})

    assert "the variable w: nothing in process 0, 'float32[2]' in process 1" in str(
        together(store, program, program)[0]
    )


def test_all_processes_read_the_clock_of_the_first_one(store):
    clocks = [lambda: 100.0, lambda: 900.0]

    def run(index):
        with Together(store, index, 2, "train", "0", timeout_secs=9, clock=clocks[index]) as exchange:
            exchange.gather("loop", None)
            return exchange.clock()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [100.0, 100.0]


def test_the_store_keeps_no_more_than_the_last_exchanges(store):
    def program(exchange):
        for i in range(1000):
            exchange.gather("loop", i)

    together(store, program, program)
    assert len(store.values) < 4 * processes._GROUP
    together(store, program, program, name="1")
    assert all(key.startswith("jaxspec/1/") for key in store.values)
