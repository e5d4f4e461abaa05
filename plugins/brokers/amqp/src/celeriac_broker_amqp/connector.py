"""How to reach RabbitMQ: URLs, TLS, log-in. Called by `transport` and `publisher` for every new `Link`.

kombu reads the URL and py-amqp shakes hands, so that every URL, TLS option and login method that Celery's users
have written keeps its meaning; then the socket changes hands (see `link`).
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final

import amqp
from kombu.connection import Connection

from celeriac.exceptions import ImproperlyConfigured, TransportUnreachable, mask_url
from celeriac.spec.servers import Servers, split_urls
from celeriac_broker_amqp.link import Link

#: Milliseconds that sent bytes may wait for the other end's kernel before it counts as gone. py-amqp's one
#: second takes a hiccup for a death.
TCP_USER_TIMEOUT_MS: Final = 10_000


class Connector:
    """Opens links to one broker, or to one of several: see `Servers`.

    Args:
        url: One URL, or several separated by semicolons.
    Raises:
        ImproperlyConfigured: A URL that makes no sense, or no such strategy.
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self.timeout_s = float(settings.get("broker_connection_timeout") or 4.0)
        self._servers = Servers(split_urls(url), settings)
        options = dict(settings.get("broker_transport_options") or {})
        self._options = {
            **options,
            "socket_settings": {socket.TCP_USER_TIMEOUT: TCP_USER_TIMEOUT_MS, **(options.get("socket_settings") or {})},
        }
        self._tls = settings.get("broker_use_ssl") or False
        self._login_method = settings.get("broker_login_method")
        for one in self._servers.urls:
            self._read(one, 0.0, 0.0)

    @property
    def url(self) -> str:
        """The URL that answered last, safe to print."""
        return self._servers.url

    def open(self, purpose: str, *, heartbeat_s: float, deadline: float) -> Link:
        """Open a link.

        Args:
            purpose: What it is for, shown in RabbitMQ's list of connections.
            heartbeat_s: Interval asked for; the lesser of it and the broker's is agreed on. 0 for none.
        Raises:
            TransportUnreachable: No URL answered.
        """

        def shake_hands(place: int) -> Link:
            left_s = min(self.timeout_s, deadline - time.monotonic())
            return self._shake_hands(self._servers.urls[place], purpose, heartbeat_s, max(left_s, 0.05))

        return self._servers.connect(shake_hands)

    def _read(self, url: str, heartbeat_s: float, timeout_s: float) -> Connection:
        try:
            connection: Any = Connection(  # type: ignore[no-untyped-call]
                url,
                transport="amqps" if url.startswith("amqps://") else "pyamqp",
                ssl=self._tls,
                login_method=self._login_method,
                connect_timeout=timeout_s,
                heartbeat=heartbeat_s,
            )
        except (ValueError, TypeError) as exc:
            raise ImproperlyConfigured(f"broker URL {mask_url(url)} makes no sense: {exc}") from exc
        connection.connect_timeout = timeout_s  # one in the URL is text, which no socket takes
        if not heartbeat_s:
            connection.heartbeat = 0  # whatever the URL says: nobody would send them
        return connection  # type: ignore[no-any-return]

    def _shake_hands(self, url: str, purpose: str, heartbeat_s: float, timeout_s: float) -> Link:
        parameters = self._read(url, heartbeat_s, timeout_s)
        named = {"connection_name": purpose, **(self._options.get("client_properties") or {})}
        parameters.transport_options = {**self._options, "client_properties": named}
        try:
            connection = parameters.transport.establish_connection()
        except (amqp.AMQPError, OSError, ValueError) as exc:
            raise _unreachable(url, parameters, exc) from exc
        # Taken away from py-amqp, whose own end would shut it down.
        sock, connection.transport.sock = connection.transport.sock, None
        return Link(
            sock,
            frame_max=connection.frame_max,
            heartbeat_s=connection.heartbeat,
            server=connection.server_properties,
            where=f"{parameters.host}/{parameters.virtual_host}",
            timeout_s=self.timeout_s,
        )


def _unreachable(url: str, parameters: Connection, exc: Exception) -> TransportUnreachable:
    """What went wrong on the way in, and what to check."""
    where, user, vhost = parameters.host, parameters.userid, parameters.virtual_host
    if isinstance(exc, amqp.AccessRefused):
        why, hint = f"refused user {user!r}", f"Check user and password, and that {user!r} may use {vhost!r}."
    elif isinstance(exc, amqp.NotAllowed) and " limit " in exc.reply_text:
        why, hint = (
            f"allows no more connections: {exc.reply_text}",
            "A worker needs several. See rabbitmqctl list_vhost_limits and list_user_limits.",
        )
    elif isinstance(exc, amqp.NotAllowed):
        why, hint = (
            f"did not open virtual host {vhost!r}: {exc.reply_text}",
            "Check that it exists: rabbitmqctl list_vhosts.",
        )
    elif isinstance(exc, ssl.SSLError):
        why, hint = f"did not agree on TLS: {exc}", "Check broker_use_ssl, the scheme amqps:// and the port (5671)."
    elif isinstance(exc, socket.gaierror):
        why, hint = f"is not known: {exc}", "Check the host name in the broker URL."
    elif isinstance(exc, (TimeoutError, socket.timeout)):
        why, hint = "did not answer in time", "Check host, port and firewall."
    elif isinstance(exc, ConnectionRefusedError):
        why, hint = "refused the connection", "Is RabbitMQ running there?"
    else:
        why, hint = f"could not be spoken to: {exc}", "Is it RabbitMQ, and is it up?"
    return TransportUnreachable(f"RabbitMQ at {where} {why}.", url=url, hint=hint)
