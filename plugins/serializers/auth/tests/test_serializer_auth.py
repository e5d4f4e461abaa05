"""Only what a trusted key has signed is read, and broken bytes are as harmless as elsewhere."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.celery_venv import celery_python

from celeriac import Celery
from celeriac.exceptions import ImproperlyConfigured, SecurityError
from celeriac.testing.serializer_suite import SerializerConformance

MakePair = Callable[..., "tuple[Path, Path]"]


class TestAuth(SerializerConformance):
    plugin = "celeriac_serializer_auth"
    name = "auth"
    content_type = "application/data"
    content_encoding = "utf-8"
    unsafe = False

    @pytest.fixture(autouse=True)
    def signed(self, signing: dict[str, Any]) -> None:
        self.settings = signing


def app_with(settings: dict[str, Any]) -> Celery:
    return Celery("signed", broker="memory://", backend="memory://", set_as_current=False, **settings)


def test_a_changed_body_is_refused_before_it_is_read(signing: dict[str, Any]) -> None:
    serializer = app_with(signing).codec.serializer("auth")
    packed = base64.b64decode(serializer.dumps([[2], {}, None]))
    assert serializer.loads(base64.b64encode(packed)) == [[2], {}, None]
    with pytest.raises(SecurityError, match="the message was changed"):
        serializer.loads(base64.b64encode(packed.replace(b"[[2]", b"[[3]")))


def test_an_unknown_signer_is_refused_by_name(signing: dict[str, Any], tmp_path: Path, make_pair: MakePair) -> None:
    key, certificate = make_pair(tmp_path, "mallory")
    stranger = {**signing, "security_key": str(key), "security_certificate": str(certificate)}
    body = app_with(stranger).codec.serializer("auth").dumps("pay me")
    with pytest.raises(SecurityError, match=r"'mallory [0-9]+', which is not in"):
        app_with(signing).codec.decode(body, "application/data")


def test_an_expired_certificate_is_refused_at_the_start(
    signing: dict[str, Any], tmp_path: Path, make_pair: MakePair
) -> None:
    key, certificate = make_pair(tmp_path, "old", days=1)
    with pytest.raises(SecurityError, match=r"old\.crt expired"):
        app_with({**signing, "security_key": str(key), "security_certificate": str(certificate)}).setup_security()


def test_a_key_with_a_password_needs_it(signing: dict[str, Any], tmp_path: Path, make_pair: MakePair) -> None:
    key, certificate = make_pair(tmp_path, "bob", password=b"sesame")
    own = {**signing, "security_key": str(key), "security_certificate": str(certificate)}
    with pytest.raises(ImproperlyConfigured, match="security_key: not a private key that can be read"):
        app_with(own).setup_security()
    app_with(own).setup_security(key_password="sesame", store=f"{tmp_path}/*.crt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"security_key": None, "security_cert_store": None}, "needs security_key, security_cert_store: files with"),
        ({"task_serializer": "json"}, r"need task_serializer = 'auth' .* not 'json'"),
        ({"accept_content": ["json"]}, r"accept_content = \['auth'\], not 'auth' and \['json'\]"),
        ({"security_digest": "crc32"}, "'crc32' is none of sha224"),
        ({"security_key": "/nowhere/key"}, "security_key: cannot read '/nowhere/key'"),
        ({"security_cert_store": "/nowhere/*.crt"}, r"there is no certificate in '/nowhere/\*\.crt'"),
    ],
)
def test_setup_security_says_what_is_missing(signing: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        app_with({**signing, **change}).setup_security()


def test_setup_security_may_accept_more(signing: dict[str, Any]) -> None:
    app = app_with(signing)
    app.setup_security(["json"])
    assert app.codec.decode(b"[1]", "application/json") == [1]
    with pytest.raises(SecurityError, match="refused a message of content type 'application/x-msgpack'"):
        app.codec.decode(b"\x01", "application/x-msgpack")


@pytest.mark.services
def test_a_real_celery_reads_what_we_sign_and_we_read_what_it_signs(signing: dict[str, Any]) -> None:
    program = f"""
import sys
from celery import Celery
from kombu.serialization import dumps, loads
app = Celery(set_as_current=True)
app.conf.update({signing!r})
app.setup_security()
content_type, encoding, body = dumps([[1, "grün"], {{}}, None], serializer="auth")
print(content_type, encoding, body)
print(loads(sys.stdin.read().strip(), content_type, encoding, accept=["auth"]))
"""
    serializer = app_with(signing).codec.serializer("auth")
    ours = serializer.dumps([["von uns"], {}, {"chain": None}]).decode()
    command = [str(celery_python()), "-c", program]
    done = subprocess.run(command, input=ours, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()
    content_type, encoding, theirs = first.split()
    assert (content_type, encoding) == (serializer.content_type, serializer.content_encoding)
    assert serializer.loads(theirs.encode()) == [[1, "grün"], {}, None]
    assert second == "[['von uns'], {}, {'chain': None}]"


def test_a_change_of_settings_counts_for_messages_after_it(signing: dict[str, Any]) -> None:
    app = app_with(signing)
    app.setup_security()
    app.conf.security_cert_store = "/nowhere/*.crt"
    with pytest.raises(ImproperlyConfigured, match="there is no certificate"):
        app.codec.serializer("auth")
