"""Serializers that a program registered with `kombu.serialization.register`, or a dist under kombu's entry points.

Asked by the kernel for names and content types that no plugin has. kombu's own serializers are left out: those are
our plugins' names, and kombu's `pickle` would be a way around `allow_unsafe_serializers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from celeriac.spec.serializer import Serializer

_KOMBUS_OWN: Final = frozenset({"json", "msgpack", "pickle", "raw", "yaml"})


class RegisteredSerializer:
    """One entry of kombu's registry.

    Not `unsafe`: whoever registers a function to read messages with has said so aloud.
    """

    unsafe = False

    def __init__(
        self,
        name: str,
        content_type: str,
        content_encoding: str,
        encode: Callable[[Any], str | bytes],
        decode: Callable[[Any], Any] | None,
    ) -> None:
        self.name = name
        self.content_type = content_type
        self.content_encoding = content_encoding
        self._encode = encode
        self._decode = decode

    def dumps(self, obj: Any) -> bytes:
        """See `Serializer.dumps`."""
        try:
            data = self._encode(obj)
        except (TypeError, ValueError):
            raise
        except Exception as exc:
            raise ValueError(f"serializer {self.name!r} cannot write it: {type(exc).__name__}: {exc}") from exc
        if isinstance(data, str):
            text_encoding = "utf-8" if self.content_encoding == "binary" else self.content_encoding
            return data.encode(text_encoding)
        return bytes(data)

    def loads(self, data: bytes) -> Any:
        """See `Serializer.loads`."""
        if self._decode is None:
            raise ValueError(f"serializer {self.name!r} was registered without a decoder")
        try:
            return self._decode(data)
        except ValueError:
            raise
        except Exception as exc:  # a function of the program's, which knows nothing of our contract (B26)
            raise ValueError(f"not valid {self.content_type}: {type(exc).__name__}: {exc}") from exc


def find_registered(name: str) -> Serializer | None:
    """The serializer that was registered under this name, or None."""
    registry = _registry()
    found = None if registry is None or name in _KOMBUS_OWN else registry._encoders.get(name)
    if registry is None or found is None:
        return None
    content_type, content_encoding, encode = found
    return RegisteredSerializer(
        name, content_type, content_encoding or "utf-8", encode, registry._decoders.get(content_type)
    )


def name_of_registered(content_type: str) -> str | None:
    """The name under which a reader of this content type was registered, or None."""
    registry = _registry()
    name = None if registry is None else registry.type_to_name.get(content_type)
    return None if name in _KOMBUS_OWN else name


def _registry() -> Any:
    try:
        from kombu.serialization import registry  # only who asks for an unknown serializer pays for kombu
    except Exception:  # it reads entry points when it is imported, and one that cannot be read ends that
        return None
    return registry
