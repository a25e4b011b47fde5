"""StopAtStepHook: training to a given step."""

from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Session
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues


class StopAtStepHook(SessionRunHook):
    """Ends training at a global step. A loop ends exactly there. At least one step is made.

    Args:
      num_steps: the number of updates to make from the start of the session; in evaluation and prediction, of batches.
        The first session of a hook sets its last step, also for later sessions.
      last_step: the global step to end at.

    Raises:
      ValueError: for both or neither.
    """

    after_host_calls = False

    def __init__(self, num_steps: int | None = None, last_step: int | None = None) -> None:
        if num_steps is None and last_step is None:
            raise ValueError("One of num_steps or last_step must be specified. Both are None.")
        if num_steps is not None and last_step is not None:
            raise ValueError(
                f"Only one of num_steps or last_step can be specified. Got num_steps={num_steps}, "
                f"last_step={last_step}."
            )
        check_number("num_steps", num_steps, whole=True)
        check_number("last_step", last_step, whole=True)
        self._num_steps, self._last_step = num_steps, last_step

    def after_create_session(self, session: Session, coord: None) -> None:
        if self._last_step is None:
            assert self._num_steps is not None
            self._last_step = session.first_step + self._num_steps

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        assert self._last_step is not None
        if run_context.last_step + 1 >= self._last_step:
            run_context.request_stop()

    def next_step(self, global_step: int) -> int | None:
        return self._last_step
