"""MessagePack, with kombu's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Serializer

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_serializer(name: str) -> Serializer | None:
    """The serializer `msgpack`; None for another name."""
    if name != "msgpack":
        return None
    from celeriac_serializer_msgpack.serializer import MsgpackSerializer

    return MsgpackSerializer()
