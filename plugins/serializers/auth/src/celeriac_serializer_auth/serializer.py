"""A signature around another serializer's bytes: called in clients and pool slots.

The signature is checked before the bytes inside are looked at. It covers the body, as in Celery, and not the headers;
for those celeriac has `message_seal_key`.

Source: Celery 5.7's `auth` serializer; `docs/reference/wire-protocol.md`, section «Signed bodies».
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from celeriac.exceptions import ImproperlyConfigured
from celeriac_serializer_auth.keys import BadSignature, Certificate, CertificateStore, Signer, find_digest, read_file

if TYPE_CHECKING:
    from celeriac.spec import Serializer, SerializerHost

_BETWEEN: Final = b"\x00\x01"


class AuthSerializer:
    """Celery's `auth`.

    Args:
        inner: The name of the serializer whose bytes are signed.
    """

    name = "auth"
    content_type = "application/data"
    content_encoding = "utf-8"
    unsafe = False

    def __init__(
        self, signer: Signer, certificate: Certificate, store: CertificateStore, host: SerializerHost, inner: str
    ) -> None:
        self._signer = signer
        self._certificate = certificate
        self._store = store
        self._host = host
        self._inner_name = inner

    @cached_property
    def _inner(self) -> Serializer:
        inner = self._host.make_serializer(self._inner_name)
        if inner.unsafe or inner.name == self.name:
            raise ImproperlyConfigured(
                f"security_serializer: {inner.name!r} cannot stand inside signed messages; json, msgpack or yaml can"
            )
        return inner

    def dumps(self, obj: Any) -> bytes:
        inner = self._inner
        body = inner.dumps(obj)
        parts = (
            b64encode(self._certificate.id.encode()),
            b64encode(self._signer.sign(body)),
            inner.content_type.encode(),
            inner.content_encoding.encode(),
            body,
        )
        return b64encode(_BETWEEN.join(parts))

    def loads(self, data: bytes) -> Any:
        try:
            signer, signature, content_type, _encoding, body = b64decode(data, validate=True).split(_BETWEEN, 4)
            name, signature = b64decode(signer, validate=True).decode(), b64decode(signature, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise BadSignature(f"not a signed message: {exc}") from None
        self._store.find(name).verify(body, signature)
        inner = self._inner
        if content_type != inner.content_type.encode():
            raise BadSignature(
                f"the signed message holds {content_type[:80]!r}; security_serializer is {inner.name!r} here"
            )
        return inner.loads(body)


def make_auth_serializer(settings: Mapping[str, Any], host: SerializerHost) -> AuthSerializer:
    """From the settings `security_…`.

    Raises:
        ImproperlyConfigured: One is missing, or its file is of no use.
    """
    wanted = ("security_key", "security_certificate", "security_cert_store")
    missing = [name for name in wanted if not settings.get(name)]
    if missing:
        raise ImproperlyConfigured(
            f"the serializer 'auth' needs {', '.join(missing)}: files with this app's private key and its certificate, "
            f"and a folder with the certificates of all whose messages it accepts. See app.setup_security()."
        )
    password = settings.get("security_key_password")
    password = password.encode() if isinstance(password, str) else password
    digest = find_digest(str(settings.get("security_digest") or "sha256"))
    key_path, certificate_path = str(settings["security_key"]), str(settings["security_certificate"])
    certificate = Certificate(read_file("security_certificate", certificate_path), certificate_path, digest)
    certificate.check_dates()
    return AuthSerializer(
        Signer(read_file("security_key", key_path), password, digest),
        certificate,
        CertificateStore(str(settings["security_cert_store"]), digest),
        host,
        str(settings.get("security_serializer") or "json"),
    )
