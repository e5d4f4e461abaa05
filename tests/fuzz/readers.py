"""Everything of ours that reads bytes from anywhere, and what each may say to them.

`tests/unit/test_any_bytes.py` feeds them with Hypothesis in every test run, `scripts/fuzz.py` with atheris for as long
as one likes. A reader returns, or raises one of the errors that stand beside it, and nothing else, whatever the bytes
(B26).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import celeriac_broker_amqp.deadletters
import celeriac_broker_amqp.message
import celeriac_broker_redis.attempts
from celeriac import Celery
from celeriac.exceptions import SecurityError
from celeriac.execution.execute import TaskProgram
from celeriac.messaging.codec import decompress
from celeriac.messaging.protocol import read_call
from celeriac.spec import Head, Job, JobReport, Malformed, Payload, Route, envelope
from celeriac.spec.results import COMPRESSIONS

TYPES: Final = {
    "json": "application/json",
    "msgpack": "application/x-msgpack",
    "yaml": "application/x-yaml",
}


class Reader(NamedTuple):
    """One reader.

    Attributes:
        corpus: The folder of `tests/corpus` to begin with.
        read: Takes the bytes.
        errors: What it may raise.
    """

    corpus: str
    read: Callable[[bytes], Any]
    errors: tuple[type[Exception], ...] = ()


def _app() -> Celery:
    app = Celery("fuzz", broker="memory://fuzz", backend="memory://fuzz", set_as_current=False)
    app.conf.accept_content = list(TYPES)

    @app.task(name="t")
    def t(*args: Any, **kwargs: Any) -> None:
        return None

    return app


APP: Final = _app()


def _head(read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        found = read(data)
        assert isinstance(found, (Head, Malformed)), found

    return run


def _payload(read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        assert isinstance(read(data), Payload)

    return run


def _call(content_type: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        headers = {"task": "t", "id": "1"}
        args, kwargs, embed, _ = read_call(Payload(data, content_type, "utf-8", headers, {}, Route("q")), APP.codec)
        assert isinstance(args, (list, tuple))
        assert isinstance(kwargs, dict)
        assert isinstance(embed, dict)

    return run


def _slot(unpack: Callable[[bytes], Payload]) -> Callable[[bytes], None]:
    """A message all the way through a pool slot: whatever it is, a report comes back."""
    program = TaskProgram(APP, unpack, "fuzz@here", detail=True)

    def run(data: bytes) -> None:
        report = program.run(Job(1, data, "q"), lambda report: None)
        assert isinstance(report, JobReport)

    return run


def _whole(body: bytes) -> bytes:
    headers = {"task": "t", "id": "1"}
    return envelope.pack(Payload(body, TYPES["json"], "utf-8", headers, {}, Route("q")), "tag")


def _result(data: bytes) -> None:
    plugin = APP.backend.plugin
    assert plugin is not None
    plugin.decode(data)


READERS: Final[Mapping[str, Reader]] = {
    "envelope head": Reader("envelope", _head(envelope.read_head)),
    "envelope": Reader("envelope", _payload(envelope.unpack), (ValueError,)),
    "envelope renewed": Reader("envelope", envelope.renew),
    "redis attempt": Reader("envelope", celeriac_broker_redis.attempts.attempt_of),
    "redis lost": Reader("envelope", celeriac_broker_redis.attempts.mark_lost),
    "redis renewed": Reader("envelope", celeriac_broker_redis.attempts.mark_new),
    "redis priority": Reader("envelope", celeriac_broker_redis.attempts.priority_of),
    "amqp head": Reader("amqp", _head(lambda data: celeriac_broker_amqp.message.scan(data)[0])),
    "amqp": Reader("amqp", _payload(celeriac_broker_amqp.message.unpack), (ValueError,)),
    "amqp record": Reader("amqp", celeriac_broker_amqp.message.split_record, (ValueError,)),
    "amqp dead letter": Reader("amqp", lambda data: celeriac_broker_amqp.deadletters.read_letter("q", data)),
    "slot of an envelope": Reader("envelope", _slot(envelope.unpack)),
    "slot of a body": Reader("body", lambda data: _slot(envelope.unpack)(_whole(data))),
    "slot of amqp": Reader("amqp", _slot(celeriac_broker_amqp.message.unpack)),
    "result": Reader("body", _result, (ValueError,)),
    **{f"call in {name}": Reader("body", _call(kind), (ValueError, SecurityError)) for name, kind in TYPES.items()},
    **{f"{name} loads": Reader("body", APP.codec.serializer(name).loads, (ValueError,)) for name in TYPES},
    **{
        f"opened {mime}": Reader("body", lambda data, mime=mime: decompress(data, mime), (ValueError,))  # type: ignore[misc]
        for mime in sorted(set(COMPRESSIONS.values()))
    },
}
