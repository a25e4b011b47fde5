"""What the processes of one run tell each other: small values, over the coordination service of `jax.distributed`.

Each process gives a value, and each gets the values of all, so that all decide alike. The devices take no part in it,
and may be busy meanwhile.
"""

import atexit
import contextlib
import itertools
import logging
import pickle
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

from jaxspec._src.base.activities import doing
from jaxspec._src.base.errors import Interrupted, OtherProcessError
from jaxspec._src.base.types import Clock, T

_logger = logging.getLogger("jaxspec")
_POLL_SECS = 0.5
"""So long a wait cannot be interrupted, and goes on after another process has failed."""
_CHECK_SECS = 1.0
_WARN_SECS = 60.0
_GROUP = 64
"""So many exchanges are removed from the coordination service together."""
_numbers = itertools.count()
"""Of the runs of this process: the coordination service, which keeps their values, belongs to the process, too."""
_finished: list[str] = []
"""Earlier runs, whose values process 0 has not yet removed from the coordination service."""


class Exchange(contextlib.AbstractContextManager["Exchange"], Protocol):
    """Passes values between the processes of one run. Used as a context manager: an error that leaves it is reported.

    All processes must make the same exchanges in the same order.
    """

    index: int
    """This process, counted from 0."""
    count: int
    """The number of processes."""
    place: str
    """Where the run is, such as "at global step 3": the errors of other processes name it."""

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes and logs for all."""
        return self.index == 0

    def gather(self, what: str, value: T) -> list[T]:
        """The values of all processes, by process. Each waits for all.

        Args:
          what: the same in all processes; errors name it.
          value: it is pickled.

        Raises:
          OtherProcessError: if another process has failed, makes another exchange, or does not come in time.
        """

    def check(self) -> None:
        """Raises what `gather` would if another process has failed. It waits for nothing, and asks once a second."""

    def clock(self) -> float:
        """Seconds since some start: the same in all processes, and standing still between two exchanges."""

    def from_first(self, what: str, value: T) -> T:
        """The value of process 0."""
        return self.gather(what, value)[0]

    def compare(self, values: Mapping[str, object]) -> None:
        """Raises a ValueError, in every process, if one of the named values differs between two processes."""
        of_first, *others = self.gather("comparison", dict(values))
        for process, other in enumerate(others, 1):
            for name in [*of_first, *(name for name in other if name not in of_first)]:
                mine, theirs = (repr(each[name]) if name in each else "nothing" for each in (of_first, other))
                if mine != theirs:
                    raise ValueError(
                        f"the processes of this run differ in {name}: {mine} in process 0, {theirs} in process "
                        f"{process}. Start the same program with the same arguments in all processes."
                    )


class Alone(Exchange):
    """The exchange of a single process, which gets back what it gives."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.index, self.count, self.place, self._clock = 0, 1, "", clock

    def gather(self, what: str, value: T) -> list[T]:
        return [value]

    def check(self) -> None:
        pass

    def clock(self) -> float:
        return self._clock()

    def __exit__(self, *error: object) -> None:
        pass


class KeyValueStore(Protocol):
    """The part of JAX's client of the coordination service that is used here."""

    def key_value_set_bytes(self, key: str, value: bytes, allow_overwrite: bool = False) -> None: ...
    def blocking_key_value_get_bytes(self, key: str, timeout_in_ms: int) -> bytes: ...
    def key_value_try_get_bytes(self, key: str) -> bytes: ...
    def key_value_dir_get_bytes(self, key: str) -> list[tuple[str, bytes]]: ...
    def key_value_delete(self, key: str) -> None: ...


class _Message(NamedTuple):
    what: str
    value: Any
    time: float


class _Failure(NamedTuple):
    """What the first process to fail in a run leaves for the others."""

    text: str
    kind: type[BaseException]
    """What they raise."""


class Together(Exchange):
    """The exchange of several processes. Process 0 collects the values, and publishes them together.

    Args:
      store: of the coordination service.
      index, count: of the process.
      verb: what runs.
      name: of the run, the same in all processes; no other run may have had it.
      timeout_secs: how long a process may be waited for.
      clock: seconds since some start.
    """

    def __init__(
        self,
        store: KeyValueStore,
        index: int,
        count: int,
        verb: str,
        name: str,
        *,
        timeout_secs: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self.index, self.count, self.place = index, count, f"in {verb}"
        self._store, self._name, self._timeout_secs, self._clock = store, name, timeout_secs, clock
        self._number, self._now, self._checked = 0, clock(), clock()
        self._was_told = False

    def gather(self, what: str, value: T) -> list[T]:
        what = f"{what} {self.place}"
        mine = _Message(what, value, self._clock())
        if self.is_first:
            messages = [mine, *self._collect(what)]
            self._set(self._key("all"), messages)
        else:
            self._set(self._key(self.index), mine)
            with doing("process 0"):
                messages = self._wait(self._key("all"), what, 0)
        self._next()
        for process, message in enumerate(messages):
            if message.what != what:
                raise OtherProcessError(
                    f"process {self.index} is at {what!r}, and process {process} at {message.what!r}: the processes "
                    "do not run alike. Call the same verbs and hooks in the same order in all of them, and let nothing "
                    "of this depend on the process or on its clock."
                )
        self._now = messages[0].time
        return [message.value for message in messages]

    def clock(self) -> float:
        return self._now

    def check(self) -> None:
        if self._clock() >= self._checked + _CHECK_SECS:
            self._checked = self._clock()
            self._raise_if(self._look(self._failure_key))

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self.is_first:
            _finished.append(self._name)
        if error is None or self._was_told:
            return
        text = str(error)
        if not isinstance(error, OtherProcessError):
            text = f"process {self.index} of this run has failed {self.place}: {type(error).__name__}: {text}"
        kinds = (kind for kind in (Interrupted, KeyboardInterrupt) if isinstance(error, kind))
        # Another process may have been first, and the coordination service may be gone.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set(self._failure_key, _Failure(text, next(kinds, OtherProcessError)))

    @property
    def _failure_key(self) -> str:
        return f"jaxspec/{self._name}/failure"

    def _raise_if(self, failure: _Failure | None) -> None:
        if failure is not None:
            self._was_told = True
            raise failure.kind(f"{failure.text}. This process, {self.index}, ends with it.")

    def _key(self, who: int | str) -> str:
        return f"jaxspec/{self._name}/{self._number // _GROUP}/{self._number}/{who}"

    def _collect(self, what: str) -> list[Any]:
        """The messages of the other processes, by process."""
        messages: dict[int, Any] = {}
        while missing := [process for process in range(1, self.count) if process not in messages]:
            first, *others = missing
            with doing(f"process {first}"):
                messages[first] = self._wait(self._key(first), what, first)
            if others:  # most of them have come meanwhile: one request for all costs less than one for each
                for key, value in self._store.key_value_dir_get_bytes(self._key("")):
                    messages[int(key.rpartition("/")[2])] = pickle.loads(value)
        return [messages[process] for process in sorted(messages)]

    def _next(self) -> None:
        """Goes on to the next exchange. When all have come to one, all have read those before it."""
        self._number += 1
        group, index = divmod(self._number, _GROUP)
        if self.is_first and index == 1:
            old = [f"{self._name}/{group - 1}"] * (group > 0) + _finished
            _finished.clear()
            for name in old:
                self._store.key_value_delete(f"jaxspec/{name}/")

    def _set(self, key: str, value: object) -> None:
        self._store.key_value_set_bytes(key, pickle.dumps(value))

    def _look(self, key: str) -> Any:
        """What is set; None if nothing is."""
        try:
            return pickle.loads(self._store.key_value_try_get_bytes(key))
        except jax.errors.JaxRuntimeError:
            return None

    def _wait(self, key: str, what: str, process: int) -> Any:
        """What another process sets. Raises what it has failed with."""
        began, warned = self._clock(), 0.0
        while True:
            try:
                return pickle.loads(self._store.blocking_key_value_get_bytes(key, int(1000 * _POLL_SECS)))
            except jax.errors.JaxRuntimeError as error:
                if not str(error).startswith("DEADLINE_EXCEEDED"):
                    raise OtherProcessError(
                        f"process {self.index} has lost the coordination service, which process 0 runs, at {what!r}. "
                        "Process 0, or its machine, is gone: start all processes again."
                    ) from error
            failure, cause = self._look(self._failure_key), self._look(_end_key(process))
            # A process that failed or ended later may have come to this exchange: the others have gone on from it then.
            if (failure or cause is not None) and (value := self._look(key)) is not None:
                return value
            self._raise_if(failure)
            if cause is not None:
                raise OtherProcessError(
                    f"process {process} has ended{cause}, and did not come to {what!r}, where process {self.index} "
                    "waits for it. All processes must make the same calls."
                )
            waited = self._clock() - began
            if waited > self._timeout_secs:
                raise OtherProcessError(
                    f"process {process} did not come to {what!r}, where process {self.index} has waited for it for "
                    f"{waited:.0f} s. See its log; if it was just slow, raise RunConfig(process_timeout_secs=...)."
                )
            if waited > warned + _WARN_SECS:
                warned = waited
                _logger.warning("Process %d waits for process %d, at %s: %.0f s.", self.index, process, what, waited)


def is_first_process() -> bool:
    """Whether this is process 0, or the only one. Unlike `jax.process_index`, it does not begin to use the devices."""
    if not jax.distributed.is_initialized():
        return True
    from jax._src import distributed

    return bool(distributed.global_state.process_id == 0)


def report_end_at_exit() -> None:
    """Lets the other processes know when this one ends, and with which error. A second call does nothing."""
    atexit.unregister(_report_end)
    atexit.register(_report_end)


def _report_end() -> None:
    error = getattr(sys, "last_value", None)
    cause = "" if error is None else f" with {type(error).__name__}: {error}"
    with contextlib.suppress(Exception):  # the coordination service may be gone
        _store().key_value_set_bytes(_end_key(jax.process_index()), pickle.dumps(cause))


def _end_key(process: int) -> str:
    return f"jaxspec/ended/{process}"


def _store() -> KeyValueStore:
    from jax._src import distributed  # JAX has no other way to its coordination service

    store: KeyValueStore | None = distributed.global_state.client
    assert store is not None
    return store


def open_exchange(verb: str, *, timeout_secs: float) -> Exchange:
    """The exchange of a run that begins now in all processes.

    Args:
      verb: what runs.
      timeout_secs: how long another process may be waited for.
    """
    if jax.process_count() == 1:
        return Alone()
    return Together(
        _store(), jax.process_index(), jax.process_count(), verb, str(next(_numbers)), timeout_secs=timeout_secs
    )
