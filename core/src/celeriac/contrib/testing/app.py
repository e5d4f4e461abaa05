"""See `celeriac.testing.apps`."""

from celeriac.testing.apps import TestApp, Trap, setup_default_app

__all__ = ["TestApp", "Trap", "setup_default_app"]
