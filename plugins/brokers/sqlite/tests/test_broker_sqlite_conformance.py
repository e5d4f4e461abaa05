"""The sqlite broker keeps the contract of brokers."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.testing.broker_suite import BrokerConformance
from celeriac_broker_sqlite.transport import SqliteTransport


class TestSqliteBroker(BrokerConformance):
    plugin = "celeriac_broker_sqlite"
    abilities = SqliteTransport.abilities
    urgent_first = (9, 0)
    recovery_s = 14.0  # before the lease ends

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        # Those that are killed in other tests do not renew, and must have what they took when they are.
        lease_s = 1.5 if "stands_in" in request.node.name else 15
        return f"sqlite:///{tmp_path}/broker.db?lease={lease_s}"
