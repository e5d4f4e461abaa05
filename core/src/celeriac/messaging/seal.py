"""A seal over a whole message: who can write to the broker, but has no key, can neither make nor change one.

Used only by apps that set `message_seal_key`: `app/sending.py` puts it on, the slot checks it before it decodes.
It is an HMAC (SHA-256) over content type, headers, `correlation_id`, `reply_to` and body. Headers whose names begin
with `x-` are left out, because brokers add such on the way.

A seal does not stop a message from being sent twice, or to another queue of the same app.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

from celeriac.exceptions import ImproperlyConfigured, SecurityError
from celeriac.spec.data import Payload

SEAL_HEADER: Final = "celeriac-seal"
MIN_KEY_BYTES: Final = 16
_VERSION: Final = "1 "
_LEFT_OUT: Final = frozenset({SEAL_HEADER, "redelivered"})


class BadSeal(SecurityError):
    """A message without a seal, or with one that is not ours or does not fit it."""


class Seal:
    """Seals and checks messages.

    Args:
        keys: The first one seals, all of them are accepted; so a key can be replaced without a stop.
    """

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = keys

    def put_on(self, payload: Payload) -> None:
        """Seal a message as it is now, in place of an earlier seal."""
        payload.headers[SEAL_HEADER] = _VERSION + _digest(self._keys[0], payload)

    def check(self, payload: Payload) -> None:
        """Make sure that a message is as somebody with one of the keys sealed it.

        Raises:
            BadSeal: It is not.
        """
        found = payload.headers.get(SEAL_HEADER)
        if not isinstance(found, str) or not found.startswith(_VERSION):
            raise BadSeal("refused a message without a seal: its sender does not have message_seal_key")
        given = found[len(_VERSION) :].encode()
        if not any(hmac.compare_digest(given, _digest(key, payload).encode()) for key in self._keys):
            raise BadSeal("refused a message whose seal does not fit: another key, or it was changed on its way")


def make_seal(keys: str | bytes | None) -> Seal | None:
    """From the setting `message_seal_key`; None if it is not set.

    Raises:
        ImproperlyConfigured: A key is too short to be one.
    """
    if not keys:
        return None
    parts = (keys.encode() if isinstance(keys, str) else keys).split()
    if not parts or min(map(len, parts)) < MIN_KEY_BYTES:
        raise ImproperlyConfigured(
            f"message_seal_key: a key must have {MIN_KEY_BYTES} bytes or more. Make one: "
            f'python -c "import secrets; print(secrets.token_hex(32))"'
        )
    return Seal(parts)


def _digest(key: bytes, payload: Payload) -> str:
    properties: Mapping[str, Any] = payload.properties
    headers = {
        name: value for name, value in payload.headers.items() if name not in _LEFT_OUT and not name.startswith("x-")
    }
    said = [
        payload.content_type,
        payload.content_encoding,
        properties.get("correlation_id"),
        properties.get("reply_to"),
        headers,
    ]
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), default=str).encode()
    return hmac.new(key, b"%d\n%s\n%s" % (len(text), text, payload.body), "sha256").hexdigest()
