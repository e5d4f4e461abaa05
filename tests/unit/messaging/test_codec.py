"""Which bodies are decoded, and within which limits."""

from __future__ import annotations

import zlib

import pytest

from celeriac import Celery
from celeriac.beat.program import Beat
from celeriac.cli.group import run
from celeriac.exceptions import ImproperlyConfigured, SecurityError
from celeriac.messaging.codec import compress, decompress
from celeriac.worker.worker import Worker


def test_pickle_needs_to_be_allowed_aloud() -> None:
    app = Celery("t", broker="memory://", accept_content=["json", "pickle"], set_as_current=False)
    with pytest.raises(SecurityError, match="allow_unsafe_serializers"):
        app.codec.check_accept()
    body = app.codec.serializer("pickle").dumps({"a": 1})
    with pytest.raises(SecurityError, match="pickle"):
        app.codec.decode(body, "application/x-python-serialize")


def test_pickle_works_once_it_is_allowed() -> None:
    app = Celery(
        "t", broker="memory://", accept_content=["json", "pickle"], allow_unsafe_serializers=True, set_as_current=False
    )
    app.codec.check_accept()
    body = app.codec.serializer("pickle").dumps({1: {2}})
    assert app.codec.decode(body, "application/x-python-serialize") == {1: {2}}


def test_a_content_type_may_be_accepted_by_its_mime_name() -> None:
    app = Celery("t", broker="memory://", accept_content=["application/x-msgpack"], set_as_current=False)
    body = app.codec.serializer("msgpack").dumps([1, 2])
    assert app.codec.decode(body, "application/x-msgpack") == [1, 2]


def test_a_bomb_is_refused_before_it_is_large() -> None:
    bomb = zlib.compress(b"\0" * 100_000_000)
    with pytest.raises(ValueError, match="grow past"):
        decompress(bomb, "application/x-gzip")


@pytest.mark.parametrize("name", ["gzip", "zlib", "bzip2", "lzma", "xz", "brotli"])
def test_what_is_compressed_by_any_method_comes_back(name: str) -> None:
    body = b"a body that repeats itself " * 1000
    packed, mime = compress(body, name)
    assert len(packed) < 500
    assert decompress(packed, mime) == body == decompress(packed, name)


def test_a_brotli_bomb_and_a_brotli_stump_are_refused() -> None:
    bomb, mime = compress(b"\0" * 100_000_000, "brotli")
    with pytest.raises(ValueError, match="grow past"):
        decompress(bomb, mime)
    with pytest.raises(ValueError, match="ends too early"):
        decompress(compress(b"hello there" * 20, "brotli")[0][:-3], mime)


MIMES = ["application/x-gzip", "application/x-bz2", "application/x-lzma", "application/x-brotli"]


@pytest.mark.parametrize("mime", MIMES)
def test_broken_compression_is_a_value_error(mime: str) -> None:
    with pytest.raises(ValueError, match=mime):
        decompress(b"not compressed at all", mime)


def test_unknown_methods_are_named() -> None:
    with pytest.raises(ValueError, match="unknown compression"):
        decompress(b"", "application/x-nothing")
    with pytest.raises(ImproperlyConfigured, match=r"'middle-out'; there are .*gzip"):
        compress(b"", "middle-out")


@pytest.mark.parametrize(
    ("setting", "value"), [("task_serializer", "jsn"), ("event_serializer", "jsn"), ("task_compression", "gzp")]
)
def test_who_could_send_nothing_does_not_start(setting: str, value: str) -> None:
    app = Celery("t", broker="memory://nothing", set_as_current=False, **{setting: value})
    with pytest.raises(ImproperlyConfigured, match=value):
        Worker(app, pool="solo", on_ready=lambda worker: worker.stop()).run()
    with pytest.raises(ImproperlyConfigured, match=value):
        Beat(app, on_ready=lambda beat: beat.stop()).run()


def test_an_accept_list_that_must_be_said_aloud_is_a_wrong_setting(capsys: pytest.CaptureFixture[str]) -> None:
    app = Celery("t", broker="memory://aloud", set_as_current=False, accept_content=["pickle"])
    assert run(["worker", "-P", "solo"], app) == 2
    assert "allow_unsafe_serializers = True" in capsys.readouterr().err
