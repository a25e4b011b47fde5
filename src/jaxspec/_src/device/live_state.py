"""Who may use the live training state, and when it may be donated."""

import threading
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp


class _Held:
    """A state with what belongs to it. While `readers` is not 0, its buffers may not be donated."""

    def __init__(self, state: Any, step: int, position: str | None) -> None:
        self.state, self.step, self.position = state, step, position
        self.readers = 0


class Lease:
    """The right to read one state for as long as the lease is open, whatever training does meanwhile.

    `state`, `step` and `position` belong together. Made by `StateOwner.lease`; closed by leaving its `with` block.
    """

    def __init__(self, held: _Held, lock: threading.Condition) -> None:
        self._held, self._lock = held, lock
        self._open = True
        held.readers += 1
        self.state, self.step, self.position = held.state, held.step, held.position

    def keep(self) -> Any:
        """The state, for somebody who may hold it after the lease is closed, for as long as he likes."""
        with self._lock:
            self._held.readers += 1
        return self.state

    def close(self) -> None:
        """Ends the lease. Training may donate the state then."""
        with self._lock:
            if self._open:
                self._open = False
                self._held.readers -= 1
        self.state = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class StateOwner:
    """Holds the one live state of an estimator, with its step and position. Any thread may call.

    A reader leases it. Training takes it to give it to the devices, and gets a copy while somebody has a lease; a reader
    who comes before the new state is put waits for that. After a dispatch that failed on the devices there is no state.
    """

    def __init__(self) -> None:
        self._held: _Held | None = None
        self._taken: _Held | None = None
        self._lock = threading.Condition()
        self._readers: set[int] = set()

    @property
    def state(self) -> Any:
        """The live state for the thread that trains; None where there is none. Other readers need a lease."""
        held = self._held
        return None if held is None else held.state

    @property
    def position(self) -> str | None:
        """Of the training input, after the last batch that went into the state; None where it does not report one."""
        held = self._held
        return None if held is None else held.position

    def lease(self) -> Lease | None:
        """The live state, to be read; None where there is none."""
        with self._lock:
            self._readers.add(threading.get_ident())
            self._lock.wait_for(lambda: self._taken is None)
            return None if self._held is None else Lease(self._held, self._lock)

    def was_read_by(self, thread: int | None) -> bool:
        """Whether the thread with this identifier has ever asked for the state."""
        return thread in self._readers

    def put(self, state: Any, step: int, position: str | None = None) -> None:
        """Makes `state`, behind `step` updates, the live one. Leases of the one before stay good."""
        with self._lock:
            self._held, self._taken = _Held(state, step, position), None
            self._lock.notify_all()

    def take(self) -> Any:
        """The state, to be donated. There is none until `put` or `give_back`."""
        with self._lock:
            assert self._held is not None
            held = self._taken = self._held
            self._held = None
            return jax.tree.map(jnp.copy, held.state) if held.readers else held.state

    def give_back(self) -> None:
        """After a dispatch that failed: the state is the live one again, unless its buffers are gone."""
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
        """From now on there is no live state; with a lease, only if that state is still the live one."""
        with self._lock:
            if lease is None or lease._held is self._held:
                self._held = None
