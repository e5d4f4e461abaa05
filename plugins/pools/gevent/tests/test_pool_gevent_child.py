"""What a child does before it takes jobs."""

from __future__ import annotations

import gevent.socket

from celeriac_pool_gevent.child import _sockets


class Derived(gevent.socket.socket):
    """As those of gevent.ssl are."""


def test_all_sockets_of_the_parent_are_found_whatever_they_derive_from() -> None:
    with gevent.socket.socket() as plain, Derived() as derived:
        found = {id(one) for one in _sockets(gevent.socket.socket)}
        assert {id(plain), id(derived)} <= found
