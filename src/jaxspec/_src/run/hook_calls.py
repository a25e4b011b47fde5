"""Calling the hooks of a session, in their order."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from jaxspec._src.base.activities import doing
from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Fetches, Session
from jaxspec._src.spec.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues

_logger = logging.getLogger("jaxspec")


class SessionStopped(Exception):
    """A hook has raised StopIteration: the session ends cleanly."""


class HookCalls:
    """The hooks of one session. Entering it calls `begin` of each; leaving it with an error calls `abort` of those
    without an `end`.

    An exception of a hook comes back as itself, with a note that names it.

    Args:
      hooks: in the order in which they are called.
      where: for the note, such as "in training".
    """

    def __init__(self, hooks: Sequence[SessionRunHook], where: str) -> None:
        self.hooks = tuple(hooks)
        self._where = where
        self._open: list[SessionRunHook] = []
        self._watching = [hook for hook in self.hooks if overrides(hook, "wants_loop_end")]

    # No generator: a StopIteration of `begin` would become another error.
    def __enter__(self) -> Self:
        try:
            for hook in self.hooks:
                self._open.append(hook)
                with self._calling(hook, "begin"):
                    hook.begin()
        except BaseException as error:
            self._abort(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._abort(error)

    def _abort(self, error: BaseException) -> None:
        """Calls `abort` of the hooks without an `end`, after `error`."""
        for hook in self._open:
            try:
                hook.abort()
            except Exception as another:  # the first error is the one to raise
                said = f"in {type(hook).__name__}.abort: {type(another).__name__}: {another}"
                if isinstance(error, GeneratorExit):  # a note on it would not be shown
                    _logger.warning("A generator was closed before its end; an error came then, %s", said)
                error.add_note(f"and then, {said}")

    def after_create_session(self, session: Session) -> None:
        """Calls `after_create_session` of each hook."""
        for hook in self.hooks:
            with self._calling(hook, "after_create_session", session):
                hook.after_create_session(session, None)

    def before_run(self, context: SessionRunContext) -> list[Fetches | None]:
        """What each hook asks for; checked."""
        return [self._asked(hook, context) for hook in self.hooks]

    def after_run(
        self,
        context: SessionRunContext,
        asked: Sequence[Fetches | None],
        finish_host_calls: Callable[[], None] | None = None,
    ) -> None:
        """Calls `after_run` of each hook with the values of what it asked for.

        Args:
          finish_host_calls: called before a hook that waits for host calls; None where there is no host_call.
        """
        session: Session = context.session
        for hook, fetches in zip(self.hooks, asked, strict=True):
            if finish_host_calls is not None and hook.after_host_calls and overrides(hook, "after_run"):
                finish_host_calls()
            results = None if fetches is None else session.run(fetches)
            with self._calling(hook, "after_run", session):
                hook.after_run(context, SessionRunValues(results))

    def end(self, session: Session) -> None:
        """Calls `end` of each hook."""
        for hook in self.hooks:
            with self._calling(hook, "end", session):
                hook.end(session)
            self._open.remove(hook)

    def next_step(self, step: int) -> int | None:
        """The first global step after `step` at which some hook needs a loop to end; None: anywhere."""
        steps = []
        for hook in self.hooks:
            if not overrides(hook, "next_step"):
                continue
            with self._calling(hook, "next_step"):
                one = hook.next_step(step)
            check_number(f"what {type(hook).__name__}.next_step returns", one, whole=True)
            if one is not None:
                steps.append(max(one, step + 1))
        return min(steps, default=None)

    def wants_loop_end(self, step: int) -> bool:
        """Whether some hook needs the loop that is under way to end at the global step `step`."""
        for hook in self._watching:
            with self._calling(hook, "wants_loop_end"):
                if hook.wants_loop_end(step):
                    return True
        return False

    def _asked(self, hook: SessionRunHook, context: SessionRunContext) -> Fetches | None:
        session: Session = context.session
        with self._calling(hook, "before_run", session):
            args = hook.before_run(context)
        if args is None:
            return None
        if not isinstance(args, SessionRunArgs):
            raise TypeError(
                f"{type(hook).__name__}.before_run returned {args!r}; return SessionRunArgs('loss'), or None."
            )
        try:
            session.check_fetches(args.fetches)
        except Exception as error:
            error.add_note(f"asked for by {type(hook).__name__}.before_run, {self._where}")
            raise
        return args.fetches

    @contextlib.contextmanager
    def _calling(self, hook: SessionRunHook, method: str, session: Session | None = None) -> Iterator[None]:
        """Around one call of a hook: a signal names it, an error gets a note, and a StopIteration may end the
        session."""
        call = f"{type(hook).__name__}.{method}"
        try:
            # wants_loop_end is called again and again while the run waits for the input.
            with doing(f"hook {call}", progress=method != "wants_loop_end"):
                yield
        except BaseException as error:
            if isinstance(error, StopIteration) and method in ("before_run", "after_run"):
                raise SessionStopped from None
            if not isinstance(error, NanLossDuringTrainingError):  # whatever looked at the loss
                at = "" if session is None else f", at global step {session.global_step}"
                error.add_note(f"raised by {call}, {self._where}{at}")
            raise


def overrides(hook: SessionRunHook, method: str) -> bool:
    """Whether a hook has a method of its own, not that of the base class."""
    return getattr(getattr(hook, method), "__func__", None) is not getattr(SessionRunHook, method)
