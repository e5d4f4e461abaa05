"""The yaml serializer writes kombu's text, runs nobody's code, and keeps the contract."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import kombu.serialization
import pytest

from celeriac.testing.serializer_suite import SerializerConformance
from celeriac_serializer_yaml.serializer import YamlSerializer


class TestYaml(SerializerConformance):
    plugin = "celeriac_serializer_yaml"
    name = "yaml"
    content_type = "application/x-yaml"
    content_encoding = "utf-8"
    unsafe = False
    extras = (date(2026, 1, 2), datetime(2026, 1, 2, 3, 4, 5), b"\xff\x00", {1: "a"}, {1, 2}, 2**80)


VALUES = [None, [1, "grün"], {"a": [1.5, date(2026, 1, 2)]}, [[2, 3], {}, {"chain": None}], "a: b\n- c"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_bytes_are_those_of_kombu(value: Any) -> None:
    data = YamlSerializer().dumps(value)
    assert data == kombu.serialization.dumps(value, "yaml")[2].encode("utf-8")
    back = kombu.serialization.loads(data, "application/x-yaml", "utf-8", force=True)
    assert back == YamlSerializer().loads(data) == value


def test_loading_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        with pytest.raises(ValueError):
            YamlSerializer().loads(f'{tag} ["touch {mark}"]'.encode())
    assert not mark.exists()


@pytest.mark.parametrize("text", ["!!bool maybe", "!!timestamp never", "{[]: 1}", "a: b: c", "*nobody", "!!int x"])
def test_what_cannot_be_read_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        YamlSerializer().loads(text.encode())
