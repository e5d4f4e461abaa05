"""`solar`: due when the sun rises, sets, or stands so and so. Needs the library ephem (`celeriac[solar]`)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from celeriac.exceptions import ImproperlyConfigured
from celeriac.schedules.base import BaseSchedule
from celeriac.utils.times import UTC

#: event → (the sun's height above the horizon in degrees, which way it goes, whether its centre counts)
EVENTS: Final = {
    "dawn_astronomical": ("-18", "rising", True),
    "dawn_nautical": ("-12", "rising", True),
    "dawn_civil": ("-6", "rising", True),
    "sunrise": ("-0:34", "rising", False),
    "solar_noon": ("0", "transit", False),
    "sunset": ("-0:34", "setting", False),
    "dusk_civil": ("-6", "setting", True),
    "dusk_nautical": ("-12", "setting", True),
    "dusk_astronomical": ("-18", "setting", True),
}
#: Near a pole the sun may not rise or set for half a year; look no further than this.
MOST_DAYS: Final = 400
DAY: Final = timedelta(days=1)
HALF_A_SECOND: Final = timedelta(milliseconds=500)


class solar(BaseSchedule):
    """Due at an event of the sun at some place. Near the poles, days without that event are left out.

    Args:
        event: dawn_astronomical, dawn_nautical, dawn_civil, sunrise, solar_noon, sunset, dusk_civil, dusk_nautical or
            dusk_astronomical.
        lat, lon: The place in degrees: north and east are positive.
    Raises:
        ImproperlyConfigured: ephem is not installed.
        ValueError: No such event or place.
    """

    has_slots = True

    def __init__(
        self,
        event: str,
        lat: float,
        lon: float,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(nowfun, app)
        self.event, self.lat, self.lon = event, lat, lon
        if event not in EVENTS:
            raise ValueError(f"solar: no event of the sun is called {event!r}; there are: {', '.join(EVENTS)}")
        if not -90 <= lat <= 90:
            raise ValueError(f"solar: latitude {lat!r} is not between -90 and 90")
        if not -180 <= lon <= 180:
            raise ValueError(f"solar: longitude {lon!r} is not between -180 and 180")
        self._ephem = _import_ephem()

    def next_slot(self, after: datetime) -> datetime | None:
        """See `BaseSchedule.next_slot`."""
        after = after.astimezone(UTC)
        days = (_midnight(after) + number * DAY for number in range(MOST_DAYS))
        return next((slot for day in days for slot in self._slots_of(day) if slot > after), None)

    def latest_slot(self, after: datetime, until: datetime) -> datetime | None:
        """See `BaseSchedule.latest_slot`."""
        after, until = after.astimezone(UTC), until.astimezone(UTC)
        day, days = _midnight(until), 0
        while day + DAY > after and days < MOST_DAYS:
            for slot in reversed(self._slots_of(day)):
                if slot <= until:
                    return slot if slot > after else None
            day, days = day - DAY, days + 1
        return None

    def _slots_of(self, day: datetime) -> list[datetime]:
        """The events of one day (of UTC): two, when one that comes sooner each day passes midnight. Always searched
        from midnight and noon, since what the library finds depends by seconds on where it begins, and a slot must be
        the same to everyone."""
        first = self._search(day)
        second = self._search(day + DAY / 2) if first is not None and first < day + DAY / 2 else None
        return [slot for slot in (first, second) if slot is not None and slot < day + DAY]

    def _search(self, begin: datetime) -> datetime | None:
        """The first event from then on, in whole seconds."""
        ephem = self._ephem
        horizon, motion, centre = EVENTS[self.event]
        place = ephem.Observer()
        place.lat, place.lon, place.horizon = str(self.lat), str(self.lon), horizon
        place.elevation = place.pressure = 0
        more = {} if motion == "transit" else {"use_center": centre}
        try:
            found = getattr(place, f"next_{motion}")(ephem.Sun(), start=begin.replace(tzinfo=None), **more)
        except ephem.CircumpolarError:
            return None
        slot: datetime = (found.datetime() + HALF_A_SECOND).replace(microsecond=0, tzinfo=UTC)
        return slot

    def describe(self) -> str:
        """See `BaseSchedule.describe`."""
        return f"solar {self.event} {self.lat!r} {self.lon!r}"

    def __repr__(self) -> str:
        return f"<solar: {self.event} at latitude {self.lat}, longitude: {self.lon}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, solar):
            return (self.event, self.lat, self.lon) == (other.event, other.lat, other.lon)
        return NotImplemented

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.event, self.lat, self.lon, self.nowfun)


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _import_ephem() -> Any:
    try:
        import ephem  # only those who ask for the sun pay for it
    except ImportError as exc:
        raise ImproperlyConfigured(
            "solar schedules need the library ephem, which is not installed. Try: pip install 'celeriac[solar]'"
        ) from exc
    return ephem
