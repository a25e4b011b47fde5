"""Who may use the live training state, and when it may be donated."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


class StateOwner:
    """Holds the one live state of an estimator.

    A reader borrows it and may go on using what it got; training takes it to give it away to the devices, and gets a
    copy while somebody borrows it. After a dispatch that failed there is no state: `state` is None.
    """

    def __init__(self) -> None:
        self.state: Any = None
        self.position: str | None = None
        """Of the training input, after the last batch that went into the state; None where it does not report one."""
        self._loans: list[None] = []

    def put(self, state: Any, position: str | None = None) -> None:
        """Makes `state` the live one. Loans of the one before stay good."""
        self.state, self.position = state, position
        self._loans = []

    def take(self) -> Any:
        """The state, to be donated. There is none until the next `put`."""
        state, self.state = self.state, None
        return jax.tree.map(jnp.copy, state) if self._loans else state

    def lend(self, state: Any) -> Any:
        """Gives `state`, live or borrowed, to somebody who may hold it for as long as he likes."""
        if state is self.state:  # else training goes on with a copy already
            self._loans.append(None)
        return state

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Any]:
        """The live state, safe to read within the block, whatever training does meanwhile."""
        loans = self._loans
        loans.append(None)
        try:
            yield self.state
        finally:
            loans.pop()
