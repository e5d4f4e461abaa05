"""The hooks by which a plugin makes its object. Called at start-up only, never per message.

A plugin module implements the one hook of its kind, marked with `hookimpl`, and names the contract
version it was written for: ``CELERIAC_API = (1, 0)``. An implementation may take fewer arguments than the
specification. It returns None when the URL or name is not its own. It should import its client library
inside the hook's call path rather than at the top, so that being listed costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from celeriac.spec.backend import Host, ResultBackend
    from celeriac.spec.pool import Pool, PoolOptions, SlotProgram
    from celeriac.spec.serializer import Serializer, SerializerHost
    from celeriac.spec.transport import Transport

PROJECT = "celeriac"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class BrokerHooks:
    """Group `celeriac.brokers`."""

    @hookspec(firstresult=True)
    def celeriac_make_transport(self, url: str, settings: Mapping[str, Any]) -> Transport | None:
        """Make a transport for `url`, without connecting.

        Args:
            url: As the user wrote it, password included; the scheme is one of the plugin's entry-point names,
                unless the plugin was chosen by name.
            settings: All settings of the app by their lower-case names, read only. Of interest:
                `broker_transport_options`, `broker_connection_timeout` (seconds), `broker_use_ssl`,
                `broker_heartbeat`.
        Raises:
            ImproperlyConfigured: The URL or an option makes no sense; say which and what would.
        """


class BackendHooks:
    """Group `celeriac.backends`."""

    @hookspec(firstresult=True)
    def celeriac_make_backend(self, url: str, settings: Mapping[str, Any], host: Host) -> ResultBackend | None:
        """Make a result backend for `url`, without connecting.

        Of interest in `settings`: `result_expires` (seconds or timedelta, None or 0 keeps for ever),
        `result_backend_transport_options`, `result_compression` (`ResultCompression` obeys it), `result_accept_content`
        (for a store that knows what each result was written with: `AcceptedResults`), `result_persistent`.
        """


class SerializerHooks:
    """Group `celeriac.serializers`."""

    @hookspec(firstresult=True)
    def celeriac_make_serializer(
        self, name: str, settings: Mapping[str, Any], host: SerializerHost
    ) -> Serializer | None:
        """Make the serializer called `name`.

        Args:
            settings: All settings of the app by their lower-case names, read only.
            host: Gives other serializers, to one that wraps them (a signature, say).
        Raises:
            ImproperlyConfigured: A setting that it needs is missing or makes no sense.
        """


class PoolHooks:
    """Group `celeriac.pools`."""

    @hookspec(firstresult=True)
    def celeriac_make_pool(self, name: str, program: SlotProgram, options: PoolOptions) -> Pool | None:
        """Make a pool that runs `program`, without starting it."""

    @hookspec
    def celeriac_prepare_process(self, name: str) -> None:
        """Do what must be done to a process before the program whose tasks it runs is imported; optional.

        Called first of all by the command line, for the pool that it names (`-P`). A pool that was chosen otherwise
        has had no such call, and says in `start` if it cannot do without.
        """


class ExtensionHooks:
    """Group `celeriac.extensions`: all enabled ones are loaded."""

    @hookspec
    def celeriac_add_commands(self, group: click.Group) -> None:
        """Add commands to the `celeriac` command line."""

    @hookspec
    def celeriac_worker_starting(self, worker: Any) -> None:
        """The worker is about to start; nothing of it is connected, and no process forked.

        What is done to this process now (signals listened to, say) holds in the processes that are forked from it, too;
        those that are not have `celeriac_process_starting`.

        Args:
            worker: As for the other hooks; `app` and `hostname` are there, the rest may not be yet.
        """

    @hookspec
    def celeriac_process_starting(self, app: Any) -> None:
        """A process of a worker's pool that was not forked from the worker begins (`worker_pool_start_method` is
        `spawn`): called there, with the app as it was imported there, before any task runs."""

    @hookspec
    def celeriac_worker_ready(self, worker: Any) -> None:
        """The worker consumes from now on.

        Args:
            worker: Of interest: `app`, `hostname`, `queue_names`, `concurrency`, `pool_name`, `in_flight()`,
                `given_back()`, `listen(listener)` for a `RunListener`, `transport.unpack(raw)`.
        """

    @hookspec
    def celeriac_worker_stopped(self, worker: Any) -> None:
        """The worker has settled everything and let go of its connections."""


#: kind → (entry-point group, hook class, the hook that makes the object)
KINDS: dict[str, tuple[str, type, str]] = {
    "broker": ("celeriac.brokers", BrokerHooks, "celeriac_make_transport"),
    "backend": ("celeriac.backends", BackendHooks, "celeriac_make_backend"),
    "serializer": ("celeriac.serializers", SerializerHooks, "celeriac_make_serializer"),
    "pool": ("celeriac.pools", PoolHooks, "celeriac_make_pool"),
    "extension": ("celeriac.extensions", ExtensionHooks, ""),
}
