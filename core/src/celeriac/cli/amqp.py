"""`celeriac amqp`: the verbs of AMQP one by one, by hand, on the app's broker; a prompt if none is named.

Speaks through kombu, so that it works on whatever kombu reaches, and sees a broker as Celery's own command does.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from celeriac.cli.errors import FAILED, OK, report_error, say
from celeriac.cli.group import State
from celeriac.exceptions import OperationalError, mask_url
from celeriac.log.lines import clean

PROMPT = "> "


class Session:
    """A connection with one channel, opened when first used; opened anew after the broker has closed it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None
        self._channel: Any = None

    def do(self, act: Callable[[Any], Any]) -> Any:
        """What `act` returns for the channel.

        Raises:
            OperationalError: The broker cannot be reached.
            click.ClickException: It refused.
        """
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_write()
                self._connection.ensure_connection(max_retries=1, interval_start=0)
            if self._channel is None:
                self._channel = self._connection.channel()
            return act(self._channel)
        except Exception as exc:
            if not isinstance(exc, self._errors()):
                raise
            self._channel = None  # the broker closes it on every refusal
            text = f"The broker says: {mask_url(str(exc))}"
            if getattr(self._connection, "connected", False):
                raise click.ClickException(text) from exc
            where = mask_url(str(self._connection.as_uri()))
            self.close()
            raise OperationalError(f"cannot connect to {where}: {mask_url(str(exc))}") from exc

    def _errors(self) -> tuple[type[Exception], ...]:
        connection = self._connection or self._app.connection_for_write()
        refused = import_module("kombu.exceptions").OperationalError
        return (refused, OSError, *connection.connection_errors, *connection.channel_errors)

    def close(self) -> None:
        """Let go; what was got and not acknowledged goes back."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.release()


@click.group(invoke_without_command=True)
@click.pass_context
def amqp(ctx: click.Context) -> None:
    """Speak AMQP with the broker by hand.

    Without a verb there is a prompt, at which each line is a verb with its arguments; help lists them, Ctrl-D ends.
    """
    state: State = ctx.obj
    session = Session(state.app())
    ctx.obj = session
    ctx.call_on_close(session.close)
    if ctx.invoked_subcommand is None:
        ctx.exit(_prompt(ctx))


@amqp.command("repl")
@click.pass_context
def repl(ctx: click.Context) -> None:
    """The prompt, by Celery's name."""
    assert ctx.parent is not None
    ctx.exit(_prompt(ctx.parent))


def _prompt(ctx: click.Context) -> int:
    worst = OK
    group = ctx.command
    assert isinstance(group, click.Group)
    while True:
        try:
            line = input(PROMPT) if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            break
        if not line:
            break
        try:
            words = shlex.split(line)
        except ValueError as exc:
            say(f"{exc}.")
            continue
        if not words:
            continue
        if words[0] in ("quit", "exit"):
            break
        if words[0] == "help":
            for name in sorted(group.commands):
                click.echo(f"{name:18} {group.commands[name].get_short_help_str()}")
            continue
        command = group.commands.get(words[0])
        if command is None:
            say(f"There is no verb {words[0]!r}; help lists them.")
            worst = FAILED
            continue
        try:
            with command.make_context(words[0], words[1:], parent=ctx) as line_context:
                command.invoke(line_context)
        except click.exceptions.Exit as exc:
            worst = exc.exit_code or worst
        except Exception as exc:  # told, and the next line is read
            report_error(exc)
            worst = FAILED
    return worst


def _verb(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    return amqp.command(name)


@_verb("exchange.declare")
@click.argument("exchange")
@click.argument("type", default="direct")
@click.argument("passive", type=bool, default=False)
@click.argument("durable", type=bool, default=False)
@click.argument("auto_delete", type=bool, default=False)
@click.pass_obj
def exchange_declare(
    session: Session, exchange: str, type: str, passive: bool, durable: bool, auto_delete: bool
) -> None:
    """Make an exchange exist."""
    session.do(
        lambda channel: channel.exchange_declare(
            exchange=exchange, type=type, passive=passive, durable=durable, auto_delete=auto_delete
        )
    )
    click.echo("ok")


@_verb("exchange.delete")
@click.argument("exchange")
@click.argument("if_unused", type=bool, default=False)
@click.pass_obj
def exchange_delete(session: Session, exchange: str, if_unused: bool) -> None:
    """Remove an exchange."""
    session.do(lambda channel: channel.exchange_delete(exchange=exchange, if_unused=if_unused))
    click.echo("ok")


@_verb("queue.declare")
@click.argument("queue")
@click.argument("passive", type=bool, default=False)
@click.argument("durable", type=bool, default=False)
@click.argument("exclusive", type=bool, default=False)
@click.argument("auto_delete", type=bool, default=False)
@click.pass_obj
def queue_declare(
    session: Session, queue: str, passive: bool, durable: bool, exclusive: bool, auto_delete: bool
) -> None:
    """Make a queue exist; tells how much is in it."""
    found = session.do(
        lambda channel: channel.queue_declare(
            queue=queue, passive=passive, durable=durable, exclusive=exclusive, auto_delete=auto_delete
        )
    )
    click.echo(f"queue:{clean(found[0])} messages:{found[1]} consumers:{found[2]}")


@_verb("queue.bind")
@click.argument("queue")
@click.argument("exchange")
@click.argument("routing_key", default="")
@click.pass_obj
def queue_bind(session: Session, queue: str, exchange: str, routing_key: str) -> None:
    """Let an exchange feed a queue."""
    session.do(lambda channel: channel.queue_bind(queue=queue, exchange=exchange, routing_key=routing_key))
    click.echo("ok")


@_verb("queue.purge")
@click.argument("queue")
@click.pass_obj
def queue_purge(session: Session, queue: str) -> None:
    """Remove what waits in a queue; tells how much."""
    click.echo(session.do(lambda channel: channel.queue_purge(queue=queue)))


@_verb("queue.delete")
@click.argument("queue")
@click.argument("if_unused", type=bool, default=False)
@click.argument("if_empty", type=bool, default=False)
@click.pass_obj
def queue_delete(session: Session, queue: str, if_unused: bool, if_empty: bool) -> None:
    """Remove a queue; tells how much was in it."""
    click.echo(session.do(lambda channel: channel.queue_delete(queue=queue, if_unused=if_unused, if_empty=if_empty)))


@_verb("basic.get")
@click.argument("queue")
@click.argument("no_ack", type=bool, default=False)
@click.pass_obj
def basic_get(session: Session, queue: str, no_ack: bool) -> None:
    """Take one message; without no_ack it goes back at the end unless basic.ack is called."""
    message = session.do(lambda channel: channel.basic_get(queue, no_ack=no_ack))
    if message is None:
        click.echo("empty")
        return
    body = message.body.decode("utf-8", "backslashreplace") if isinstance(message.body, bytes) else str(message.body)
    headers = getattr(message, "headers", None) or message.properties.get("application_headers") or {}
    click.echo(f"delivery_tag:{message.delivery_tag}")
    click.echo(f"headers:{clean(repr(headers))}")
    click.echo(f"body:{clean(body)}")


@_verb("basic.ack")
@click.argument("delivery_tag", type=int)
@click.pass_obj
def basic_ack(session: Session, delivery_tag: int) -> None:
    """Acknowledge a message that basic.get took."""
    session.do(lambda channel: channel.basic_ack(delivery_tag))
    click.echo("ok")


@_verb("basic.publish")
@click.argument("message")
@click.argument("exchange", default="")
@click.argument("routing_key", default="")
@click.argument("mandatory", type=bool, default=False)
@click.argument("immediate", type=bool, default=False)
@click.pass_obj
def basic_publish(
    session: Session, message: str, exchange: str, routing_key: str, mandatory: bool, immediate: bool
) -> None:
    """Send a text. (RabbitMQ refuses immediate.)"""
    session.do(
        lambda channel: channel.basic_publish(
            channel.prepare_message(message, content_type="text/plain", content_encoding="utf-8"),
            exchange=exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            immediate=immediate,
        )
    )
    click.echo("ok")
