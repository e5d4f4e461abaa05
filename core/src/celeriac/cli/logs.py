"""The log of a command (`worker`, `beat`, `events`): its options, and setting it up as they and the settings say."""

from __future__ import annotations

import logging
import os
from typing import Any

import click

from celeriac import log, signals
from celeriac.cli.group import F, option
from celeriac.cli.types import Level
from celeriac.utils.log import task_logger


def log_options(command: F) -> F:
    """Gives a command the options `loglevel`, `log_format` and `logfile`."""
    level = option(
        "-l",
        "--loglevel",
        type=Level(),
        metavar="LEVEL",
        default="warning",
        show_default=True,
        help="Write lines of this level (debug, info …) and above.",
    )
    style = option(
        "--log-format", type=click.Choice(["console", "json"]), help="For people, or a JSON object per line."
    )
    file = option("-f", "--logfile", metavar="FILE", help="Append to this file instead of standard error.")
    return level(style(file(command)))


def set_up_log(app: Any, options: dict[str, Any], no_color: bool) -> bool:
    """The log of a command with the options `loglevel`, `log_format` and `logfile`.

    Programs that tasks start find in `CELERY_LOG_LEVEL`, `CELERY_LOG_FILE`, `CELERY_LOG_REDIRECT` and
    `CELERY_LOG_REDIRECT_LEVEL` what holds here, as Celery has it.

    Returns:
        False if the app does it itself (signal `setup_logging`).
    """
    options["log_format"] = options["log_format"] or app.conf.worker_log_style
    level, format, path = options["loglevel"], options["log_format"], options["logfile"]
    redirect = bool(app.conf.worker_redirect_stdouts)
    os.environ.update(
        CELERY_LOG_LEVEL=str(level),
        CELERY_LOG_FILE=path or "",
        CELERY_LOG_REDIRECT="1" if redirect else "",
        CELERY_LOG_REDIRECT_LEVEL=str(app.conf.worker_redirect_stdouts_level),
    )
    facts = {"loglevel": level, "logfile": path, "format": format, "colorize": not no_color}
    if signals.setup_logging.send(None, **facts):  # the app does it itself
        log.route_structlog()
        return False
    try:
        stream = log.open_stream(path)
    except OSError as exc:
        raise click.UsageError(f"--logfile: cannot write to {path!r}: {exc.strerror}.") from exc
    conf = app.conf
    color = False if no_color else conf.worker_log_color
    try:
        log.configure(format, level, stream, color, log.Formats.of(conf), hijack=conf.worker_hijack_root_logger)
    except ValueError as exc:
        raise click.UsageError(f"worker_log_format, worker_task_log_format: {exc}.") from exc
    signals.after_setup_logger.send(None, logger=logging.getLogger(), **facts)
    signals.after_setup_task_logger.send(None, logger=task_logger, **facts)
    return True
