"""Values at the end of a session."""

from typing import Any

from jaxspec._src.hooks.fetches import refuse_arrays
from jaxspec._src.spec.hook import SessionRunHook


class FinalOpsHook(SessionRunHook):
    """Fetches values when the session ends; they are in `final_ops_values` then: None if it had no step whose outputs to fetch.

    Args:
      final_ops: fetch names (see `Session`) in any structure.
      final_ops_feed_dict: TensorFlow's; must be None.
    """

    def __init__(self, final_ops: Any, final_ops_feed_dict: Any = None) -> None:
        if final_ops_feed_dict is not None:
            raise ValueError("FinalOpsHook: there is nothing to feed here; leave final_ops_feed_dict out.")
        refuse_arrays("FinalOpsHook: final_ops", final_ops)
        self._final_ops = final_ops
        self.final_ops_values: Any = None

    def after_create_session(self, session: Any, coord: Any) -> None:
        session.check_fetches(self._final_ops)

    def end(self, session: Any) -> None:
        self.final_ops_values = session.run(self._final_ops) if session.has(self._final_ops) else None
