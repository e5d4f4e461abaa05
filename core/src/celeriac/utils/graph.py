"""A graph of what depends on what: results and their children, as `AsyncResult.graph` gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class DependencyGraph:
    """Objects, each with a list of those that it comes after.

    Args:
        it: Pairs of an object and what it comes after.
        formatter: Makes a label of an object, for `to_dot`.
    """

    def __init__(self, it: Iterable[tuple[Any, Iterable[Any]]] = (), formatter: Callable[[Any], str] = str) -> None:
        self.formatter = formatter
        self.adjacent: dict[Any, list[Any]] = {}
        for obj, before in it:
            self.add_arc(obj)
            for other in before:
                self.add_edge(obj, other)

    def add_arc(self, obj: Any) -> None:
        """Add an object."""
        self.adjacent.setdefault(obj, [])

    def add_edge(self, a: Any, b: Any) -> None:
        """`a` comes after `b`."""
        self.add_arc(b)
        self.adjacent.setdefault(a, []).append(b)

    def connect(self, graph: DependencyGraph) -> None:
        """Take up another graph."""
        for obj, before in graph.items():
            self.add_arc(obj)
            self.adjacent[obj].extend(before)

    def topsort(self) -> list[Any]:
        """All objects, each after those it comes after.

        Raises:
            ValueError: Some come after each other.
        """
        waiting = {obj: Counter(before) for obj, before in self.adjacent.items()}
        order: list[Any] = []
        while waiting:
            free = [obj for obj, before in waiting.items() if not before]
            if not free:
                raise ValueError(f"these come after each other: {list(waiting)}")
            for obj in free:
                del waiting[obj]
            order.extend(free)
            for before in waiting.values():
                for obj in free:
                    before.pop(obj, None)
        return order

    def valency_of(self, obj: Any) -> int:
        """How many objects it comes after, directly or not, itself counted for each."""
        return len(self.adjacent.get(obj, ())) + sum(self.valency_of(other) for other in self.adjacent.get(obj, ()))

    def edges(self) -> list[Any]:
        """The objects that come after others."""
        return [obj for obj, before in self.items() if before]

    def to_dot(self, fh: Any, formatter: Callable[[Any], str] | None = None) -> None:
        """Write it to a file in the language of Graphviz."""
        label = formatter or self.formatter
        fh.write("digraph dependencies {\n")
        for obj in self.adjacent:
            fh.write(f'    "{label(obj)}";\n')
        for obj, before in self.items():
            for other in before:
                fh.write(f'    "{label(obj)}" -> "{label(other)}";\n')
        fh.write("}\n")

    def items(self) -> Iterable[tuple[Any, list[Any]]]:
        """Pairs of an object and what it comes after."""
        return self.adjacent.items()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.adjacent)

    def __len__(self) -> int:
        return len(self.adjacent)

    def __getitem__(self, obj: Any) -> list[Any]:
        return self.adjacent[obj]

    def __contains__(self, obj: object) -> bool:
        return obj in self.adjacent

    def __repr__(self) -> str:
        return "\n".join(f"{obj!r}: {', '.join(map(repr, before)) or '-'}" for obj, before in self.items())
