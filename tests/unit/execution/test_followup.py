"""What follows from a call: here, where there is nothing that could."""

from __future__ import annotations

import pytest

from celeriac import Celery
from celeriac.exceptions import PublishRejected
from celeriac.execution.followup import after_no_sending


def test_a_call_whose_id_has_half_a_character_in_it_leaves_no_state_that_stores_would_choke_on(
    request: pytest.FixtureRequest,
) -> None:
    url = f"memory://{request.node.name}"
    app = Celery(broker=url, backend=url, set_as_current=False)
    rejected = PublishRejected("no such text")
    for task_id, stored in (("whole", ["whole"]), ("half \ud800", [])):
        following = after_no_sending(app, app.make_payload("task", (), {}, task_id, {}), rejected)
        assert [result.task_id for result in following.stored] == stored
    app.close()
