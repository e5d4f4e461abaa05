"""The abilities a plugin of each kind may declare; what they promise is said beside each contract.

The kernel refuses a plugin that declares another one, for that is a misspelling or a newer contract.
"""

from __future__ import annotations

from typing import Final

#: kind → the names that may stand in `abilities`
ABILITIES: Final[dict[str, frozenset[str]]] = {
    "broker": frozenset(
        {
            "attempts",
            "browse_dead",
            "crashes",
            "dead_letter",
            "delay",
            "depth",
            "diagnose",
            "durable",
            "fanout",
            "lease",
            "priority",
            "purge",
            "shared",
            "spares",
            "once",
            "state",
        }
    ),
    "backend": frozenset(
        {"push", "expire", "persistent", "joint", "replies", "count", "shared", "state", "groups", "fence", "diagnose"}
    ),
    "pool": frozenset({"soft_limit", "hard_limit", "terminate", "resize", "processes", "coroutines", "stuck", "spawn"}),
}
