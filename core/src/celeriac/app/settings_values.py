"""What values a setting takes, and how a value given in another sensible form is brought into that one.

Pure functions. A reader takes a value and returns it as the rest of the house wants it, or raises
ValueError; `read_value` turns that into a `SettingError` that names the setting, the value and what is wanted.
Text is understood everywhere, for environment variables and command lines carry nothing else.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from celeriac.app.settings_table import Setting
from celeriac.exceptions import SettingError, mask_url
from celeriac.utils.times import plain_zone

TRUE_WORDS: Final = frozenset({"true", "yes", "on", "1", "y", "t"})
FALSE_WORDS: Final = frozenset({"false", "no", "off", "0", "n", "f", ""})
LOG_LEVELS: Final = ("TRACE", "DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL", "NOTSET")

Reader = Callable[[Any], Any]


def read_value(setting: Setting, value: Any) -> Any:
    """Bring a value into the form that this setting has.

    Returns:
        The value; the setting's default for a None that means nothing here.
    Raises:
        SettingError: It is no such value, by its type or by what it says.
    """
    if value is None:
        return None if setting.none_ok else setting.default
    try:
        if setting.kind.startswith("choice:"):
            return read_choice(setting.kind, value)
        return KINDS[setting.kind][0](value)
    except (ValueError, TypeError, OverflowError) as exc:
        why = f" ({exc})" if str(exc) else ""
        raise SettingError(
            f"The setting {setting.name} cannot be {show_value(setting, value)}{why}; wanted: {wanted(setting)}.",
            setting=setting.name,
        ) from exc


def wanted(setting: Setting) -> str:
    """What values a setting takes, in words."""
    if setting.kind.startswith("choice:"):
        words = " or ".join(setting.kind.removeprefix("choice:").split("|"))
    else:
        words = KINDS[setting.kind][1]
    return f"{words}, or None" if setting.none_ok and setting.kind != "any" else words


def show_value(setting: Setting, value: Any) -> str:
    """The repr of a value, at most 200 characters of it, with nothing secret in it."""
    if setting.kind == "secret":
        return "'********'"
    text = mask_url(repr(value))
    return text if len(text) <= 200 else text[:199] + "…"


# -- readers ----------------------------------------------------------------------------------------------


def read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
    elif isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError


def read_number(value: Any) -> int | float:
    """Ints stay ints. False counts as 0, which is how some write «off»; True says nothing."""
    if value is True:
        raise ValueError
    if isinstance(value, bool):
        return 0
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = float(value)
    if not isinstance(value, (int, float)):
        # Other numeric types (Decimal, numpy's) have a float to give; anything else raises TypeError here.
        if isinstance(value, (bytes, bytearray)):
            raise ValueError
        value = float(value)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError
    number: int | float = value
    return number


def read_int(value: Any) -> int:
    number = read_number(value)
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def read_count(value: Any) -> int:
    number = read_int(value)
    if number < 0:
        raise ValueError("less than 0")
    return number


def read_seconds(value: Any) -> int | float:
    number = value.total_seconds() if isinstance(value, dt.timedelta) else read_number(value)
    if number < 0:
        raise ValueError("less than 0")
    result: int | float = number
    return result


def read_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "__fspath__"):
        return str(value.__fspath__())
    raise ValueError


def read_secret(value: Any) -> str | bytes:
    if isinstance(value, (str, bytes)):
        return value
    raise ValueError


def read_texts(value: Any) -> list[str] | tuple[str, ...]:
    """Several texts: a list, tuple or set of them, or one text with commas (or a JSON list)."""
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError
    if not all(isinstance(item, str) for item in value):
        raise ValueError("not all of them are text")
    return value


def read_dict(value: Any) -> Mapping[str, Any]:
    """The very object that was given, so that what is put into it later counts too."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError
    return value


def read_urls(value: Any) -> str | list[str] | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return value
    raise ValueError


def read_backend(value: Any) -> Any:
    if isinstance(value, str) or callable(value) or hasattr(value, "abilities"):
        return value
    raise ValueError


def read_ssl(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return read_dict(value)
    return read_bool(value)


def read_concurrency(value: Any) -> int | str:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    return read_count(value)


def read_priority(value: Any) -> int:
    number = read_int(value)
    if not 0 <= number <= 255:
        raise ValueError("not from 0 to 255")
    return number


def read_rate(value: Any) -> int | float | str:
    if isinstance(value, str) and not re.fullmatch(r"\s*\d+(\.\d+)?\s*(/\s*[smh])?\s*", value):
        raise ValueError
    if isinstance(value, str):
        return value.replace(" ", "")
    return read_seconds(value)


def read_delivery_mode(value: Any) -> int:
    modes = {"1": 1, "transient": 1, "2": 2, "persistent": 2}
    if isinstance(value, bool) or str(value).lower() not in modes:
        raise ValueError
    return modes[str(value).lower()]


def read_timezone(value: Any) -> Any:
    if isinstance(value, dt.tzinfo):
        return plain_zone(value)
    if not isinstance(value, str):
        raise ValueError
    if value.upper() in ("UTC", "LOCAL", ""):
        return value.upper()
    import zoneinfo  # only programs that name a zone pay for it

    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, IsADirectoryError) as exc:
        raise ValueError("no such zone") from exc
    return value


def read_loglevel(value: Any) -> str | int:
    if isinstance(value, str):
        if value.upper() in LOG_LEVELS:
            return value.upper()
        return read_count(value)
    return read_count(value)


def read_queues(value: Any) -> Any:
    """`kombu.Queue` objects or names, in a list, tuple or set; or a dict of options by name."""
    if isinstance(value, (str, bytes)):
        raise ValueError("one text")
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return value
    return list(value)  # what can be gone through once is needed more often


def read_object(value: Any) -> Any:
    """A name, a path `module:Class`, or the class itself."""
    if isinstance(value, str) or callable(value):
        return value
    raise ValueError


def read_choice(kind: str, value: Any) -> Any:
    choices = kind.removeprefix("choice:").split("|")
    text = str(value).strip().lower()
    if isinstance(value, bool) or text not in choices:
        raise ValueError
    return int(text) if text.isdigit() else text


#: kind → (its reader, what it wants in words)
KINDS: Final[dict[str, tuple[Reader, str]]] = {
    "any": (lambda value: value, "anything"),
    "backend": (read_backend, "a URL such as 'redis://localhost/0', or a class or its path, 'module:Class'"),
    "bool": (read_bool, "True or False"),
    "concurrency": (read_concurrency, "a whole number, or 'auto'"),
    "count": (read_count, "a whole number, 0 or more"),
    "delivery_mode": (read_delivery_mode, "1, 2, 'transient' or 'persistent'"),
    "dict": (read_dict, "a dict"),
    "int": (read_int, "a whole number"),
    "kibibytes": (read_count, "a whole number of KiB"),
    "loglevel": (read_loglevel, "a log level such as 'INFO'"),
    "milliseconds": (read_count, "a whole number of milliseconds"),
    "number": (read_number, "a number"),
    "object": (read_object, "a name, or 'module:Class'"),
    "priority": (read_priority, "a whole number from 0 to 255"),
    "queues": (read_queues, "a list of queues, or a dict of options by queue name"),
    "rate": (read_rate, "a number per second, or text such as '10/s', '100/m', '1000/h'"),
    "seconds": (read_seconds, "a number of seconds, or a timedelta"),
    "secret": (read_secret, "text or bytes"),
    "ssl": (read_ssl, "True, False, or a dict of options"),
    "text": (read_text, "text"),
    "texts": (read_texts, "a list of texts"),
    "timezone": (read_timezone, "the name of a time zone such as 'Europe/Berlin', or a tzinfo"),
    "urls": (read_urls, "a URL such as 'redis://localhost/0', or a list of them"),
}
