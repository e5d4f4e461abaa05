"""The abilities a plugin of each kind may declare; what they promise is said beside each contract.

The kernel refuses a plugin that declares another one, for that is a misspelling or a newer contract.
"""

from __future__ import annotations

from typing import Final

#: kind → the names that may stand in `abilities`
ABILITIES: Final[dict[str, frozenset[str]]] = {
    "broker": frozenset(
        {"delay", "priority", "fanout", "lease", "attempts", "dead_letter", "durable", "shared", "purge", "depth"}
    ),
    "backend": frozenset({"push", "expire", "persistent", "joint", "replies", "count", "shared"}),
    "pool": frozenset({"soft_limit", "hard_limit", "terminate", "resize", "processes"}),
}
