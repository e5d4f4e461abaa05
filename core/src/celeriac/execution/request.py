"""What one run knows about itself: `task.request`.

A `Context` is made for each run from the message's headers by one dictionary; whatever a message did not say
is answered by the class, so that every field of Celery's request is always there.
"""

from __future__ import annotations

from typing import Any

from celeriac.spec.data import RETURNS_HEADER, UNKNOWN_SINCE_HEADER, Payload

#: Headers of protocol 2; all others in a message are the user's own.
KNOWN_HEADERS = frozenset(
    {
        "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
        "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
        "stamps", "compression", "redelivered",
    }
)  # fmt: skip


#: Headers that say what one message has gone through, which is not what another one of the same call has.
OF_ONE_TRY = frozenset({"x-death", RETURNS_HEADER, UNKNOWN_SINCE_HEADER})


class Context:
    """The request of one run; fields may be set freely.

    Fields: see `docs/reference/tasks.md`. Beyond Celery's there are `attempt` (1 for the first; one more for each
    worker that was lost while it had the message) and `fencing_token` (`(id, attempt)`: a later attempt's is greater).
    """

    id: Any = None
    task: str | None = None
    args: Any = None
    kwargs: Any = None
    retries: int = 0
    eta: str | None = None
    expires: str | None = None
    timelimit: Any = None
    is_eager: bool = False
    called_directly: bool = True
    delivery_info: dict[str, Any] | None = None
    hostname: str | None = None
    origin: str | None = None
    lang: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    shadow: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    chord: Any = None
    chain: Any = None
    callbacks: Any = None
    errbacks: Any = None
    reply_to: str | None = None
    correlation_id: str | None = None
    properties: dict[str, Any] | None = None
    loglevel: int | None = None
    logfile: str | None = None
    utc: bool = True
    ignore_result: bool | None = None
    replaced_task_nesting: int = 0
    stamped_headers: Any = None
    stamps: Any = None
    compression: str | None = None
    attempt: int = 1
    _children: list[Any] | None = None
    #: Payloads to be published when the run ends (retries); None outside a worker: they are sent at once.
    _effects: list[Any] | None = None
    #: Sends a report ahead of the final one; None outside a worker.
    _emit: Any = None
    _message_headers: Any = None
    #: The run goes through a `__call__` of the task's own, which may call `Task.__call__`: once.
    _through_call: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.update(*args, **kwargs)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set fields, from mappings and keywords."""
        self.__dict__.update(*args, **kwargs)

    def tell(self, payload: Payload) -> None:
        """Set what the headers of its message say."""
        fields = vars(self)  # headers are the sender's, who may call one as a method of ours
        fields.update((name, value) for name, value in payload.headers.items() if name[:1] != "_")
        fields["properties"], fields["reply_to"] = payload.properties, payload.properties.get("reply_to")

    def clear(self) -> None:
        """Forget all fields."""
        self.__dict__.clear()

    def get(self, key: str, default: Any = None) -> Any:
        """A field, or `default` if there is none of that name."""
        return getattr(self, key, default)

    @property
    def children(self) -> list[Any]:
        """Results of the calls that this run made."""
        if self._children is None:
            self._children = []
        return self._children

    @children.setter
    def children(self, value: list[Any]) -> None:
        self._children = value

    @property
    def headers(self) -> dict[str, Any] | None:
        """The user's own headers; None outside a worker."""
        own = self.__dict__.get("headers")
        if own is not None:
            return dict(own)
        message = self.__dict__.get("_message_headers")
        if message is None:
            return None
        return {key: value for key, value in message.items() if key not in KNOWN_HEADERS}

    @headers.setter
    def headers(self, value: dict[str, Any] | None) -> None:
        self.__dict__["headers"] = value

    @property
    def taskset(self) -> str | None:
        """Older name of `group`."""
        return self.group

    @property
    def time_limit(self) -> float | None:
        """The call's own hard limit in seconds."""
        return self.timelimit[0] if self.timelimit else None

    @property
    def soft_time_limit(self) -> float | None:
        """The call's own soft limit in seconds."""
        return self.timelimit[1] if self.timelimit else None

    @property
    def fencing_token(self) -> tuple[str | None, int]:
        """Guards a resource of the user's: write only when no greater token of this id was seen."""
        return self.id, self.attempt

    def as_execution_options(self) -> dict[str, Any]:
        """Options that a call made in this run's place must carry on (retries, replacements)."""
        return {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "shadow": self.shadow,
            "chord": self.chord,
            "chain": self.chain,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "expires": self.expires,
            "soft_time_limit": self.soft_time_limit,
            "time_limit": self.time_limit,
            "headers": {key: value for key, value in (self.headers or {}).items() if key not in OF_ONE_TRY},
            "retries": self.retries,
            "reply_to": self.reply_to,
            "replaced_task_nesting": self.replaced_task_nesting,
            "origin": self.origin,
        }

    def __repr__(self) -> str:
        return f"<Context: { {name: value for name, value in self.__dict__.items() if not name.startswith('_')} }>"
