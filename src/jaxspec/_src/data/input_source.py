"""One call of input_fn: the iterator that comes of it, whose it is, and where in it training goes on."""

import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any

from jaxspec._src.base.callables import call_by_name, describe
from jaxspec._src.data.batch import Batch, BatchChecker, elements, is_endless
from jaxspec._src.data.position import decode_position, encode_position, input_identity, position_identity

_logger = logging.getLogger("jaxspec")


class InputMemory:
    """What an estimator keeps of its input from one call to the next."""

    def __init__(self) -> None:
        self.used_up = False
        """Whether the last training ended because its input did."""
        self.told = False
        """Whether it has been said that the input begins again."""
        self._iterator: Callable[[], Any] = lambda: None
        self._identity: dict[str, Any] | None = None
        self._unused: list[Batch] = []

    def remember(self, iterator: Any, identity: dict[str, Any] | None, unused: list[Batch]) -> None:
        """Keeps what was read from a lent iterator and not used."""
        try:
            self._iterator = weakref.ref(iterator)
        except TypeError:  # some of Python's own cannot be referenced so
            self._iterator = lambda: iterator
        self._identity, self._unused = identity, unused

    def recall(self, iterator: Any) -> tuple[dict[str, Any] | None, list[Batch]] | None:
        """(identity, unused batches) of that iterator; None if another one was remembered. The batches are given once."""
        if iterator is not self._iterator():
            return None
        known = self._identity, self._unused
        self._unused = []
        return known


class InputSource:
    """Opens, reads and closes the input. Everything but the constructor runs in one thread.

    An iterator that somebody else holds, too, when input_fn returns it is `lent`: it is not closed, and goes on where it stands.

    Args:
      input_fn: names any of `available`.
      available: the arguments by name.
      new_checker: makes a `BatchChecker`.
      ragged: whether batches may be short, or empty.
      training: whether positions count.
      endless: whether an input that never ends is of use.
      limit: the most batches to ask for; None: all.
      position: where to go on, if the input reports positions; None: at its beginning.
      resume: None: use the position if the input is the one that it came from; True: whatever the input is; False: never.
      step: the global step that training goes on at.
      restarted: whether the state comes from a checkpoint.
      memory: of the calls before.
    """

    def __init__(
        self,
        input_fn: Callable[..., Any],
        available: dict[str, Any],
        new_checker: Callable[[], BatchChecker],
        *,
        ragged: bool,
        training: bool,
        endless: bool,
        limit: int | None,
        position: str | None,
        resume: bool | None,
        step: int,
        restarted: bool,
        memory: InputMemory,
    ) -> None:
        self._input_fn, self._available, self._new_checker = input_fn, available, new_checker
        self._ragged, self._training, self._endless, self._limit = ragged, training, endless, limit
        self._resume, self._step, self._restarted, self._memory = resume, step, restarted, memory
        self.position = position
        """Where the input goes on; None: at its beginning, or where it stands."""
        self.checker = new_checker()
        self.lent = False
        self._held = _Held(None)
        self._reports = False
        self._identity: dict[str, Any] | None = None
        self._unused: list[Batch] = []
        self._fetched = 0

    def open(self) -> Batch | None:
        """Calls input_fn, goes to the position, fetches the first batch: None if there is none."""
        wanted, self.position = self.position, None
        recalled = self._make()
        before = None
        if not self._reports or wanted is None:
            self._tell_if_begun(recalled)
        elif self._is_ours(wanted):
            before = self._held.iterator.get_state() if self.lent else None
            if self._go_to(wanted):
                self.position, self._unused = wanted, []
        first = self.fetch()
        if self.position is None:
            return first
        reason = None
        if first is not None and self._resume is None:
            reason = _difference(position_identity(self.position), {"leaves": self.checker.leaves()})
        if first is not None and reason is None:
            return first
        # It begins again, in this thread, as it began.
        self.position = None
        if first is not None:
            self._tell_foreign(f"{reason}")
        else:
            _logger.log(
                logging.WARNING if self._restarted else logging.INFO,
                "The input was used up when its position was saved: input_fn (%s) begins again.",
                describe(self._input_fn),
            )
        if self.lent:
            if first is None:
                return None
            self._held.iterator.set_state(before)
        else:
            if (error := self.close()) is not None:
                raise error
            self._make()
        self.checker, self._fetched = self._new_checker(), 0
        return self.fetch()

    def fetch(self) -> Batch | None:
        """The next batch; None at the end."""
        if self._fetched == self._limit:
            return None
        while True:
            element, position = None, None
            try:
                if self._unused:
                    left = self._unused.pop(0)
                    element, position = left.data, left.position
                else:
                    element = next(self._held.iterator)
            except StopIteration:
                return None
            except BaseException as error:
                error.add_note(f"raised by input_fn at batch {self.checker.number} (counted from 0)")
                raise
            batch = self.checker.check(element)
            if self._reports and position is None:
                # At once, and as text: the next batch will change it.
                position = self._encoded_position(batch)
            if batch.rows or not self._ragged:  # a filter may leave nothing of a batch
                self._fetched += 1
                return Batch(batch.data, batch.rows, position)

    def close(self) -> BaseException | None:
        """Closes the iterator, if it is ours; returns what that raised."""
        if self.lent:
            return None
        iterator, self._held = self._held.iterator, _Held(None)
        close = getattr(iterator, "close", None)
        try:
            if callable(close):
                close()
        except BaseException as error:
            return error
        return None

    def remember(self, unused: list[Batch]) -> None:
        """Keeps what was fetched from a lent iterator and not used, for the next call."""
        if self.lent:
            self._memory.remember(self._held.iterator, self._identity, [*unused, *self._unused])

    def _make(self) -> bool:
        """Makes the iterator; returns whether it is the one of the last call."""
        self._held = _Held(elements(call_input_fn(self._input_fn, self._available)))
        self.lent = self._held.references() > _ALONE
        iterator = self._held.iterator
        if not self._endless and self._limit is None and is_endless(iterator):
            raise ValueError(
                f"evaluate would never end: the input of input_fn ({describe(self._input_fn)}) repeats for ever, and steps=None "
                "takes all of it. Pass steps=..., or an input of one epoch, as numpy_input_fn(x, y, num_epochs=1)."
            )
        self._reports = self._training and hasattr(iterator, "get_state") and hasattr(iterator, "set_state")
        recalled = self._memory.recall(iterator)
        identity, self._unused = recalled or (None, [])
        if self._reports:
            self._identity = identity or input_identity(iterator, self._input_fn)
        return recalled is not None

    def _encoded_position(self, batch: Batch) -> str | None:
        assert self._identity is not None
        try:
            state = self._held.iterator.get_state()
        except BaseException as error:
            error.add_note(f"raised by get_state of the input, after batch {self.checker.number - 1} (counted from 0)")
            raise
        if batch.rows or not self._ragged:
            self._identity["leaves"] = self.checker.leaves()
        return encode_position(state, self._identity)

    def _is_ours(self, position: str) -> bool:
        """Whether the position came from this input, as far as can be known before the first batch."""
        if self._resume is not None:
            return self._resume
        assert self._identity is not None
        reason = _difference(
            position_identity(position), {key: self._identity[key] for key in self._identity if key != "leaves"}
        )
        if reason is not None:
            self._tell_foreign(reason)
        return reason is None

    def _go_to(self, position: str) -> bool:
        try:
            self._held.iterator.set_state(decode_position(position))
        except BaseException as error:
            if isinstance(error, ValueError) and self._resume is None:
                self._tell_foreign(f"{error}")
                return False
            error.add_note(f"raised by set_state of the input that input_fn ({describe(self._input_fn)}) returned")
            raise
        return True

    def _tell_foreign(self, reason: str) -> None:
        _logger.warning(
            "Training goes on at global step %d with an input that is not the one before (%s): input_fn (%s) begins at its "
            "beginning. To go on at the saved position nevertheless, call train(..., resume_input=True); resume_input=False begins "
            "without this warning.",
            self._step,
            reason,
            describe(self._input_fn),
        )

    def _tell_if_begun(self, recalled: bool) -> None:
        """Says once that training goes on, but its input begins again."""
        memory = self._memory
        expected = recalled or self.lent or self._resume is False or (memory.used_up and not self._restarted)
        if not self._training or not self._step or expected or memory.told:
            return
        memory.told = True
        kind = type(self._held.iterator).__name__
        why = (
            "no position was saved with the state"
            if self._reports
            else f"a {kind} has no get_state and set_state to go on where it stood, as numpy_input_fn and Grain have"
        )
        _logger.warning(
            "Training goes on at global step %d, but input_fn (%s) begins again at its first batch: %s. "
            "train(..., resume_input=False) says that this is meant.",
            self._step,
            describe(self._input_fn),
            why,
        )


class _Held:
    """Holds an iterator, and can tell who else does."""

    def __init__(self, iterator: Any) -> None:
        self.iterator = iterator

    def references(self) -> int:
        return sys.getrefcount(self.iterator)


_ALONE = _Held(object()).references()
"""The references of what nobody else holds. It is counted so, as Python's versions differ in it."""


def _difference(saved: dict[str, Any] | None, here: dict[str, Any]) -> str | None:
    """In words, how an input differs from the one that a position is of; None: not, or it is unknown."""
    if saved is None:
        return None
    for key, value in here.items():
        if (differing := _differing(saved.get(key), value)) is not None:
            return f"{key}{differing}"
    return None


def _differing(was: Any, value: Any) -> str | None:
    if was == value:
        return None
    if isinstance(value, dict) and isinstance(was, dict):
        inner = {key: _differing(was.get(key), value.get(key)) for key in (*value, *was)}
        return next(f"/{key}{text}" for key, text in inner.items() if text is not None)
    return f": {value}, was {was}"


def call_input_fn(input_fn: Callable[..., Any], available: dict[str, Any]) -> Any:
    """Calls input_fn with what it names of `params`, `mode` and `config`; its exception comes back as itself."""
    try:
        return call_by_name(input_fn, available)
    except BaseException as error:
        error.add_note(f"raised by input_fn ({describe(input_fn)})")
        raise
