"""The serializer contract: objects to bytes and back."""

from __future__ import annotations

from typing import Any, Protocol


class SerializerHost(Protocol):
    """What a serializer plugin may ask of its app: a serializer that stands on another finds it here."""

    def make_serializer(self, name: str) -> Serializer:
        """Another serializer, by name; ask for it when the first message is written or read."""


class Serializer(Protocol):
    """Stateless and safe for threads.

    Attributes:
        name: What users type (`json`).
        content_type, content_encoding: What stands on the wire, as kombu has it.
        unsafe: Loading can run code of the sender's choosing; accepted only when the app says so aloud.
    """

    name: str
    content_type: str
    content_encoding: str
    unsafe: bool

    def dumps(self, obj: Any) -> bytes:
        """Encode.

        Raises:
            TypeError, ValueError: `obj` holds something that this serializer does not know.
        """

    def loads(self, data: bytes) -> Any:
        """Decode bytes from anywhere.

        Raises:
            ValueError: Not valid; never another exception, whatever the bytes (B26).
        """
