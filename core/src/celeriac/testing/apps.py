"""Apps for tests: settings that need no server, and a trap for code that asks for the current app unawares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, cast

from celeriac import _state
from celeriac.app.base import Celery

_numbers = itertools.count(1)


class TestApp(Celery):
    """An app whose broker and results are places of its own in this process, unless settings say otherwise.

    Args:
        name: As `main` of an app.
        config: Settings, as a dict.
        enable_logging: Workers of `start_worker` write their lines about tasks to standard error.
    """

    __test__ = False  # for pytest, which takes classes of such a name for tests

    def __init__(
        self,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        enable_logging: bool = False,
        set_as_current: bool = False,
        **parameters: Any,
    ) -> None:
        self.enable_logging = enable_logging
        place = f"memory://celery-test-{next(_numbers)}"
        defaults = {"broker_url": place, "result_backend": place, "worker_log_color": False}
        super().__init__(
            name or "celery.tests",
            set_as_current=set_as_current,
            changes={**defaults, **(config or {})},
            **parameters,
        )


class Trap:
    """Stands where the current app would, and raises when anything is asked of it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(
            f"this test asked the current app for {name!r}, and it has none. Use the test's own app, or the "
            "fixture depends_on_current_app if this code cannot help it."
        )


@contextmanager
def setup_default_app(app: Celery, use_trap: bool = False) -> Iterator[Celery]:
    """Put the current and the default app back afterwards, whatever `app` and its workers made of them.

    Args:
        use_trap: Until then there is none: whoever asks for the current app meets a RuntimeError.
    """
    before = _state.remember_apps()
    try:
        if use_trap:
            trap = cast(Celery, Trap())
            _state.restore_apps((trap, trap, False))
        yield app
    finally:
        _state.restore_apps(before)
