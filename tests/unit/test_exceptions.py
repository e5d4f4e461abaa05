"""Errors travel between processes as they are."""

from __future__ import annotations

import pickle

import pytest

from celeriac import exceptions


@pytest.mark.parametrize(
    "error",
    [
        exceptions.Retry("why", KeyError("x"), 3),
        exceptions.Retry(exc="repr of a cause", when=2),
        exceptions.Reject("why", requeue=True),
        exceptions.MaxRetriesExceededError("x", task_args=(1,), task_kwargs={"a": 1}),
        exceptions.WorkerLostError("x", exitcode=3),
        exceptions.NotRegistered("x"),
        exceptions.TimeLimitExceeded(3.5),
        exceptions.SoftTimeLimitExceeded(),
        exceptions.BackendStoreError("x", task_id="i", state="SUCCESS"),
        exceptions.CeleryCommandException("x", 69),
        exceptions.QueueNotFound("x"),
        exceptions.ChordError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_pickled_error_keeps_its_words_and_facts(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), repr(copy)) == (type(error), str(error), repr(error))
    assert {k: repr(v) for k, v in vars(copy).items()} == {k: repr(v) for k, v in vars(error).items()}


def test_a_retry_says_when_in_words() -> None:
    assert str(exceptions.Retry(exc=KeyError("x"), when=3)) == "Retry in 3s: KeyError('x')"
    assert exceptions.Retry("m", when=3).humanize() == "in 3s"


def test_an_error_can_be_raised_as_if_elsewhere() -> None:
    try:
        raise KeyError("x")
    except KeyError as exc:
        kept = exc
    with pytest.raises(KeyError) as found:
        exceptions.reraise(KeyError, kept, kept.__traceback__)
    assert found.value is kept
