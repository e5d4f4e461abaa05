"""The plugin's front: its contract version and its one hook. Imported only when the plugin is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Serializer

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_serializer(name: str) -> Serializer | None:
    """The serializer `literal`; None for another name."""
    if name != "literal":
        return None
    from celeriac_serializer_literal.serializer import LiteralSerializer

    return LiteralSerializer()
