"""Keys and certificates, made for the tests."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

MakePair = Callable[..., "tuple[Path, Path]"]


def make_pair(folder: Path, name: str, *, days: int = 2, password: bytes | None = None) -> tuple[Path, Path]:
    """A private key and a certificate for it, valid from yesterday for so many days; their files."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    owner = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    began = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(owner)
        .issuer_name(owner)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + datetime.timedelta(days=days, seconds=-5))
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key_path, certificate_path = folder / f"{name}.key", folder / f"{name}.crt"
    form = serialization.PrivateFormat.PKCS8
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, protection))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_path, certificate_path


@pytest.fixture(scope="session", name="make_pair")
def make_pair_fixture() -> MakePair:
    return make_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One pair for all tests: making a key takes a while."""
    return make_pair(tmp_path_factory.mktemp("keys"), "alice")


@pytest.fixture
def signing(pair: tuple[Path, Path]) -> dict[str, Any]:
    """The settings of an app that signs."""
    key, certificate = pair
    return {
        "task_serializer": "auth",
        "accept_content": ["auth"],
        "security_key": str(key),
        "security_certificate": str(certificate),
        "security_cert_store": f"{certificate.parent}/*.crt",
    }
