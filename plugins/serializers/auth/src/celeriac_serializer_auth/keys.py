"""Private key, certificates and signatures: RSA with PSS padding, as Celery signs.

Source: Celery 5.7's `auth` serializer; `docs/reference/wire-protocol.md`, section «Signed bodies».
"""

from __future__ import annotations

import datetime
import glob
import os
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from celeriac.exceptions import ImproperlyConfigured, SecurityError


class BadSignature(SecurityError, ValueError):
    """A message that nobody we trust has signed, or that was changed since."""


class Signer:
    """Signs with one private key."""

    def __init__(self, pem: bytes, password: bytes | None, digest: hashes.HashAlgorithm) -> None:
        try:
            key = load_pem_private_key(pem, password=password)
        except (TypeError, ValueError) as exc:
            raise ImproperlyConfigured(f"security_key: not a private key that can be read: {exc}") from exc
        if not isinstance(key, RSAPrivateKey):
            raise ImproperlyConfigured(f"security_key: must be an RSA key, not {type(key).__name__}")
        self._key = key
        self._digest = digest

    def sign(self, data: bytes) -> bytes:
        """The signature over these bytes."""
        return self._key.sign(data, _padding(self._digest), self._digest)


class Certificate:
    """A certificate, by which signatures of its owner are known."""

    def __init__(self, pem: bytes, source: str, digest: hashes.HashAlgorithm) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as exc:
            raise ImproperlyConfigured(f"{source}: not a certificate in PEM form: {exc}") from exc
        key = self._certificate.public_key()
        if not isinstance(key, RSAPublicKey):
            raise ImproperlyConfigured(f"{source}: must be of an RSA key, not {type(key).__name__}")
        self._key = key
        self._digest = digest
        self.source = source
        issuer = " ".join(str(part.value) for part in self._certificate.issuer)
        #: Names it in messages: issuer and serial number.
        self.id = f"{issuer} {self._certificate.serial_number}"

    def check_dates(self) -> None:
        """Refuse it outside the time for which it was made.

        Raises:
            BadSignature: It has expired, or is not valid yet.
        """
        now = datetime.datetime.now(datetime.timezone.utc)
        if now > self._certificate.not_valid_after_utc:
            raise BadSignature(f"the certificate {self.source} expired at {self._certificate.not_valid_after_utc}")
        if now < self._certificate.not_valid_before_utc:
            raise BadSignature(f"the certificate {self.source} is not valid before the time that it names")

    def verify(self, data: bytes, signature: bytes) -> None:
        """Make sure that its owner signed these bytes.

        Raises:
            BadSignature: No.
        """
        self.check_dates()
        try:
            self._key.verify(signature, data, _padding(self._digest), self._digest)
        except InvalidSignature:
            raise BadSignature(f"the signature is not that of {self.source}, or the message was changed") from None


class CertificateStore:
    """The certificates of those whose messages are accepted.

    Args:
        place: A folder, or a pattern of files.
    """

    def __init__(self, place: str, digest: hashes.HashAlgorithm) -> None:
        self._place = place
        pattern = os.path.join(place, "*") if os.path.isdir(place) else place
        self._by_id: dict[str, Certificate] = {}
        for path in sorted(glob.glob(pattern)):
            if os.path.isfile(path):
                found = Certificate(read_file("security_cert_store", path), path, digest)
                found.check_dates()
                self._by_id[found.id] = found
        if not self._by_id:
            raise ImproperlyConfigured(f"security_cert_store: there is no certificate in {place!r}")

    def find(self, name: str) -> Certificate:
        """The certificate that a message names.

        Raises:
            BadSignature: It is not among the trusted ones.
        """
        found = self._by_id.get(name)
        if found is None:
            raise BadSignature(f"signed with the certificate {name!r}, which is not in {self._place!r}")
        return found


def find_digest(name: str) -> hashes.HashAlgorithm:
    """The hash that `security_digest` names."""
    made: Callable[[], Any] | None = getattr(hashes, name.upper().replace("-", "_"), None)
    if made is None or name.lower() not in ("sha224", "sha256", "sha384", "sha512", "sha3_256", "sha3_512"):
        raise ImproperlyConfigured(f"security_digest: {name!r} is none of sha224, sha256, sha384, sha512, sha3_256 …")
    digest: hashes.HashAlgorithm = made()
    return digest


def read_file(setting: str, path: str) -> bytes:
    """The file that a setting names."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise ImproperlyConfigured(f"{setting}: cannot read {path!r}: {exc.strerror}") from exc


def _padding(digest: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(digest), salt_length=padding.PSS.MAX_LENGTH)
