"""YAML, the safe subset, as kombu writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.spec import hookimpl

if TYPE_CHECKING:
    from celeriac.spec import Serializer

CELERIAC_API = (1, 0)


@hookimpl
def celeriac_make_serializer(name: str) -> Serializer | None:
    """The serializer `yaml`; None for another name."""
    if name != "yaml":
        return None
    from celeriac_serializer_yaml.serializer import YamlSerializer

    return YamlSerializer()
