"""FinalOpsHook: fetches values once, at the end of a session."""

from jaxspec._src.base.types import PyTree
from jaxspec._src.hooks.session import Fetches, Session, refuse_arrays
from jaxspec._src.spec.hook import SessionRunHook


class FinalOpsHook(SessionRunHook):
    """Fetches values when the session ends.

    They are in `final_ops_values` then, as NumPy arrays in the structure of `final_ops`; None if the session had no
    step whose outputs it could fetch.

    Args:
      final_ops: fetch names (see `Session`) in any structure.
      final_ops_feed_dict: an argument of TensorFlow; must be None.
    """

    def __init__(self, final_ops: Fetches, final_ops_feed_dict: object = None) -> None:
        if final_ops_feed_dict is not None:
            raise ValueError("FinalOpsHook: there is nothing to feed here; leave final_ops_feed_dict out.")
        refuse_arrays("FinalOpsHook: final_ops", final_ops)
        self._final_ops = final_ops
        self.final_ops_values: PyTree = None

    def after_create_session(self, session: Session, coord: None) -> None:
        session.check_fetches(self._final_ops)

    def end(self, session: Session) -> None:
        self.final_ops_values = session.run(self._final_ops) if session.has(self._final_ops) else None
