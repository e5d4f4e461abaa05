"""`pydantic=True`: models travel as data, are validated in the worker, and results are data again."""

from __future__ import annotations

import datetime
import inspect
import sys
from typing import Any, Optional

import pytest
from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator

from celeriac import Celery
from celeriac.exceptions import ImproperlyConfigured

SEEN: list[Any] = []


class Order(BaseModel):
    id: int
    due: Optional[datetime.date] = None  # noqa: UP045 # as people write it

    @field_validator("id")
    @classmethod
    def note_context(cls, value: int, info: ValidationInfo) -> int:
        SEEN.append(info.context)
        return value


class Receipt(BaseModel):
    order: Order
    total: float


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    return Celery("models", broker=f"memory://{request.node.name}", backend=f"memory://{request.node.name}")


def test_a_caller_gives_a_model_and_gets_data(app: Celery) -> None:
    @app.task(pydantic=True)
    def pay(order: Order, many: list[Order], maybe: Order | None = None, n: int = 1) -> Receipt:
        assert isinstance(order, Order)
        assert [type(item) for item in many] == [Order]
        assert maybe is None
        return Receipt(order=order, total=2.5 * n)

    result = pay.apply((Order(id=1, due=datetime.date(2026, 1, 2)), [{"id": "2"}]), {"n": 2})
    assert result.get() == {"order": {"id": 1, "due": "2026-01-02"}, "total": 5.0}


def test_a_coroutine_gets_a_model_and_gives_data(app: Celery) -> None:
    @app.task(pydantic=True)
    async def pay(order: Order) -> Receipt:
        return Receipt(order=order, total=1.0)

    assert inspect.iscoroutinefunction(pay.run)
    assert pay.apply(({"id": "1"},)).get() == {"order": {"id": 1, "due": None}, "total": 1.0}


def test_the_message_holds_plain_data(app: Celery) -> None:
    @app.task(name="pay", pydantic=True, bind=True)
    def pay(self: Any, order: Order) -> int:
        return order.id

    payload = app.make_payload("pay", [Order(id=3)], {}, "i", {})
    assert payload.body.startswith(b'[[{"id": 3, "due": null}]')
    assert pay.apply(({"id": 4},)).get() == 4


def test_what_does_not_validate_fails_the_task(app: Celery) -> None:
    @app.task(pydantic=True, pydantic_strict=True)
    def pay(order: Order) -> None: ...

    result = pay.apply(({"id": "4"},))
    assert result.failed()
    assert isinstance(result.result, ValidationError)


def test_validators_get_app_task_and_context_and_dumping_is_steered(app: Celery) -> None:
    @app.task(name="pay", pydantic=True, pydantic_context={"x": 1}, pydantic_dump_kwargs={"exclude_none": True})
    def pay(order: Order) -> Order:
        return order

    SEEN.clear()
    assert pay.apply(({"id": 4},)).get() == {"id": 4}
    assert [{"x": 1, "celery_app": app, "celery_task_name": "pay"}] == SEEN


def test_a_direct_call_is_validated_too(app: Celery) -> None:
    @app.task(pydantic=True)
    def pay(order: Order) -> int:
        return order.id

    assert pay({"id": "5"}) == 5  # type: ignore[arg-type]


def test_a_missing_pydantic_is_named(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install celeriac\[pydantic\]"):

        @app.task(pydantic=True)
        def pay(order: Any) -> None: ...
