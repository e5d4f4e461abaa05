"""JSON with Celery's extended types, byte for byte what kombu writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Serializer

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_serializer(name: str) -> Serializer | None:
    """The serializer `json`; None for another name."""
    if name != "json":
        return None
    from celeriac_serializer_json.serializer import JsonSerializer

    return JsonSerializer()
