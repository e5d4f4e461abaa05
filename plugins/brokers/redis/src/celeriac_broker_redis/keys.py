"""The names of keys. Those without `celeriac` in them are kombu's, so that Celery shares the broker with us.

========================================  =======  =====================================================================
`<queue>`                                 list     messages of the first priority step: LPUSH in, RPOP out
`<queue><sep><step>`                      list     messages of a further step (3, 6, 9)
`_kombu.binding.<exchange>`               set      `routing_key<sep>pattern<sep>queue`
`_kombu.binding_permanent.<exchange>`     set      the same, for queues that do not expire
`unacked`                                 hash     tag → `[message, exchange, routing_key]`, of what workers hold
`unacked_index`                           zset     tag → unix time when it was taken or its lease last renewed
`celeriac.odd`                            hash     tag → `length:listmessage`, held ones that kombu could not read
`celeriac.owners`                         zset     token of a consumer → server time at which its lease ends
`celeriac.alive`                          hash     token of a consumer → the server's run, and its numbers for us
`celeriac.waits.<token>`                  set      lists that the consumer waits on
`celeriac.inbox.<token>.<slot>.<list>`    list     one message handed over while it waited, until settled or recorded
`celeriac.delayed.<queue>`                zset     `step:unique:message` → unix time when it is due
`celeriac.serves.<queue>`                 string   consumers of ours serve the queue, or did within the hour
`celeriac.dead.<queue>`                   stream   messages set aside: `raw reason error attempt owner`
`celeriac.dropped`                        hash     queue → messages set aside that were kept long enough
`celeriac.sweep`                          string   held while somebody looks for the messages of dead consumers
========================================  =======  =====================================================================

Our tags are `<token>:<number>`, never those of the messages: a tag is used once, so a late settlement finds nothing,
and two copies of one message do not share an entry. kombu restores by the entry alone and need not know.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

DEFAULT_SEP: Final = "\x06\x16"
DEFAULT_STEPS: Final = (0, 3, 6, 9)
MAX_PRIORITY: Final = 9
#: Messages from one list that may be handed out before the first of them is recorded or settled.
INBOXES: Final = 4


def as_pattern(text: str) -> str:
    """A pattern of Redis's that this text alone fits."""
    return re.sub(r"[*?\[\]\\^]", r"\\\g<0>", text)


class Keys:
    """Key names under one global prefix, as text.

    Args:
        prefix: kombu's `global_keyprefix`.
        sep: Between a queue's name and its priority step.
        steps: Priority steps in the order in which they are served.
    """

    def __init__(
        self,
        prefix: str = "",
        sep: str = DEFAULT_SEP,
        steps: Sequence[int] = DEFAULT_STEPS,
        unacked: str = "unacked",
        unacked_index: str = "unacked_index",
    ) -> None:
        self.prefix = prefix
        self.sep = sep
        self.steps = tuple(sorted(steps))
        self.unacked = prefix + unacked
        self.index = prefix + unacked_index
        self.odd = prefix + "celeriac.odd"
        self.owners = prefix + "celeriac.owners"
        self.alive = prefix + "celeriac.alive"
        self.sweep = prefix + "celeriac.sweep"
        self.dropped = prefix + "celeriac.dropped"

    def step(self, priority: Any) -> int:
        """The step that serves a priority: the next lower one. 0 is served first, as Celery has it on Redis."""
        if not priority:
            return self.steps[0]
        try:
            number = max(0, min(int(priority), MAX_PRIORITY))
        except (TypeError, ValueError, OverflowError):  # of a message that anybody may have written: 1e999, for one
            return self.steps[0]
        return self.steps[bisect_right(self.steps, number) - 1]

    def list_key(self, queue: str, step: int = 0) -> str:
        """The list that holds a queue's messages of one step."""
        return f"{self.prefix}{queue}{self.sep}{step}" if step else self.prefix + queue

    def lists(self, queue: str) -> list[str]:
        """All lists of a queue, in the order in which they are served."""
        return [self.list_key(queue, step) for step in self.steps]

    def delayed(self, queue: str) -> str:
        return f"{self.prefix}celeriac.delayed.{queue}"

    def serves(self, queue: str) -> str:
        return f"{self.prefix}celeriac.serves.{queue}"

    def dead(self, queue: str) -> str:
        return f"{self.prefix}celeriac.dead.{queue}"

    def waits(self, token: str) -> str:
        return f"{self.prefix}celeriac.waits.{token}"

    def inboxes(self, token: str, source: str) -> list[str]:
        """Where what comes from a list (its whole key) is put for a consumer that waits, one message in each."""
        return [f"{self.prefix}celeriac.inbox.{token}.{slot}.{source}" for slot in range(INBOXES)]

    def bindings(self) -> tuple[str, str]:
        """Patterns of all binding sets, as `SCAN` takes them."""
        start = as_pattern(self.prefix)
        return f"{start}_kombu.binding.*", f"{start}_kombu.binding_permanent.*"

    def binding(self, exchange: str) -> str:
        return f"{self.prefix}_kombu.binding.{exchange}"

    def permanent_binding(self, exchange: str) -> str:
        return f"{self.prefix}_kombu.binding_permanent.{exchange}"
