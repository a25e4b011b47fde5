"""Calling the hooks of a session, in their order."""

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Session
from jaxspec._src.run.signals import doing
from jaxspec._src.spec.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues

_logger = logging.getLogger("jaxspec")


class SessionStopped(Exception):
    """A hook has raised StopIteration: the session ends cleanly."""


class HookCalls:
    """The hooks of one session. An exception of a hook comes back as itself, with a note that names it.

    Args:
      hooks: in the order in which they are called.
      where: for the note, such as "in training".
    """

    def __init__(self, hooks: Sequence[SessionRunHook], where: str) -> None:
        self.hooks = tuple(hooks)
        self._where = where
        self._open: list[SessionRunHook] = []
        self._watching = [hook for hook in self.hooks if overrides(hook, "wants_loop_end")]

    def begun(self) -> "_Begun":
        """Calls `begin` of each hook. If the block is left with an error, the hooks without an `end` get an `abort`."""
        return _Begun(self)

    def begin(self) -> None:
        """Calls `begin` of each hook."""
        for hook in self.hooks:
            self._open.append(hook)
            self._call(hook, "begin", None)

    def abort(self, error: BaseException) -> None:
        """Calls `abort` of the hooks without an `end`, after `error`."""
        for hook in self._open:
            try:
                hook.abort()
            except Exception as another:  # the first error is the one to raise
                said = f"in {type(hook).__name__}.abort: {type(another).__name__}: {another}"
                if isinstance(error, GeneratorExit):  # nobody sees what is added to that
                    _logger.warning("A generator was closed before its end; an error came then, %s", said)
                error.add_note(f"and then, {said}")

    def after_create_session(self, session: Session) -> None:
        """Calls `after_create_session` of each hook."""
        for hook in self.hooks:
            self._call(hook, "after_create_session", session, session, None)

    def before_run(self, context: SessionRunContext) -> list[Any]:
        """What each hook asks for; checked."""
        return [self._asked(hook, context) for hook in self.hooks]

    def after_run(
        self, context: SessionRunContext, asked: Sequence[Any], finish_host_calls: Callable[[], None] | None = None
    ) -> None:
        """Calls `after_run` of each hook with the values of what it asked for.

        Args:
          finish_host_calls: called before a hook that wants it; None where there is no host_call to wait for.
        """
        for hook, fetches in zip(self.hooks, asked, strict=True):
            if finish_host_calls is not None and hook.after_host_calls and overrides(hook, "after_run"):
                finish_host_calls()
            results = None if fetches is None else context.session.run(fetches)
            self._run(hook, "after_run", context, SessionRunValues(results))

    def end(self, session: Session) -> None:
        """Calls `end` of each hook."""
        for hook in self.hooks:
            self._call(hook, "end", session, session)
            self._open.remove(hook)

    def next_step(self, step: int) -> int | None:
        """The first global step after `step` at which some hook wants a loop to end."""
        wanted = [
            (hook, self._call(hook, "next_step", None, step)) for hook in self.hooks if overrides(hook, "next_step")
        ]
        for hook, one in wanted:
            check_number(f"what {type(hook).__name__}.next_step returns", one, whole=True)
        return min((max(one, step + 1) for _, one in wanted if one is not None), default=None)

    def wants_loop_end(self, step: int) -> bool:
        """Whether some hook wants the loop that is under way to end at the global step `step`."""
        return any(self._call(hook, "wants_loop_end", None, step) for hook in self._watching)

    def _asked(self, hook: SessionRunHook, context: SessionRunContext) -> Any:
        args = self._run(hook, "before_run", context)
        if args is None:
            return None
        if not isinstance(args, SessionRunArgs):
            raise TypeError(
                f"{type(hook).__name__}.before_run returned {args!r}; return SessionRunArgs('loss'), or None."
            )
        try:
            context.session.check_fetches(args.fetches)
        except Exception as error:
            error.add_note(f"asked for by {type(hook).__name__}.before_run, {self._where}")
            raise
        return args.fetches

    def _run(self, hook: SessionRunHook, method: str, context: SessionRunContext, *args: Any) -> Any:
        try:
            return self._call(hook, method, context.session, context, *args)
        except StopIteration:
            raise SessionStopped from None

    def _call(self, hook: SessionRunHook, method: str, session: Session | None, *args: Any) -> Any:
        try:
            with doing(f"hook {type(hook).__name__}.{method}"):
                return getattr(hook, method)(*args)
        except BaseException as error:
            if isinstance(error, NanLossDuringTrainingError):
                raise  # whatever looked at the loss
            at = "" if session is None else f", at global step {session.global_step}"
            error.add_note(f"raised by {type(hook).__name__}.{method}, {self._where}{at}")
            raise


class _Begun:
    """The block within which hooks have begun. No generator: a StopIteration of `begin` would become another error."""

    def __init__(self, calls: HookCalls) -> None:
        self._calls = calls

    def __enter__(self) -> None:
        try:
            self._calls.begin()
        except BaseException as error:
            self._calls.abort(error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._calls.abort(error)


def overrides(hook: SessionRunHook, method: str) -> bool:
    """Whether a hook has a method of its own, not that of the base class."""
    return getattr(getattr(hook, method), "__func__", None) is not getattr(SessionRunHook, method)
