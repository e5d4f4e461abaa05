"""What crosses a floor of the house: small, frozen, plain records.

Every room and every plugin passes these on; none of them knows a broker, a task object or a thread.
They are `msgspec.Struct`s because they are made several times for each message: creation costs a
tenth of a frozen dataclass, and an `array_like` one travels to a pool slot without a translation.
Field names never carry a unit twice: seconds end in `_s`, bytes in `_bytes`, times are unix seconds.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import Struct

#: The version of the contract in this package: (major, minor). A plugin module names the one it was
#: written for as ``CELERIAC_API = (1, 0)``; same major, and minor not above core's, is accepted.
API_VERSION: Final = (1, 0)

UNKNOWN_COST_S: Final = float("inf")

#: Headers with what workers have counted about a message so far. A dead one that is given back begins without them.
RETURNS_HEADER: Final = "x-celeriac-returns"
UNKNOWN_SINCE_HEADER: Final = "x-celeriac-unknown-since"
PUBLISH_TRY_HEADER: Final = "x-celeriac-publish-try"
#: Under which claim on a chord a message of its body was published; see `Head.claim`.
CLAIM_HEADER: Final = "x-celeriac-claim"
COUNT_HEADERS: Final = frozenset({RETURNS_HEADER, UNKNOWN_SINCE_HEADER, PUBLISH_TRY_HEADER})


class QueueSpec(Struct, frozen=True):
    """A queue and the binding that feeds it, as a broker needs to declare it.

    With an empty exchange the queue is reached by its own name (Celery's direct queues are published
    to so even when they are bound to a named exchange). `binding_arguments` are what headers exchanges go by.
    With `no_declare` somebody else makes it, and it is used as it is, by brokers on which queues are made.
    """

    name: str
    exchange: str = ""
    exchange_type: str = "direct"
    routing_key: str = ""
    durable: bool = True
    auto_delete: bool = False
    exclusive: bool = False
    arguments: dict[str, Any] = {}
    binding_arguments: dict[str, Any] = {}
    no_declare: bool = False


class ExchangeSpec(Struct, frozen=True):
    """Where broadcasts go, and what listeners bind to; `type` is one of AMQP's exchange types."""

    name: str
    type: str = "fanout"
    durable: bool = False


#: How long a client's reply queue lives unused: Celery's own figure, since its clients declare it too.
REPLY_QUEUE_EXPIRES_MS: Final = 86_400_000


def reply_queue_spec(name: str) -> QueueSpec:
    """The queue on which a client hears of its calls: of the `rpc` backend, and of workers that cannot answer.

    Whoever declares it first, client or worker, must declare the same.
    """
    return QueueSpec(name, auto_delete=True, arguments={"x-expires": REPLY_QUEUE_EXPIRES_MS})


class Route(Struct, frozen=True, array_like=True):
    """Where a message goes. Shared by all messages of one queue, so compare it by identity first.

    Attributes:
        routing_key: The queue's name when `exchange` is empty.
        queue: The queue that the sender meant, for logs and events; may differ from the key.
    """

    routing_key: str
    exchange: str = ""
    exchange_type: str = "direct"
    queue: str = ""


class Payload(Struct, array_like=True):
    """A message as bytes with its content type, its headers, and where and when it goes.

    Attributes:
        body: Serialized (and, if `headers["compression"]` says so, compressed) bytes.
        headers: Celery protocol 2 headers and the user's own; JSON types.
        properties: `correlation_id`, `reply_to`, `delivery_mode`, `priority` (0-9), `expiration`
            (text, milliseconds) and whatever else the sender gave for the broker. `mandatory` False says that
            nobody to take the message is no error.
        due: Unix time before which the broker should not deliver; None for now. Only a transport with
            the ability `delay` looks at it; for the others the header `eta` says the same to the worker.
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    route: Route
    due: float | None = None


class Head(Struct):
    """The few headers by which a worker decides whether a message may run now.

    `eta` and `expires` are the header's ISO 8601 texts, unread. `task` is empty for a message of
    Celery's protocol 1, whose head is in its body. `claim` is the header `x-celeriac-claim`, if it is a text: of
    several messages that are one call, published under several claims, one is run.
    """

    id: str
    task: str
    eta: str | None = None
    expires: str | None = None
    timelimit: list[float | None] | None = None
    stamps: dict[str, Any] | None = None
    claim: str | None = None


class Malformed(Struct, frozen=True):
    """A message whose head cannot be read: why, in words for a person."""

    reason: str


class Delivery(Struct):
    """A payload received and not yet settled.

    Attributes:
        tag: The transport's own token: hashable, unique among the unsettled deliveries of a consumer.
        raw: The message exactly as the broker carries it; `Transport.unpack(raw)` reads it.
        head: Read by the transport; never raises, a bad one is a `Malformed`.
        attempt: 1 for the first; one more after each loss of a worker that had it.
        redelivered: The broker has handed this message out before and it was not a clean return.
        spared: How many of the attempts before were no crash: given up by a worker that was told to stop
            (`Settlement.spared`), or, as far as that can be known, lost with a connection by a worker that lives.
    """

    tag: Any
    raw: bytes
    head: Head | Malformed
    queue: str
    attempt: int = 1
    redelivered: bool = False
    spared: int = 0


class Settlement(Struct):
    """How one delivery ends. Every delivery gets exactly one.

    Attributes:
        verb: `ack` removes it; `requeue` gives it back (now, or at unix time `due`); `dead` sets it
            aside with `reason` and `error` until a person looks.
        started: Its task may have begun to run: a requeue then counts as a lost attempt and flags the
            next delivery as redelivered. False for a clean return, which changes neither.
        spared: With `started`: its worker gave it up on purpose, so the attempt is no crash (B14). Counted by a
            transport with the ability `spares`.
    """

    tag: Any
    verb: Literal["ack", "requeue", "dead"] = "ack"
    due: float | None = None
    reason: str = ""
    error: str = ""
    started: bool = False
    spared: bool = False


class DeadLetter(Struct, frozen=True):
    """An entry that was set aside, and why (B21).

    Attributes:
        id: The transport's own name for it, text; unique within its queue, and never used again.
        queue: Where it was.
        raw: The message as the broker carried it; `Transport.read_head` and `Transport.unpack` read it.
        reason: In few words, from the worker: `malformed: …`, `crash: …`, `unknown task …`.
        error: The last error's text, at most 8 KB of it.
        attempt: Which delivery it was: 1 for the first.
        owner: The worker that set it aside.
        at: When, in unix time.
    """

    id: str
    queue: str
    raw: bytes
    reason: str
    error: str = ""
    attempt: int = 1
    owner: str = ""
    at: float = 0.0


class DeadBox(Struct, frozen=True):
    """How much was set aside from one queue.

    Attributes:
        count: Entries that are kept.
        dropped: Entries that made room for newer ones or were kept long enough; None if the broker does not count.
    """

    queue: str
    count: int
    dropped: int | None = 0


class StoredResult(Struct, array_like=True):
    """One state of one task on its way to the result store.

    Attributes:
        state: A name from `celeriac.states`, or a custom state.
        data: What the backend's own `encode` made of the result document.
        reply_to: The client's reply queue, for backends that answer instead of keeping.
        group: The group the task belongs to, if any; its results must not expire before the group.
        received: When the worker received the message of this run, in unix time. Only for a backend that looks at it
            (ability `fence`, R13), and None with a state that no run of a message has made.
        redelivered: The message had been received before: a final state then keeps earlier receivers out.
        keeper: Core's word for the store it goes to, if its task has one of its own. A backend need not look.
    """

    task_id: str
    state: str
    data: bytes
    reply_to: str | None = None
    group: str | None = None
    received: float | None = None
    redelivered: bool = False
    keeper: str = ""


class Chord(Struct, array_like=True):
    """A join to be: a body that is called once, with the results of all parts, when the last of them has come.

    Attributes:
        group: Names it: the id of the group that its parts form.
        size: How many parts there are.
        body: What to call, in core's own form; a backend hands it back with an overdue claim.
        patience_s: It is overdue when so long no part has come (from its opening, then from each part).
    """

    group: str
    size: int
    body: bytes
    patience_s: float


class ChordPart(Struct, array_like=True):
    """One part of a chord has ended, well or not.

    Attributes:
        index: Its place among the parts; None for one that was added later, which comes after the others.
        data: `[1, task_id, state, result]` as the result serializer writes it, which is Celery's form.
        body: As `Chord.body`, so that whoever completes the chord need not read it from the store.
    """

    group: str
    task_id: str
    index: int | None
    data: bytes
    body: bytes = b""


class ChordClaim(Struct):
    """The right to end a chord, held by one caller at a time.

    Attributes:
        token: Proves it; empty when somebody else has the claim: whoever waits for the chord's end asks again.
        retry_s: With an empty token: seconds until that other's claim ends, if it does nothing.
        size: How many parts were expected.
        parts: `(index, data)` of those that came, in order; an index is None where the store does not know it.
        body: What `open_chords` was given, if the store has it; empty otherwise.
    """

    group: str
    token: str
    retry_s: float = 0.0
    size: int = 0
    parts: list[tuple[int | None, bytes]] = []
    body: bytes = b""


class ChordWork(Struct, array_like=True):
    """What a run means for chords: those to open before its messages are sent, and parts that have ended."""

    opened: list[Chord] = []
    parts: list[ChordPart] = []


class Job(Struct, array_like=True):
    """One call for a pool slot.

    Attributes:
        token: Names the job between worker and pool; never used twice by one worker. From 0 to 2**63 - 1.
        raw: The message as the broker carries it; the slot unpacks it.
        announce: The slot's program emits an `accepted` report when it has truly taken the call (P2).
        soft_limit_s, hard_limit_s: Time limits that a pool with these abilities enforces; None: none.
        cost_s: How long the worker expects the run to take; `UNKNOWN_COST_S` if it cannot say. Jobs whose
            costs add up to a few milliseconds may travel to a slot together; all others travel alone.
        coroutine: Its task is a coroutine function.
    """

    token: int
    raw: bytes
    queue: str = ""
    attempt: int = 1
    redelivered: bool = False
    announce: bool = False
    soft_limit_s: float | None = None
    hard_limit_s: float | None = None
    cost_s: float = UNKNOWN_COST_S
    coroutine: bool = False


#: Outcomes that end a job. The first five come from the slot, the others from the pool.
FINAL_OUTCOMES: Final = frozenset(
    {
        "succeeded",  # ran and returned
        "failed",  # raised
        "retried",  # asked for another try, which is among `publish`
        "ignored",  # asked that nothing be recorded
        "rejected",  # refused by the task (`requeue` says what then) or not decodable (`dead`)
        "lost",  # the slot died while it ran: `detail` says how
        "timed_out",  # the slot was killed at the hard limit
        "cancelled",  # cancelled before or while it ran
        "returned",  # never started; the pool gives it back
    }
)


class JobReport(Struct, array_like=True):
    """What a slot (or the pool, for a slot that died) says about one job.

    An `accepted` or `progress` report may come any number of times before the final one; exactly one
    final report comes for each job submitted. Effects are data: the worker performs them.

    Attributes:
        outcome: `accepted`, `progress`, or one of `FINAL_OUTCOMES`.
        stored: States to be stored, in order.
        publish: Messages to be sent next: retries, callbacks, the next step of a chain.
        detail: For the log: the result's repr, or the error in one line. Of `timed_out` the limit, in seconds.
        traceback: For the log, of an unexpected failure.
        dead: Why the message must be set aside rather than acknowledged; empty if it need not be.
        requeue: A rejected message goes back to its queue.
        timed_out: The run failed by its soft time limit.
        pid: The process that ran it. The pool sets it in what `SlotProgram.run` returns.
        chords: What it means for chords; None, as a rule.
    """

    token: int
    outcome: str
    runtime_s: float = 0.0
    stored: list[StoredResult] = []
    publish: list[Payload] = []
    detail: str = ""
    traceback: str | None = None
    dead: str = ""
    requeue: bool = False
    timed_out: bool = False
    pid: int = 0
    chords: ChordWork | None = None
