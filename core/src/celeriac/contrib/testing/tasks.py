"""The task by which a test sees that a worker is there."""

from celeriac.app.base import shared_task


def _answer() -> str:
    return "pong"


ping = shared_task(name="celery.ping")(_answer)
