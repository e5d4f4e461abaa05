"""Stamps: values that are put on calls as headers, to be seen in requests and results, and to revoke by.

A stamped signature has each stamp among its options, and the names of its stamps under `stamped_headers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.canvas.signature import Signature


class StampingVisitor:
    """Goes through a canvas and says which stamps each call gets: `canvas.stamp(visitor)`.

    Each method returns a dict: stamps by name. With a key `stamped_headers`, only those named there are stamps; the
    rest are plain options. What a shape's method returns is put on all calls in it.
    """

    def on_signature(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        """Stamps of one call; a subclass says which."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to stamp a call: define on_signature")

    def on_group_start(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        """Stamps of all members of a group."""
        return {}

    def on_group_end(self, sig: Signature, **headers: Any) -> None:
        """All members of a group are stamped."""

    def on_chain_start(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        """Stamps of all steps of a chain."""
        return {}

    def on_chain_end(self, sig: Signature, **headers: Any) -> None:
        """All steps of a chain are stamped."""

    def on_chord_header_start(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        """Stamps of a chord's parts (and of its body); as those of a group, unless told otherwise."""
        from celeriac.canvas.group import group

        return self.on_group_start(group(sig.tasks, app=sig._app), **headers)  # type: ignore[attr-defined]

    def on_chord_header_end(self, sig: Signature, **headers: Any) -> None:
        """All parts of a chord are stamped."""
        from celeriac.canvas.group import group

        self.on_group_end(group(sig.tasks, app=sig._app), **headers)  # type: ignore[attr-defined]

    def on_chord_body(self, sig: Signature, **headers: Any) -> dict[str, Any]:
        """Stamps of a chord's body."""
        return {}

    def on_callback(self, callback: Signature, **headers: Any) -> dict[str, Any]:
        """Stamps of a callback."""
        return {}

    def on_errback(self, errback: Signature, **headers: Any) -> dict[str, Any]:
        """Stamps of an errback."""
        return {}


def stamp_call(sig: Signature, visitor: StampingVisitor | None, append: bool, headers: Mapping[str, Any]) -> None:
    """Put stamps on one call, and on its callbacks."""
    found = {} if visitor is None else visitor.on_signature(sig, **headers) or {}
    names = [*_names(headers), *_names(found)]
    _put(sig["options"], {**headers, **found}, names, append)
    stamp_links(sig, visitor, append, headers)


def stamp_links(sig: Signature, visitor: StampingVisitor | None, append: bool, headers: Mapping[str, Any]) -> None:
    """Put stamps on the callbacks of a call."""
    from celeriac.canvas.signature import as_list, maybe_signature

    for key, verb in (("link", "on_callback"), ("link_error", "on_errback")):
        links = as_list(sig["options"].get(key))
        if not links:
            continue
        stamped = []
        for link in links:
            callback = maybe_signature(link, app=sig._app)
            more = {} if visitor is None else getattr(visitor, verb)(callback, **headers) or {}
            callback.stamp(visitor, append, **{**headers, **more})
            stamped.append(callback)
        sig["options"][key] = stamped


def _names(stamps: Mapping[str, Any]) -> Iterable[str]:
    named = stamps.get("stamped_headers")
    return list(named) if named is not None else [key for key in stamps if key != "stamped_headers"]


def _put(options: dict[str, Any], values: Mapping[str, Any], names: Iterable[str], append: bool) -> None:
    for key, value in values.items():
        if key == "stamped_headers":
            continue
        if append and key in options and options[key] != value:
            before, new = options[key], value
            before = list(before) if isinstance(before, (list, tuple, set)) else [before]
            new = list(new) if isinstance(new, (list, tuple, set)) else [new]
            value = [*before, *(one for one in new if one not in before)]
        options[key] = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
    options["stamped_headers"] = list(dict.fromkeys([*(options.get("stamped_headers") or ()), *names]))
