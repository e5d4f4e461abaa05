"""Options of a program's own: `app.user_options["worker"].add(click.Option(…))`, and `["preload"]` for every command.

They can be known once the app is, so `-A` must stand before the command (`celeriac -A proj worker --mine`).
"""

from __future__ import annotations

from typing import Any

import click

from celeriac import signals


def add_user_options(command: click.Command, name: str, app: Any) -> None:
    """Let a command take the app's own options, once."""
    taken = {word for parameter in command.params for word in parameter.opts}
    for option in (*app.user_options.get("preload", ()), *app.user_options.get(name, ())):
        if not taken & set(option.opts):
            command.params.append(option)


def tell_preload_options(ctx: click.Context, app: Any) -> None:
    """Send `user_preload_options` with those of `["preload"]`."""
    names = [option.name for option in app.user_options.get("preload", ())]
    if names:
        options = {name: ctx.params.pop(name, None) for name in names}
        signals.user_preload_options.send(sender=ctx.command, app=app, options=options)
