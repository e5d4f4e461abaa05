"""Python's pickle, as Celery sends it: only among those who trust each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Serializer

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_serializer(name: str) -> Serializer | None:
    """The serializer `pickle`; None for another name."""
    if name != "pickle":
        return None
    from celeriac_serializer_pickle.serializer import PickleSerializer

    return PickleSerializer()
