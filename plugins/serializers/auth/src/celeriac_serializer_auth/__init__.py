"""Signed bodies, in Celery's own format: who holds a trusted key may have tasks run, nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Serializer, SerializerHost

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_serializer(name: str, settings: Mapping[str, Any], host: SerializerHost) -> Serializer | None:
    """The serializer `auth`; None for another name."""
    if name != "auth":
        return None
    from celeriac_serializer_auth.serializer import make_auth_serializer

    return make_auth_serializer(settings, host)
