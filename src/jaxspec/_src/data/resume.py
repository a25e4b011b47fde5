"""Where the saved position goes back into the input, and where the position of each batch comes from."""

from collections.abc import Mapping

from jaxspec._src.base.types import PyTree
from jaxspec._src.data.batch import BatchChecker
from jaxspec._src.data.fingerprint import Identity, difference
from jaxspec._src.data.input_request import InputRequest
from jaxspec._src.data.input_warnings import warn_of_other_input
from jaxspec._src.data.position import (
    CheckpointableIterator,
    PositionState,
    decode_position,
    encode_position,
    position_identity,
)


class Positions:
    """Reads and sets the position of one iterator, with the errors and warnings that belong to it.

    Args:
      iterator: the training input.
      identity: what it is recognised by.
      request: what was asked for; its `resume` decides whether identities are compared.
    """

    def __init__(self, iterator: CheckpointableIterator[PyTree], identity: Identity, request: InputRequest) -> None:
        self._iterator, self.identity, self._request = iterator, identity, request
        self._before: PositionState = None

    def after(self, checker: BatchChecker, *, has_rows: bool) -> str:
        """The position after the batch that `checker` has just checked, as text. The next batch will change it."""
        try:
            state = self._iterator.get_state()
        except BaseException as error:
            error.add_note(f"raised by get_state of the input, after batch {checker.number - 1} (counted from 0)")
            raise
        if has_rows:
            self.identity["leaves"] = checker.leaves()
        return encode_position(state, self.identity)

    def go_to(self, position: str, *, reversible: bool) -> bool:
        """Sets the position. False, with a warning, if it came from another input or the iterator refuses it.

        Args:
          reversible: whether `undo` may be called afterwards.
        """
        if self._request.resume is False:
            return False
        if self._request.resume is None:
            known = {key: value for key, value in self.identity.items() if key != "leaves"}
            if self.refused(position, known):
                return False
        self._before = self._iterator.get_state() if reversible else None
        try:
            self._iterator.set_state(decode_position(position))
        except BaseException as error:
            if isinstance(error, ValueError) and self._request.resume is None:
                warn_of_other_input(self._request, f"{error}")
                return False
            error.add_note(f"raised by set_state of the input that input_fn ({self._request.name}) returned")
            raise
        return True

    def undo(self) -> None:
        """Sets the position that the iterator had before `go_to`."""
        self._iterator.set_state(self._before)

    def refused(self, position: str, known: Mapping[str, object]) -> bool:
        """Whether the position came from an input that differs in what is `known` of this one; warns then."""
        reason = difference(position_identity(position), known)
        if reason is not None:
            warn_of_other_input(self._request, reason)
        return reason is not None
