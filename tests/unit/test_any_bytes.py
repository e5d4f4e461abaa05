"""Any bytes give a value or the errors that their reader is allowed (B26): Hypothesis, beginning with the corpus."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corpus import read_corpus
from tests.fuzz.readers import READERS

#: What mutations put in: the words of envelopes, calls and tables.
WORDS = [
    *(b'"headers" "properties" "body" "id" "task" "eta" "__type__" "__value__" { } [ ] : , null NaN 1e999'.split()),
    b'"\\ud800"', b"\0", b"\xff", b"F\0\0\0\x05", b"S\0\0\0\x01a", b"\xdf\xff\xff\xff\xff",
]  # fmt: skip
#: One message as each kind of reader knows it, so that mutations reach behind the first check.
SOUND = {
    "envelope": b'{"body":"W1tdLHt9LHt9XQ==","headers":{"id":"1","task":"t","x-celeriac-returns":1,"redelivered":true},'
    b'"content-type":"application/json","properties":{"body_encoding":"base64","delivery_info":{"routing_key":"q"}}}',
    "body": b'[[1, {"__type__": "uuid", "__value__": {"hex": "0"}}], {"a": [1.5, null]}, {"chain": []}]',
    "amqp": b"\0\x01q" + (2).to_bytes(8, "big") + b"\x20\x00\0\0\0\x12\x04taskS\0\0\0\x01t\x02idS\0\0\0\x01" + b"[]",
}


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> bytes:
    """An entry of the corpus, or a sound message, with pieces cut out and words put in."""
    entries = [SOUND[kind], *(entry for entry in read_corpus(kind) if len(entry) < 10_000)]
    data = draw(st.sampled_from(entries))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 8))
        data = data[:at] + draw(st.sampled_from([b"", *WORDS]) | st.binary(max_size=6)) + data[at + cut :]
    return data


@pytest.mark.parametrize("name", READERS)
def test_B26_a_reader_says_what_it_may_to_any_bytes(name: str) -> None:
    reader = READERS[name]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=200) | mutated(reader.corpus))
    def feed(data: bytes) -> None:
        with contextlib.suppress(*reader.errors):
            reader.read(data)

    feed()


@pytest.mark.parametrize("name", READERS)
def test_B26_a_reader_says_what_it_may_to_the_corpus(name: str) -> None:
    reader = READERS[name]
    for data in [SOUND[reader.corpus], *read_corpus(reader.corpus)]:
        with contextlib.suppress(*reader.errors):
            reader.read(data)
