"""What a person sees when a command fails: one sentence on standard error, and an exit code.

=====  ===========================================================================================
0      done
1      it failed for another reason; a task that was waited for failed
2      wrong words on the command line, a wrong setting, a missing or bad plugin
69     the broker or the result store cannot be reached (EX_UNAVAILABLE of sysexits.h)
130    interrupted by Ctrl-C
=====  ===========================================================================================

A traceback is shown only when asked for, by `--traceback` or `CELERIAC_TRACEBACK=1`; except that of the user's
own module, when importing that is what failed.
"""

from __future__ import annotations

import importlib
import os
import traceback
import warnings
from typing import Any

import click

from celeriac.exceptions import (
    BackendLost,
    BackendUnreachable,
    CeleriacError,
    CeleriacWarning,
    CeleryCommandException,
    ImproperlyConfigured,
    OperationalError,
    PublishRejected,
    SecurityError,
    mask_url,
)

_IMPORTLIB = os.path.dirname(importlib.__file__)
OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 69, 130


class UserCodeFailed(Exception):
    """Importing the user's own module raised; the cause is shown with its traceback."""


def report_error(exc: BaseException, color: bool | None = None) -> int:
    """Say on standard error what went wrong; return the exit code.

    Args:
        color: False for none; None is as it suits where that goes.
    """
    if isinstance(exc, click.ClickException):
        exc.show()
        return exit_code(exc)
    if isinstance(exc, (click.Abort, KeyboardInterrupt)):
        say("Aborted.")
        return exit_code(exc)
    if isinstance(exc, UserCodeFailed) and exc.__cause__ is not None:
        say(mask_url(_traceback_of_user(exc.__cause__)).rstrip())
    elif wants_traceback():
        say(mask_url("".join(traceback.format_exception(exc))).rstrip())
    say(f"{click.style('Error:', fg='red', bold=True)} {mask_url(_sentence(exc))}", color)
    return exit_code(exc)


def exit_code(exc: BaseException) -> int:
    """The code with which a command ends that ends with this exception."""
    if isinstance(exc, (click.Abort, KeyboardInterrupt)):
        return INTERRUPTED
    if isinstance(exc, (CeleryCommandException, click.ClickException, click.exceptions.Exit)):
        return exc.exit_code
    if isinstance(exc, (ImproperlyConfigured, UserCodeFailed)):
        return USAGE
    if type(exc) is SecurityError:  # of what is set; what is derived from it is about a message
        return USAGE
    if isinstance(exc, PublishRejected):  # it was reached
        return FAILED
    if isinstance(exc, (OperationalError, BackendUnreachable, BackendLost)):
        return UNREACHABLE
    return FAILED


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Instead of `warnings.showwarning`: ours are for the user of the command, who knows no line of ours."""
    if issubclass(category, CeleriacWarning):
        say(f"{click.style('Warning:', fg='yellow', bold=True)} {mask_url(str(message))}")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("CELERIAC_TRACEBACK", "0") not in ("", "0")


def say(text: str, color: bool | None = None) -> None:
    """Print a line on standard error; `color` as for `report_error`."""
    click.echo(text, err=True, color=color)


def _sentence(exc: BaseException) -> str:
    text = str(exc).strip()
    if isinstance(exc, (CeleriacError, CeleryCommandException, UserCodeFailed)):
        is_word = text.partition(" ")[0].isalpha()  # a task's name stays as it is
        return (text[:1].upper() + text[1:] if is_word else text) or type(exc).__name__
    hint = "" if wants_traceback() else " (add --traceback to see where)"
    return f"{type(exc).__name__}: {text}{hint}"


def _traceback_of_user(exc: BaseException) -> str:
    """The traceback from the user's first line on; how we came there does not help."""
    ours = os.path.dirname(os.path.dirname(__file__))
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((ours, "<frozen importlib", _IMPORTLIB)):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(exc), exc, trace))
