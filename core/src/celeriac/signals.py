"""Signals: named moments that any code may listen to, with Celery's names and arguments.

`signal.receivers` is empty when nobody listens, so the hot path asks for that and goes on.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("celeriac.signals")


class Signal:
    """One named moment.

    Args:
        name: For the log and `repr`.
        providing_args: What receivers are given, for documentation.
    """

    def __init__(self, name: str, providing_args: set[str] | None = None) -> None:
        self.name = name
        self.providing_args = providing_args or set()
        self.receivers: list[tuple[Any, Any]] = []
        self._lock = threading.Lock()

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Connect a receiver, as a call (the receiver first) or as a decorator.

        Args (by name, or in this order):
            sender: Only for this sender.
            weak: Hold the receiver weakly (default), so that it goes with its owner.
            dispatch_uid: A second connect with the same one replaces the first.
        """
        if args and callable(args[0]):
            return self._connect(*args, **kwargs)
        return lambda receiver: self._connect(receiver, *args, **kwargs)

    def disconnect(self, receiver: Any = None, sender: Any = None, weak: bool = True, dispatch_uid: Any = None) -> bool:
        """Disconnect; True if it was connected."""
        key = self._key(receiver, sender, dispatch_uid)
        with self._lock:
            kept = [entry for entry in self.receivers if entry[0] != key]
            found = len(kept) != len(self.receivers)
            self.receivers = kept
        return found

    def has_listeners(self, sender: Any = None) -> bool:
        """Whether anyone would hear it."""
        return bool(self._live(sender))

    def send(self, sender: Any, **named: Any) -> list[tuple[Any, Any]]:
        """Call all receivers; an error of one is logged and returned as its answer, never raised.

        Returns:
            `(receiver, answer)` pairs, in the order of connection.
        """
        if not self.receivers:
            return []
        answers: list[tuple[Any, Any]] = []
        for receiver in self._live(sender):
            try:
                answers.append((receiver, receiver(signal=self, sender=sender, **named)))
            except Exception as exc:
                _log.exception("signal handler %r of %s raised %r", receiver, self.name, exc)
                answers.append((receiver, exc))
        return answers

    send_robust = send

    def _connect(
        self,
        receiver: Callable[..., Any],
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Any = None,
        retry: bool = False,
    ) -> Any:
        key = self._key(receiver, sender, dispatch_uid)  # of what the caller knows, and disconnects
        if retry:
            receiver = _Retrying(receiver)
            weak = False
        held: Any = receiver
        if weak:
            held = (
                weakref.WeakMethod(receiver)
                if hasattr(receiver, "__self__") and hasattr(receiver, "__func__")
                else weakref.ref(receiver)
            )
        with self._lock:
            self.receivers = [entry for entry in self.receivers if entry[0] != key and not _is_dead(entry[1])]
            self.receivers.append((key, held))
        return receiver

    @staticmethod
    def _key(receiver: Any, sender: Any, dispatch_uid: Any) -> tuple[Any, Any]:
        if dispatch_uid is not None:
            return ("uid", dispatch_uid), _sender_key(sender)
        target = (
            (id(receiver.__self__), id(receiver.__func__))
            if hasattr(receiver, "__func__") and hasattr(receiver, "__self__")
            else id(receiver)
        )
        return target, _sender_key(sender)

    def _live(self, sender: Any) -> list[Callable[..., Any]]:
        wanted = _sender_key(sender)
        found = []
        for (_, sender_key), held in self.receivers:
            if sender_key is None or sender_key == wanted:
                receiver = held() if isinstance(held, weakref.ref) else held
                if receiver is not None:
                    found.append(receiver)
        return found

    def __repr__(self) -> str:
        return f"<Signal: {self.name} providing_args={sorted(self.providing_args)}>"


def _sender_key(sender: Any) -> Any:
    if sender is None:
        return None
    return sender if isinstance(sender, (str, bytes, int)) else getattr(sender, "name", None) or id(sender)


def _is_dead(held: Any) -> bool:
    return isinstance(held, weakref.ref) and held() is None


class _Retrying:
    """A receiver that is called again after an error, a few times."""

    def __init__(self, receiver: Callable[..., Any], tries: int = 3) -> None:
        self._receiver = receiver
        self._tries = tries

    def __call__(self, **named: Any) -> Any:
        for left in reversed(range(self._tries)):
            try:
                return self._receiver(**named)
            except Exception:
                if not left:
                    raise
        return None


before_task_publish = Signal(
    "before_task_publish", {"body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"}
)
after_task_publish = Signal("after_task_publish", {"body", "exchange", "routing_key", "headers"})
task_sent = Signal("task_sent", {"task_id", "task", "args", "kwargs", "eta", "taskset"})
task_received = Signal("task_received", {"request"})
task_prerun = Signal("task_prerun", {"task_id", "task", "args", "kwargs"})
task_postrun = Signal("task_postrun", {"task_id", "task", "args", "kwargs", "retval", "state"})
task_success = Signal("task_success", {"result", "runtime"})
task_retry = Signal("task_retry", {"request", "reason", "einfo"})
task_failure = Signal("task_failure", {"task_id", "exception", "args", "kwargs", "traceback", "einfo"})
task_internal_error = Signal(
    "task_internal_error", {"task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"}
)
task_revoked = Signal("task_revoked", {"request", "terminated", "signum", "expired"})
task_rejected = Signal("task_rejected", {"message", "exc"})
task_unknown = Signal("task_unknown", {"message", "exc", "name", "id"})
celeryd_init = Signal("celeryd_init", {"instance", "conf", "options"})
celeryd_after_setup = Signal("celeryd_after_setup", {"instance", "conf"})
import_modules = Signal("import_modules")
worker_init = Signal("worker_init")
worker_before_create_process = Signal("worker_before_create_process")
worker_process_init = Signal("worker_process_init")
worker_process_shutdown = Signal("worker_process_shutdown", {"pid", "exitcode"})
worker_ready = Signal("worker_ready")
worker_shutdown = Signal("worker_shutdown")
worker_shutting_down = Signal("worker_shutting_down", {"sig", "how", "exitcode"})
heartbeat_sent = Signal("heartbeat_sent")
setup_logging = Signal("setup_logging", {"loglevel", "logfile", "format", "colorize"})
after_setup_logger = Signal("after_setup_logger", {"logger", "loglevel", "logfile", "format", "colorize"})
after_setup_task_logger = Signal("after_setup_task_logger", {"logger", "loglevel", "logfile", "format", "colorize"})
beat_init = Signal("beat_init")
beat_embedded_init = Signal("beat_embedded_init")
eventlet_pool_started = Signal("eventlet_pool_started")
eventlet_pool_preshutdown = Signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = Signal("eventlet_pool_postshutdown")
eventlet_pool_apply = Signal("eventlet_pool_apply", {"target", "args", "kwargs"})
user_preload_options = Signal("user_preload_options", {"app", "options"})
