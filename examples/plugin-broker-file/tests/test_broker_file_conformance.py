"""The file broker keeps the contract of brokers: celeriac's own suite, run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.testing.broker_suite import BrokerConformance
from celeriac_broker_file.transport import FileTransport


class TestFileBroker(BrokerConformance):
    plugin = "celeriac_broker_file"
    abilities = FileTransport.abilities
    recovery_s = 2.0

    #: Its leases are renewed by the worker alone.
    test_B9_what_stands_in_for_a_worker_keeps_its_lease = None  # type: ignore[assignment]

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/spool"
