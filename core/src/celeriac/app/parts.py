"""The parts of an app that are made at first use: kernel, codec, router, transport, producer, results.

One object for each app. What speaks to servers is dropped in a forked child, and whatever depends on a setting is
dropped when that is changed; the next use makes it anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

from celeriac.exceptions import mask_url
from celeriac.kernel.kernel import Kernel, first_url
from celeriac.messaging.codec import Codec
from celeriac.messaging.limits import Limits
from celeriac.messaging.notices import NoticeBox
from celeriac.messaging.producer import Producer
from celeriac.messaging.routes import QueueChoice, Router
from celeriac.messaging.seal import make_seal
from celeriac.resultstore import ResultStore
from celeriac.spec.results import AcceptedResults

if TYPE_CHECKING:
    from celeriac.app.settings import Settings
    from celeriac.spec.backend import ResultBackend
    from celeriac.spec.serializer import Serializer
    from celeriac.spec.state import KeepsState, SharedState
    from celeriac.spec.transport import Transport

T = TypeVar("T")

#: Beginnings of settings on which connections depend.
CONNECTION_SETTINGS: Final = (
    "broker_", "backend_", "result_", "redis_", "database_", "cache_", "accept_", "plugins_", "override_backends",
)  # fmt: skip
NO_RESULTS: Final = (None, "", "disabled", "disabled://")
#: Parts that know settings but no server; the kernel reads settings anew at every call.
LIGHT_PARTS: Final = ("codec", "router", "producer", "fingerprint", "notices")


class part(Generic[T]):
    """A part made at first use under its owner's lock; after that it is a plain attribute."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> part[T]: ...
    @overload
    def __get__(self, owner: Any, kind: type) -> T: ...
    def __get__(self, owner: Any, kind: type) -> Any:
        if owner is None:
            return self
        name = self._make.__name__
        with owner._lock:
            if name not in owner.__dict__:
                owner.__dict__[name] = self._make(owner)
            return owner.__dict__[name]


class Parts:
    """See the module.

    Args:
        conf: The app's settings.
        reply_queue: Names this process's reply queue.
    """

    def __init__(self, conf: Settings, reply_queue: Callable[[], str]) -> None:
        self._conf = conf
        self._reply_queue = reply_queue
        self._lock = threading.RLock()
        self._connected_by: dict[str, Any] = {}
        self._queue_choice = QueueChoice()
        self._own_stores: dict[Any, ResultStore] = {}

    @part
    def kernel(self) -> Kernel:
        """Chooses and makes plugins."""
        return Kernel(self._conf.as_mapping())

    @part
    def codec(self) -> Codec:
        """Encodes and decodes bodies."""
        conf = self._conf
        seal = make_seal(conf["message_seal_key"])
        return Codec(
            self.kernel,
            conf["accept_content"],
            bool(conf["allow_unsafe_serializers"]),
            seal,
            Limits(int(conf["message_max_bytes"]), float(conf["message_max_ratio"])),
            conf["task_repr_maxlevels"],
            conf["task_protocol"],
        )

    @part
    def router(self) -> Router:
        """Finds queues."""
        return Router(self._conf, self._queue_choice)

    @part
    def transport(self) -> Transport:
        """For sending; the worker makes its own for receiving."""
        self._connected_by = self._connection_settings()
        return self.make_transport()

    @part
    def producer(self) -> Producer:
        """Sends payloads."""
        return Producer(self.transport, self.router, self._conf)

    @part
    def store(self) -> ResultStore:
        """Results; one that refuses to be read when there is no result backend."""
        conf = self._conf
        return self._make_store(self._make_backend(), first_url(conf["result_backend"]))

    def own_store(self, wanted: Any, task_name: str) -> ResultStore:
        """The results of tasks that have a backend of their own.

        Args:
            wanted: As the setting `result_backend`, or another app's `ResultStore`.
            task_name: Of such a task.
        """
        key = wanted if isinstance(wanted, str) else id(wanted)
        with self._lock:
            stores = self._own_stores
            if key not in stores:
                backend, url = None, ""
                if isinstance(wanted, ResultStore):
                    backend, url = wanted.plugin, wanted.as_uri()
                elif wanted not in NO_RESULTS:
                    url = first_url(wanted)
                    backend = self.kernel.make_backend(wanted, "", Host(self, self._reply_queue))
                stores[key] = self._make_store(backend, url, task_name)
            return stores[key]

    def _make_store(self, backend: ResultBackend | None, url: str, keeper: str = "") -> ResultStore:
        self._connected_by = self._connection_settings()
        conf = self._conf
        serializer = self.codec.serializer(conf["result_serializer"])
        extended = bool(conf["result_extended"])
        return ResultStore(
            backend,
            serializer,
            extended=extended,
            missing_hint=None if keeper else self._why_no_result,
            accepted=AcceptedResults(conf.as_mapping()),
            pauses=self._pauses_for_the_store,
            remembered=int(conf["result_cache_max"]),
            url=url,
            keeper=keeper,
        )

    @property
    def shared_state(self) -> SharedState | None:
        """What all processes of this app share: kept by the broker, else by the result backend; None if by neither."""
        for keeper in (self.transport, self.store.plugin):
            if keeper is not None and "state" in keeper.abilities:
                return cast("KeepsState", keeper).state()
        return None

    @part
    def fingerprint(self) -> str:
        """Names the place of results, without secrets; empty when there is none."""
        url = self._conf["result_backend"]
        return mask_url(first_url(url)) if url and self.store.plugin is not None else ""

    @part
    def notices(self) -> NoticeBox:
        """Why results do not come, if workers say so."""
        return NoticeBox(lambda: self.transport, self._reply_queue, lambda: self.codec)

    def make_transport(self, url: str | None = None) -> Transport:
        """A transport of its own for the caller."""
        return self.kernel.make_transport(url or self._conf["broker_url"], self._conf["broker_plugin"])

    # -- letting go -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of all connections, and of what was made from settings; the kernel stays, since it holds neither."""
        # Without the lock: who changes a setting holds the settings' lock, which makers of parts want too.
        store, transport = self.__dict__.pop("store", None), self.__dict__.pop("transport", None)
        own, self._own_stores = self._own_stores, {}
        self._drop(*LIGHT_PARTS)
        for one in (store, *own.values()):
            if one is not None and one.plugin is not None:
                one.plugin.close()
        if transport is not None:
            transport.close()

    def after_fork(self) -> None:
        """In a forked child: drop what speaks to servers, without speaking (B28)."""
        self._lock = threading.RLock()  # whoever held the old one is not here
        if "kernel" in self.__dict__:
            self.kernel.after_fork()
        store, transport = self.__dict__.get("store"), self.__dict__.get("transport")
        if transport is not None:
            transport.after_fork()
        own, self._own_stores = self._own_stores, {}
        for one in (store, *own.values()):
            if one is not None and one.plugin is not None:
                one.plugin.after_fork()
        self._drop("transport", "producer", "store")

    def settings_changed(self) -> None:
        """Drop what was made by settings that are others now."""
        if self.__dict__.keys().isdisjoint(("kernel", "transport", "store", *LIGHT_PARTS)):
            return
        self._drop(*LIGHT_PARTS)
        if "kernel" in self.__dict__:
            self.kernel.forget_serializers()
        if self._connected_by and self._connection_settings() != self._connected_by:
            self.close()

    def _drop(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _connection_settings(self) -> dict[str, Any]:
        conf = self._conf
        return {name: conf[name] for name in conf if name.startswith(CONNECTION_SETTINGS)}

    # -- results --------------------------------------------------------------------------------------------

    @property
    def keeps_results(self) -> bool:
        """The settings name a result backend."""
        return bool(self._conf["backend_plugin"]) or self._conf["result_backend"] not in NO_RESULTS

    def _make_backend(self) -> ResultBackend | None:
        if not self.keeps_results:
            return None
        url, plugin = self._conf["result_backend"], self._conf["backend_plugin"]
        return self.kernel.make_backend(url, plugin, Host(self, self._reply_queue))

    def _pauses_for_the_store(self) -> Iterator[float | None]:
        """What a reader or writer of a state waits between attempts; None: no more of them."""
        conf = self._conf
        if conf["result_backend_always_retry"]:
            longest_s = conf["result_backend_max_sleep_between_retries_ms"] / 1000
            pause_s = conf["result_backend_base_sleep_between_retries_ms"] / 1000
            left = conf["result_backend_max_retries"]
            while left > 0:
                yield min(pause_s, longest_s)
                pause_s, left = pause_s * 2, left - 1
        yield None

    def _why_no_result(self, task_id: str) -> BaseException | None:
        plugin = self.store.plugin
        if plugin is None or "replies" in plugin.abilities:
            return None  # such a backend hears of it by itself
        return self.notices.look(task_id)


class Host:
    """What a backend plugin may ask of its app."""

    def __init__(self, parts: Parts, reply_queue: Callable[[], str]) -> None:
        self._parts = parts
        self.reply_queue = reply_queue

    def transport(self) -> Transport:
        """See `spec.backend.Host`."""
        return self._parts.transport

    def serializer(self, name: str) -> Serializer:
        """See `spec.backend.Host`."""
        return self._parts.codec.serializer(name)
