"""Exceptions as data, and back."""

from __future__ import annotations

import json

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
