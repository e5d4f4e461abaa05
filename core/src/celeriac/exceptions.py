"""All errors of celeriac.

::

    CeleriacError (= CeleryError)
    ├── TaskPredicate                 raised by tasks to steer what happens to them
    │   ├── Retry   ├── Ignore   └── Reject
    ├── ImproperlyConfigured
    │   ├── SettingError              a setting with a wrong name or value
    │   ├── SettingsNotFound          the module of settings cannot be imported
    │   ├── PluginError
    │   │   ├── PluginNotFound   ├── PluginAmbiguous   ├── PluginBlocked
    │   │   ├── PluginBroken     └── PluginIncompatible
    │   └── Unsupported               the chosen plugin cannot do what is asked
    │       └── ChordsUnsupported, GroupsUnsupported   as a result backend
    ├── SecurityError
    │   └── ContentDisallowed         a message or a result of a content type that is not accepted
    ├── TaskError
    │   ├── QueueNotFound   ├── IncompleteStream   ├── NotRegistered   ├── AlreadyRegistered
    │   ├── TimeoutError    ├── MaxRetriesExceededError   ├── TaskRevokedError
    │   └── InvalidTaskError   └── ChordError
    ├── OperationalError              the broker or the result store, not the caller, is the trouble
    │   ├── TransportLost   ├── TransportUnreachable   ├── ConnectionsBusy
    │   ├── PublishUncertain   └── PublishRejected
    ├── BackendError
    │   ├── BackendGetMetaError   ├── BackendStoreError
    │   ├── BackendLost   ├── BackendUnreachable
    │   └── BackendMismatch
    └── PoolBroken
    SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError, Terminated   (Exception)
    WorkerShutdown, WorkerTerminate                                         (SystemExit)
    EndedByPool                                                             (BaseException)

An error keeps its data as attributes and writes its own message: what went wrong, who, what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, NoReturn

#: An option of a URL, and its value: to white space, a quote, the next option, or the URL behind a semicolon.
_OPTION: Final = re.compile(r"""([?&][^=&?\s]*=)[^&\s"']*?(?=;[\w+.-]+\Z|[&\s"']|\Z)""")
_SECRET: Final = re.compile(r"passw|pwd|secret|token|api_?key|access_?key", re.IGNORECASE)


def mask_url(url: str) -> str:
    """A URL, or a text with URLs in it, that is safe to print: passwords replaced by `***`.

    A password may hold what people forget to quote (`@`, `/`, `:`): it ends at the last `@` before white space or
    the next URL. Where that is too much, too much is masked. So are the secrets among a URL's options
    (`redis://host/0?password=…`). Linear in the length, whatever the text.
    """
    if "://" not in url:
        return url
    before, *pieces = url.split("://")
    return "://".join([before, *map(_mask_piece, pieces)])


def _mask_piece(piece: str) -> str:
    masked = _mask_password(piece) if "@" in piece else piece
    return _OPTION.sub(_mask_option, masked) if "=" in masked else masked


def _mask_option(found: re.Match[str]) -> str:
    return f"{found[1]}***" if _SECRET.search(found[1]) else found[0]


def _mask_password(piece: str) -> str:
    """Mask in `user:password@host…`, the piece behind a `://`."""
    authority = piece.split(None, 1)[0] if piece and not piece[0].isspace() else ""
    special = re.search("[:/@]", authority)
    end = authority.rfind("@")
    if special is None or special[0] != ":" or end < 0:
        return piece
    return f"{piece[: special.end()]}***{piece[end:]}"


class CeleriacError(Exception):
    """Base of all errors of this library."""


CeleryError = CeleriacError


# -- steering a task --------------------------------------------------------------------------------------


class TaskPredicate(CeleriacError):
    """Base of what a task raises to say how its run should end."""


class Retry(TaskPredicate):
    """The task is to be run again.

    Attributes:
        message: Why.
        exc: The error that caused it, if any.
        when: Seconds from now, or a datetime.
        sig: The signature of the next try, when there is one.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: Any = None,
        is_eager: bool = False,
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        self.message = message
        self.exc = None if isinstance(exc, str) else exc
        self.excs: str | None = exc if isinstance(exc, str) else (repr(exc) if exc else None)
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        super().__init__(self, exc, when, **kwargs)

    def humanize(self) -> str:
        """When the next try comes, in words."""
        if isinstance(self.when, (int, float)):
            return f"in {self.when}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.excs:
            return f"Retry {self.humanize()}: {self.excs}"
        return f"Retry {self.humanize()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.message, self.exc or self.excs, self.when)


RetryTaskError = Retry


class Ignore(TaskPredicate):
    """The run is to leave no trace in the result store."""


class Reject(TaskPredicate):
    """The message is to be refused: put back when `requeue` is true, else set aside."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


# -- configuration and plugins ----------------------------------------------------------------------------


class ImproperlyConfigured(CeleriacError):
    """The app, its settings or its plugins do not fit together."""


class SettingError(ImproperlyConfigured):
    """A setting has a name that nobody declared, or a value of the wrong kind.

    Attributes:
        setting: The name as the user wrote it.
        suggestion: The nearest declared name, for a wrong name.
    """

    def __init__(self, message: str, *, setting: str = "", suggestion: str | None = None) -> None:
        self.setting = setting
        self.suggestion = suggestion
        super().__init__(message)


class SettingsNotFound(ImproperlyConfigured, ModuleNotFoundError):
    """The module of settings is not there, or something that it imports is not: an ImportError too, as in Celery.

    Attributes:
        name: What could not be found.
    """


class PluginError(ImproperlyConfigured):
    """A plugin that was asked for cannot be had."""

    def __init__(self, message: str, *, kind: str = "", name: str = "") -> None:
        self.kind = kind
        self.name = name
        super().__init__(message)


class PluginNotFound(PluginError):
    """No installed plugin has this kind and name."""


class PluginAmbiguous(PluginError):
    """Several installed dists claim this kind and name."""


class PluginBlocked(PluginError):
    """The plugin is installed, but the block or allow list forbids it."""


class PluginBroken(PluginError):
    """The plugin was found but does not keep its contract."""


class PluginIncompatible(PluginError):
    """The plugin was written for another version of the contract."""


class Unsupported(ImproperlyConfigured):
    """The chosen plugin lacks an ability that was asked for."""


class ChordsUnsupported(Unsupported, NotImplementedError):
    """A chord was called, and results of this app cannot be joined."""

    def __init__(self, backend: str) -> None:
        super().__init__(
            f"a chord was called, but {backend} answers each result to the client that waits for it and keeps none, "
            f"so no worker could join the parts. Keep results in a store for this, here and in the worker: "
            f"Celery(..., backend='sqlite://') or backend='redis://...'."
        )


class GroupsUnsupported(Unsupported, NotImplementedError):
    """A group was to be saved or restored, and this result backend keeps none."""

    def __init__(self, backend: str) -> None:
        super().__init__(
            f"{backend} keeps no groups (it lacks the ability groups). Keep results in a store that does, "
            f"as sqlite:// or redis://."
        )


class SecurityError(CeleriacError):
    """Something was refused because accepting it would be unsafe."""


class ContentDisallowed(SecurityError):
    """A message or a result has a content type that this app does not accept."""


# -- tasks ------------------------------------------------------------------------------------------------


class TaskError(CeleriacError):
    """Base of errors about tasks."""


class QueueNotFound(KeyError, TaskError):
    """A task was routed to a queue that is not declared, and creating missing ones is off."""


class IncompleteStream(TaskError):
    """The end of a stream of data was found, but the data is not complete."""


class NotRegistered(KeyError, TaskError):
    """No task of this name is registered."""

    def __repr__(self) -> str:
        return f"NotRegistered({self.args[0]!r})" if self.args else "NotRegistered()"

    def __str__(self) -> str:
        return f"no task is registered under the name {self.args[0]!r}" if self.args else "task not registered"


class AlreadyRegistered(TaskError):
    """A task of this name is registered already."""


class TimeoutError(TaskError):
    """The operation took longer than the caller allowed."""


class MaxRetriesExceededError(TaskError):
    """The task has used up its tries."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.task_args = kwargs.pop("task_args", [])
        self.task_kwargs = kwargs.pop("task_kwargs", {})
        super().__init__(*args, **kwargs)


class TaskRevokedError(TaskError):
    """The task was revoked, or expired, before it could run."""


class InvalidTaskError(TaskError):
    """The message is not a valid call."""


class ChordError(TaskError):
    """A part of a chord failed, so its body cannot run."""


# -- the world outside ------------------------------------------------------------------------------------


class OperationalError(CeleriacError):
    """The broker could not do what was asked; trying again later may help.

    Attributes:
        accepted: From `publish_many`, the results of the calls that the broker had taken before.
    """

    accepted: Sequence[Any] = ()


class TransportLost(OperationalError):
    """The connection to the broker dropped."""


class TransportUnreachable(OperationalError):
    """The broker cannot be reached or refuses us.

    Attributes:
        url: Masked.
        hint: What to check.
    """

    def __init__(self, message: str, *, url: str = "", hint: str = "") -> None:
        self.url = mask_url(url)
        self.hint = hint
        super().__init__(f"{message} {hint}".strip())


class ConnectionsBusy(OperationalError):
    """All connections that this process may have for sending were in use for as long as the caller would wait.

    Attributes:
        limit: How many there may be: `broker_pool_limit`.
        waited_s: How long it waited: `broker_pool_acquire_timeout`, or as long as the call might take.
    """

    def __init__(self, limit: int, waited_s: float) -> None:
        self.limit = limit
        self.waited_s = waited_s
        super().__init__(
            f"all {limit} connections of this process to the broker were in use for {waited_s:g} s. Is the broker slow "
            f"or blocked? Else raise broker_pool_limit."
        )


class PublishUncertain(OperationalError):
    """The broker did not say in time whether it took the message, or said that it does not know; sending it again may
    double it.

    Attributes:
        payloads: What was on its way; without what the broker took for certain, where it says so.
            `app.send_again(error)` sends it once more, under the ids that it has.
    """

    payloads: Sequence[Any] = ()

    @property
    def task_ids(self) -> list[str]:
        """The ids of the calls among `payloads`."""
        return [str(payload.headers["id"]) for payload in self.payloads if payload.headers.get("id")]


class PublishRejected(OperationalError):
    """The broker refused the message; nothing was stored.

    Attributes:
        task_ids: Of several that were sent at once, the calls that were refused, if the others were stored; empty if
            all were refused.
    """

    task_ids: Sequence[str] = ()


class BackendError(CeleriacError):
    """Base of errors of the result store."""


class BackendGetMetaError(BackendError):
    """A result could not be read."""

    def __init__(self, *args: Any, task_id: str = "", **kwargs: Any) -> None:
        self.task_id = task_id
        super().__init__(*args, **kwargs)


class BackendStoreError(BackendError):
    """A result could not be written."""

    def __init__(self, *args: Any, task_id: str = "", state: str = "", **kwargs: Any) -> None:
        self.task_id = task_id
        self.state = state
        super().__init__(*args, **kwargs)


class BackendLost(BackendError):
    """The connection to the result store dropped."""


class BackendUnreachable(BackendError):
    """The result store cannot be reached or refuses us."""

    def __init__(self, message: str, *, url: str = "", hint: str = "") -> None:
        self.url = mask_url(url)
        self.hint = hint
        super().__init__(f"{message} {hint}".strip())


class BackendMismatch(BackendError):
    """A worker ran the task, but keeps its results elsewhere than this client looks for them."""


class PoolBroken(CeleriacError):
    """The pool could not bring up a slot."""


# -- limits, deaths and endings ---------------------------------------------------------------------------


class SoftTimeLimitExceeded(Exception):
    """Raised inside a task that ran past its soft time limit."""

    def __str__(self) -> str:
        return "SoftTimeLimitExceeded" + repr(self.args) if self.args else "SoftTimeLimitExceeded()"


class TimeLimitExceeded(Exception):
    """The task ran past its hard time limit, and its slot was killed."""


class WorkerLostError(Exception):
    """The process that ran the task died."""

    def __init__(self, *args: Any, exitcode: int | None = None) -> None:
        self.exitcode = exitcode
        super().__init__(*args)


class Terminated(Exception):
    """The task was terminated by request."""


class EndedByPool(BaseException):
    """Raised by a pool in a job that it ends: past its hard time limit, or cancelled. Nobody but the pool keeps it."""


class WorkerShutdown(SystemExit):
    """Asks the worker to end warmly."""


class WorkerTerminate(SystemExit):
    """Asks the worker to end at once."""


SystemTerminate = WorkerTerminate


# -- warnings ---------------------------------------------------------------------------------------------


class CeleriacWarning(UserWarning):
    """Base of warnings of this library."""


CeleryWarning = CeleriacWarning


class AlwaysEagerIgnored(CeleriacWarning):
    """`send_task` sends even when `task_always_eager` is set."""


class DuplicateNodenameWarning(CeleriacWarning):
    """Several workers use one node name."""


class DuplicateTaskNameWarning(CeleriacWarning):
    """Two different functions claim one task name."""


class FixupWarning(CeleriacWarning):
    """An integration could not be set up."""


class NotConfigured(CeleriacWarning):
    """No configuration was found."""


class SecurityWarning(CeleriacWarning):
    """Something insecure is in use."""


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """This will be deprecated."""


class CDeprecationWarning(DeprecationWarning):
    """This is deprecated."""


class CeleryCommandException(Exception):
    """A command of the command line failed.

    Attributes:
        exit_code: What the process ends with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        self.message = message
        self.exit_code = exit_code
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.message, self.exit_code)


def reraise(tp: type[BaseException], value: BaseException, tb: TracebackType | None = None) -> NoReturn:
    """Raise `value` with this traceback, as if it had been raised there."""
    raise value.with_traceback(tb) if tb is not None else value


def join_words(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    items: Sequence[str] = list(words)
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
