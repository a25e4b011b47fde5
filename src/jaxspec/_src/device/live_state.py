"""The live training state of an estimator: who may read it, and when its buffers may be donated.

Training, in the thread that called `train`, makes each state from the one before:

    put(state, step)        a new state is the live one, behind `step` updates
    state = take()          for one dispatch, which donates it; a copy if somebody reads it. There is no live state now.
    put(...)                the state that the dispatch returned; or, if it raised,
    give_back()             the state that was taken is the live one again, if its buffers still exist

Readers, in any thread, take a lease:

    with live.lease() as lease:    waits while a state is taken; None if there is none
        lease.state                not donated before the lease is closed
        lease.keep()               not donated ever: the caller may hold it for as long as it likes

`discard` forgets a live state that is no good, and `reinstate` makes a leased one the live one again. After that, or
after a dispatch that failed on the devices, there is no live state: a verb goes on from the latest checkpoint.
"""

import contextlib
import threading

import jax

from jaxspec._src.base.types import PositionAt
from jaxspec._src.device.mapping import copied
from jaxspec._src.step.state import TrainState


class _Held:
    """A state with its step and position. While `readers` is not 0, its buffers may not be donated."""

    def __init__(self, state: TrainState, step: int, position_at: PositionAt | None) -> None:
        self.state, self.step, self._position_at = state, step, position_at
        self.readers = 0

    @property
    def position(self) -> str | None:
        return None if self._position_at is None else self._position_at()


class Lease(contextlib.AbstractContextManager["Lease"]):
    """The right to read one state until the lease is closed, whatever training does meanwhile.

    `state`, `step` and `position` belong together. `LiveState.lease` makes it; leaving its `with` block closes it.
    """

    state: TrainState
    """On the devices. Deleted from the lease when it is closed."""

    def __init__(self, held: _Held, lock: threading.Condition) -> None:
        self._held, self._lock = held, lock
        self._open = True
        held.readers += 1
        self.state, self.step, self.position = held.state, held.step, held.position

    def keep(self) -> TrainState:
        """The state, for a caller that holds it after the lease is closed. It is never donated."""
        with self._lock:
            self._held.readers += 1
        return self.state

    def close(self) -> None:
        """Ends the lease: training may donate the state. A second call does nothing."""
        with self._lock:
            if self._open:
                self._open = False
                self._held.readers -= 1
                del self.state

    def __exit__(self, *error: object) -> None:
        self.close()


class LiveState:
    """Holds the one live state of an estimator, with its step and position. Every thread may call it."""

    def __init__(self) -> None:
        self._held: _Held | None = None
        self._taken: _Held | None = None
        self._lock = threading.Condition()
        self._readers: set[int] = set()

    @property
    def state(self) -> TrainState | None:
        """The live state for the thread that trains; None if there is none. Other readers need a lease."""
        held = self._held
        return None if held is None else held.state

    @property
    def position(self) -> str | None:
        """The position of the training input after the last batch of the state; None if the input reports none."""
        held = self._held
        return None if held is None else held.position

    def lease(self) -> Lease | None:
        """The right to read the live state; None if there is none. Waits while training has taken it."""
        with self._lock:
            self._readers.add(threading.get_ident())
            self._lock.wait_for(lambda: self._taken is None)
            return None if self._held is None else Lease(self._held, self._lock)

    def was_read_by(self, thread: int | None) -> bool:
        """Whether the thread with this identifier has ever asked for a lease."""
        return thread in self._readers

    def put(self, state: TrainState, step: int, position_at: PositionAt | None = None) -> None:
        """Makes `state`, behind `step` updates, the live one. Leases of the one before stay valid."""
        with self._lock:
            self._held, self._taken = _Held(state, step, position_at), None
            self._lock.notify_all()

    def take(self) -> TrainState:
        """The live state, to be donated: a copy while it has readers. There is none until `put` or `give_back`."""
        with self._lock:
            assert self._held is not None
            held = self._taken = self._held
            self._held = None
            return copied(held.state) if held.readers else held.state

    def give_back(self) -> None:
        """After a dispatch that raised: the state that was taken is live again, unless its buffers were donated."""
        with self._lock:
            held, self._taken = self._taken, None
            if held is not None and not any(leaf.is_deleted() for leaf in jax.tree.leaves(held.state)):
                self._held = held
            self._lock.notify_all()

    def reinstate(self, lease: Lease) -> None:
        """Makes the leased state the live one, if there is none."""
        with self._lock:
            if self._held is None:
                self._held = lease._held

    def discard(self, lease: Lease | None = None) -> None:
        """There is no live state from now on. With a lease, only if the leased state is still the live one."""
        with self._lock:
            if lease is None or lease._held is self._held:
                self._held = None
