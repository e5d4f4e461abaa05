"""Exceptions as data, and back."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from typing import Any

import pytest

from celeriac.exceptions import ChordError, Retry, SecurityError
from celeriac.messaging.failures import describe, rebuild


class BizError(Exception):
    def __init__(self, text: str, code: int) -> None:
        raise_if_run_again.append(text)
        self.code = code
        super().__init__(text, code)


raise_if_run_again: list[str] = []


def test_an_exception_comes_back_as_its_own_class_without_its_constructor() -> None:
    data = describe(BizError("bad", 1), json.dumps)
    assert data == {"exc_type": "BizError", "exc_message": ["bad", 1], "exc_module": __name__}
    raise_if_run_again.clear()
    exc = rebuild(data)
    assert type(exc) is BizError
    assert exc.args == ("bad", 1)
    assert raise_if_run_again == []


def test_an_unknown_class_comes_back_under_its_name() -> None:
    exc = rebuild({"exc_type": "FooError", "exc_message": ["x"], "exc_module": "not.imported.here"})
    assert type(exc).__name__ == "FooError"
    assert isinstance(exc, Exception)
    assert exc.args == ("x",)


def test_celerys_own_errors_come_back_as_ours() -> None:
    exc = rebuild({"exc_type": "ChordError", "exc_message": ["x"], "exc_module": "celery.exceptions"})
    assert type(exc) is ChordError


def test_a_class_that_is_no_exception_is_refused() -> None:
    with pytest.raises(SecurityError, match=r"os\.system|exception class"):
        rebuild({"exc_type": "system", "exc_message": ["true"], "exc_module": "os"})


def test_arguments_that_do_not_serialize_become_text() -> None:
    data = describe(ValueError(object(), 3), json.dumps)
    assert data["exc_message"][0].startswith("<object object")
    assert data["exc_message"][1] == 3


def test_a_retry_says_when() -> None:
    exc = rebuild(describe(Retry("later", ValueError("x"), 5), json.dumps))
    assert isinstance(exc, Retry)
    assert (exc.message, exc.when) == ("later", 5)


def test_pythons_own_errors_come_back_with_what_their_constructors_know() -> None:
    missing = rebuild(describe(FileNotFoundError(2, "No such file", "x.txt")))
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, str(missing)) == (2, "[Errno 2] No such file")
    stopped = rebuild(describe(StopIteration(5)))
    assert isinstance(stopped, StopIteration)
    assert stopped.value == 5
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    told = rebuild(json.loads(json.dumps(describe(caught.value, json.dumps))))
    assert type(told).__name__ == "UnicodeDecodeError"  # whose bytes JSON has as text, so it cannot be made
    assert "invalid start byte" in str(told)


class Twins(Exception):
    def __new__(cls, one: int, other: int) -> Twins:
        return super().__new__(cls, one, other)


def test_a_class_that_cannot_be_made_so_comes_back_under_its_name() -> None:
    exc = rebuild(describe(Twins(1, 2)))
    assert (type(exc).__name__, exc and exc.args) == ("Twins", (1, 2))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
def test_what_ended_the_task_does_not_end_who_reads_of_it(error: BaseException) -> None:
    exc = rebuild(describe(error))
    assert isinstance(exc, Exception)
    assert (type(exc).__name__, exc.args) == (type(error).__name__, error.args)


def test_R6_a_module_is_not_asked_for_a_class_for_it_may_import_what_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            raise ImportError(f"no {name} here")

    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    exc = rebuild({"exc_type": "Big", "exc_message": ["x"], "exc_module": "lazy"})
    assert (type(exc).__name__, exc.args if exc else ()) == ("Big", ("x",))
    assert asked == []
