"""The front door `celeriac/__init__.py` has names only: users come in by it, no room of the house does."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest

GRAPH = grimp.build_graph("celeriac", exclude_type_checking_imports=True)
FRONT_DOOR = Path(__file__).resolve().parents[2] / "core" / "src" / "celeriac" / "__init__.py"


def test_no_room_imports_the_front_door() -> None:
    assert sorted(GRAPH.find_modules_that_directly_import("celeriac")) == []


@pytest.mark.parametrize("room", sorted(GRAPH.find_children("celeriac")))
def test_a_room_says_what_it_is_for(room: str) -> None:
    path = Path(str(FRONT_DOOR.parent), *room.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert ast.get_docstring(ast.parse(source.read_text())), f"{source} has no docstring"
