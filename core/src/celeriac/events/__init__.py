"""Events: what workers and clients tell monitors, in Celery's format.

`Dispatcher` sends, `Receiver` hears, `State` keeps what it heard as workers and tasks, `Polaroid` takes snapshots of
that.
An app has them bound to it as `app.events`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celeriac.events.dispatcher import Event, EventDispatcher
from celeriac.events.receiver import EventReceiver
from celeriac.events.state import State

if TYPE_CHECKING:
    from celeriac.app.base import Celery

__all__ = ["Event", "EventDispatcher", "EventReceiver", "Events", "State", "group_from"]


def group_from(type: str) -> str:
    """`task` of `task-received`."""
    return type.partition("-")[0]


class Events:
    """The events of one app, as `app.events`.

    Attributes:
        dispatcher: Sends for this process; made at first use.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._dispatcher: EventDispatcher | None = None

    def Receiver(self, channel: Any = None, handlers: Any = None, **options: Any) -> EventReceiver:
        """Hears events; see `EventReceiver`."""
        return EventReceiver(channel, handlers, app=self.app, **options)

    def Dispatcher(self, connection: Any = None, hostname: str | None = None, **options: Any) -> EventDispatcher:
        """Sends events; see `EventDispatcher`."""
        return EventDispatcher(connection, hostname, app=self.app, **options)

    def State(self, **options: Any) -> State:
        """Keeps what was heard; see `State`."""
        return State(**options)

    def default_dispatcher(self, *_: Any, **__: Any) -> EventDispatcher:
        """Sends for this process."""
        if self._dispatcher is None:
            self._dispatcher = self.Dispatcher()
        return self._dispatcher

    dispatcher = property(default_dispatcher)
