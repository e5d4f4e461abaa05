"""Signatures, groups and chains: their shapes, and running them here."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

import celeriac
from celeriac import Celery, chain, group, signature


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    place = f"memory://{request.node.name}"
    return Celery("canvas", broker=place, backend=place)


@pytest.fixture
def add(app: Celery) -> Any:
    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def test_a_signature_is_a_dict_with_celerys_keys(add: Any) -> None:
    one = add.s(1, y=2).set(queue="q")
    assert dict(one) == {
        "task": "add",
        "args": (1,),
        "kwargs": {"y": 2},
        "options": {"queue": "q"},
        "subtask_type": None,
        "immutable": False,
    }
    again = signature(json.loads(json.dumps(one)), app=add.app)
    assert again(y=5) == 6
    assert pickle.loads(pickle.dumps(one)) == one


def test_links_gather_once(add: Any) -> None:
    one, callback = add.s(1), add.s(5)
    one.link(callback)
    one.link(callback)
    one.on_error(add.si(0))
    assert one.options["link"] == [callback]
    assert len(one.options["link_error"]) == 1


def test_pipes_make_chains_and_chains_flatten(add: Any) -> None:
    steps = add.s(1, 2) | add.s(3) | (add.s(4) | add.s(5))
    assert isinstance(steps, chain)
    assert len(steps) == 4
    assert repr(steps) == "add(1, 2) | add(3) | add(4) | add(5)"
    again = celeriac.maybe_signature(json.loads(json.dumps(steps)), app=add.app)
    assert isinstance(again, chain)
    assert repr(again) == repr(steps)
    assert chain()() is None


def test_a_chain_run_here_gives_the_last_value_and_the_steps_before(add: Any) -> None:
    result = (add.s(1, 2) | add.s(3) | add.s(4)).apply()
    assert result.get() == 10
    assert result.parent.get() == 6
    assert result.parent.parent.get() == 3


def test_a_sent_chain_has_its_ids_fixed_and_the_rest_in_the_first_message(app: Celery, add: Any) -> None:
    result = (add.s(1, 2) | add.s(3).set(queue="other") | add.s(4))()
    ids = result.as_list()
    assert len(set(ids)) == 3
    consumer = app.transport.consumer([app.router.spec("celery")], owner="t", poller=Nobody(), window=1)
    (delivery,) = consumer.receive(5)
    payload = app.transport.unpack(delivery.raw)
    args, _, embed = json.loads(payload.body)
    assert payload.headers["id"] == ids[-1]
    assert args == [1, 2]
    assert [step["options"]["task_id"] for step in embed["chain"]] == [ids[0], ids[1]], "the next step is last"
    consumer.close()


def test_a_group_from_anything_iterable(add: Any) -> None:
    assert len(group(add.s(n) for n in range(3))) == 3
    assert len(group([add.s(1), group(add.s(2), add.s(3))])) == 3, "groups in groups flatten"
    assert len(group()) == 0
    assert group().apply_async().get() == []
    assert repr(group(add.s(1), add.s(2))) == "group([add(1), add(2)])"
    assert group(add.s(1), add.s(2)).apply((10,)).get() == [11, 12]


def test_a_group_is_sent_with_its_id_and_places(app: Celery, add: Any) -> None:
    result = group(add.s(n) for n in range(3)).apply_async((5,))
    consumer = app.transport.consumer([app.router.spec("celery")], owner="t", poller=Nobody(), window=9)
    payloads = [app.transport.unpack(delivery.raw) for delivery in consumer.receive(9)]
    assert [payload.headers["group_index"] for payload in payloads] == [0, 1, 2]
    assert {payload.headers["group"] for payload in payloads} == {result.id}
    assert [json.loads(payload.body)[0] for payload in payloads] == [[5, 0], [5, 1], [5, 2]]
    consumer.close()
    with pytest.raises(TypeError, match="link them to its members"):
        group(add.s(1)).apply_async(link=add.s(2))


class Nobody:
    def watch(self, fd: int) -> None: ...

    def unwatch(self, fd: int) -> None: ...
