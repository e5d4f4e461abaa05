"""Which job goes to which slot, and with which others.

Called by `pool` whenever jobs or room have appeared. The rules:

- A job that is not known to be brief, or is big, travels alone and only to an idle slot: nothing waits
  behind it while another slot could run it, and it waits behind nothing.
- Brief jobs travel together, up to a few milliseconds of work a packet, and are spread so that all slots
  have the same expected work ahead. A slot holds at most `AHEAD_S` of it, enough never to starve while the
  parent is busy; what is more waits in the backlog, where it can go to whoever is free first.
- First come, first served: a job never overtakes another in the backlog.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf
from operator import attrgetter
from typing import Final

from celeriac.spec import Job
from celeriac_pool_prefork.child import BRIEF_S
from celeriac_pool_prefork.limits import least_limit
from celeriac_pool_prefork.slot import OVERHEAD_S, Slot

#: Expected work in one packet, and all that a slot may hold.
PACKET_S: Final = 0.005
AHEAD_S: Final = 0.010
#: Less than this is not worth another packet and another wake: an idle slot gets so much before the next does.
SHARE_S: Final = 0.000_3
PACKET_JOBS: Final = 64
PACKET_PAYLOAD_BYTES: Final = 32 * 1024

#: A job that runs this long is no longer taken for brief: what waits behind it goes elsewhere.
STUCK_S: Final = 0.050

_load = attrgetter("load_s")


def hand_out(backlog: deque[Job], slots: Iterable[Slot], now: float) -> float:
    """Give jobs from the front of the backlog to slots that have room.

    Returns the `time.monotonic` at which a slot that got some may have come to a limit or got stuck.
    """
    look_at = inf
    while backlog:
        if backlog[0].cost_s > BRIEF_S:
            found = [slot for slot in slots if not slot.given and slot.is_open()][:1]
            level = inf
        else:
            found = [slot for slot in slots if slot.load_s < AHEAD_S and slot.is_open()]
            level = _level(backlog, found)
        if not found:
            break
        found.sort(key=_load)
        for slot in found:
            if backlog and slot.load_s < level:
                look_at = min(look_at, _serve(slot, backlog, level, now))
    return look_at


def _level(backlog: deque[Job], slots: list[Slot]) -> float:
    """Up to where to fill these slots, so that they have equal work ahead."""
    most = AHEAD_S * len(slots)
    work = sum(slot.load_s for slot in slots)
    for job in backlog:
        if work >= most or job.cost_s > BRIEF_S:
            break
        work += job.cost_s + OVERHEAD_S
    return min(max(work / len(slots), SHARE_S), AHEAD_S) if slots else 0.0


def _serve(slot: Slot, backlog: deque[Job], level: float, now: float) -> float:
    """Send one packet to a slot. Returns when to look after it."""
    parcel: list[Job] = []
    load, size, limit_s = slot.load_s, 0, inf
    full = min(level, load + PACKET_S)
    room = min(PACKET_JOBS, slot.budget)
    while backlog and len(parcel) < room:
        job = backlog[0]
        cost = job.cost_s
        size += len(job.raw) or slot.size_of(job)
        if parcel and (cost > BRIEF_S or size > PACKET_PAYLOAD_BYTES):
            break
        parcel.append(backlog.popleft())
        load += cost + OVERHEAD_S
        if job.soft_limit_s or job.hard_limit_s:
            limit_s = min(limit_s, least_limit(job))
        if load >= full:
            break
    sent = slot.send(parcel)
    if sent < len(parcel):
        backlog.extendleft(reversed(parcel[sent:]))
        if not sent:
            return now + STUCK_S
        load -= sum(job.cost_s + OVERHEAD_S for job in parcel[sent:])
    slot.load_s = load
    slot.limit_at = min(slot.limit_at, now + limit_s)
    return min(slot.limit_at, now + STUCK_S) if len(slot.given) > 1 else slot.limit_at
