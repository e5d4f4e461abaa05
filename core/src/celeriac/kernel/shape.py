"""Compares what a plugin made with the Protocol of its kind. Called by the kernel, once for each object.

A plugin inherits nothing of ours, so this is where a missing or misshapen member is found: at start,
with its name, and not at three in the morning as an AttributeError.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from celeriac.spec.abilities import ABILITIES
from celeriac.spec.backend import ChordBackend, GroupBackend, ResultBackend
from celeriac.spec.diagnosis import Diagnoses
from celeriac.spec.pool import Pool, SaysStuck
from celeriac.spec.serializer import Serializer
from celeriac.spec.state import KeepsState
from celeriac.spec.transport import Consumer, DeadLetters, FanoutTransport, OnceTransport, Transport

PROTOCOLS: Mapping[str, type] = {
    "broker": Transport,
    "consumer": Consumer,
    "backend": ResultBackend,
    "serializer": Serializer,
    "pool": Pool,
}
#: Members that only a declared ability calls for: ability → what it adds to the kind's protocol. A plugin written
#: before an ability was thought of lacks both, and loads.
ADDITIONS: Mapping[str, Mapping[str, type]] = {
    "backend": {"state": KeepsState, "count": ChordBackend, "groups": GroupBackend, "diagnose": Diagnoses},
    "broker": {
        "state": KeepsState,
        "fanout": FanoutTransport,
        "browse_dead": DeadLetters,
        "once": OnceTransport,
        "diagnose": Diagnoses,
    },
    "pool": {"stuck": SaysStuck},
}
#: What the data members of the contracts are; the others are methods.
TYPES: Mapping[str, tuple[type, ...]] = {
    "abilities": (frozenset, set),
    "joint": (str, type(None)),
    "slots": (int,),
    "name": (str,),
    "content_type": (str,),
    "content_encoding": (str,),
    "unsafe": (bool,),
}


def find_faults(kind: str, made: Any) -> list[str]:
    """Say in which ways `made` is not what its kind promises; [] if it is."""
    members = dict(_members(PROTOCOLS[kind]))
    for ability, protocol in ADDITIONS.get(kind, {}).items():
        if ability in _abilities(made):
            members.update(_members(protocol))
    found: dict[str, Any] = {}
    missing, unreadable = [], []
    for name in members:
        try:
            found[name] = getattr(made, name)
        except AttributeError:
            missing.append(name)
        except Exception as exc:  # a property of the plugin's own
            unreadable.append(f"its {name} cannot be read: {type(exc).__name__}: {exc}")
    if missing:
        return [f"the {type(made).__name__} it made lacks {_list(missing)}"]
    faults = [_compare(name, wanted, found[name]) for name, wanted in members.items() if name in found]
    return [*unreadable, *filter(None, faults)] or _doubt_abilities(kind, made)


@functools.cache
def _members(protocol: type) -> Mapping[str, inspect.Signature | None]:
    """Name → signature without `self`, or None for data."""
    names = [*protocol.__annotations__, *(name for name in vars(protocol) if not name.startswith("_"))]
    members: dict[str, inspect.Signature | None] = {}
    for name in names:
        member = vars(protocol).get(name)
        members[name] = inspect.signature(member.__get__(object())) if inspect.isfunction(member) else None
    return members


def _abilities(made: Any) -> frozenset[str]:
    """Those it declares; what is wrong with the declaration itself is found with the other members."""
    try:
        return frozenset(made.abilities)
    except Exception:  # missing, or a property of the plugin's own
        return frozenset()


def _compare(name: str, wanted: inspect.Signature | None, member: Any) -> str:
    if wanted is None:
        if isinstance(member, TYPES.get(name, (object,))):
            return ""
        return f"its {name} is {member!r} and should be {_list(kind.__name__ for kind in TYPES[name])}"
    if not callable(member):
        return f"its {name} is {member!r} and should be a method"
    try:
        offered = inspect.signature(member)
    except (TypeError, ValueError):  # written in C, and nothing to compare
        return ""
    given = wanted.parameters.values()
    positional = [None for parameter in given if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    keywords = {parameter.name: None for parameter in given if parameter.kind is parameter.KEYWORD_ONLY}
    try:
        offered.bind(*positional, **keywords)
    except TypeError as exc:
        return f"its {name}{offered} cannot be called as {name}{_plain(wanted)}: {exc}"
    return ""


def _doubt_abilities(kind: str, made: Any) -> list[str]:
    if kind not in ABILITIES:
        return []
    unknown = sorted(map(str, set(made.abilities) - ABILITIES[kind]))
    faults = []
    if unknown:
        faults.append(f"it declares an unknown ability: {_list(unknown)} (known: {', '.join(sorted(ABILITIES[kind]))})")
    if "joint" in made.abilities and made.joint is None:
        faults.append("it declares the ability joint, but its joint is None")
    return faults


def _plain(signature: inspect.Signature) -> inspect.Signature:
    """Without annotations, which would only make the sentence long."""
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def _list(names: Iterable[str]) -> str:
    items = list(names)
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
