"""The contract: all that a plugin may import from celeriac, besides `celeriac.exceptions`."""

from celeriac.spec.backend import Document, Host, ResultBackend, Watch
from celeriac.spec.data import (
    API_VERSION,
    FINAL_OUTCOMES,
    UNKNOWN_COST_S,
    Delivery,
    ExchangeSpec,
    Head,
    Job,
    JobReport,
    Malformed,
    Payload,
    QueueSpec,
    Route,
    Settlement,
    StoredResult,
    reply_queue_spec,
)
from celeriac.spec.hooks import hookimpl, hookspec
from celeriac.spec.pool import Pool, PoolOptions, SlotProgram
from celeriac.spec.serializer import Serializer, SerializerHost
from celeriac.spec.state import ABSENT, Change, Entry, KeepsState, SharedState, Snapshot
from celeriac.spec.transport import Consumer, FanoutTransport, Listener, Poller, Transport

__all__ = [
    "ABSENT",
    "API_VERSION",
    "FINAL_OUTCOMES",
    "UNKNOWN_COST_S",
    "Change",
    "Consumer",
    "Delivery",
    "Document",
    "Entry",
    "ExchangeSpec",
    "FanoutTransport",
    "Head",
    "Host",
    "Job",
    "JobReport",
    "KeepsState",
    "Listener",
    "Malformed",
    "Payload",
    "Poller",
    "Pool",
    "PoolOptions",
    "QueueSpec",
    "ResultBackend",
    "Route",
    "Serializer",
    "SerializerHost",
    "Settlement",
    "SharedState",
    "SlotProgram",
    "Snapshot",
    "StoredResult",
    "Transport",
    "Watch",
    "hookimpl",
    "hookspec",
    "reply_queue_spec",
]
