"""Makes SQLAlchemy's engine from URL and settings, and makes what goes wrong with it ours."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from celeriac.exceptions import BackendError, BackendLost, BackendStoreError, BackendUnreachable, SettingError

#: Dialect → drivers to try when the URL names none: (name in the URL, module), the first installed one is taken.
DRIVERS: Final = {
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2")),
    "mysql": (("mysqldb", "MySQLdb"), ("pymysql", "pymysql")),
    "mariadb": (("mysqldb", "MySQLdb"), ("pymysql", "pymysql")),
}
EXTRAS: Final = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
#: A deadlock or a serialization failure: the same again is the cure.
PASSING_CODES: Final = frozenset({"40001", "40P01", "1205", "1213", "3960"})
#: With these MySQL refuses a value, and one of its clients calls that an OperationalError, like a lost connection.
#: (1153, of a statement that is too long, comes with the loss of the connection, and not always.)
REFUSALS: Final = frozenset({1118, 1264, 1267, 1271, 1292, 1300, 1366, 1406, 3988})


def database_url(url: str, settings: Mapping[str, Any]) -> sa.URL:
    """What SQLAlchemy is to connect to: the URL behind `db+`, or the setting `database_url`.

    Raises:
        SettingError: There is none, or it cannot be read.
    """
    scheme, _, rest = url.partition("://")
    behind = scheme.partition("+")[2]
    text = f"{behind}://{rest}" if behind else settings.get("database_url") or ""
    if text.startswith(("db+", "database+")):
        text = text.partition("+")[2]
    if not text:
        raise SettingError(
            f"database backend: {url!r} names no database. Write result_backend = 'db+postgresql://user:password@host/"
            f"name' (or db+mysql://, db+sqlite:///file), or set database_url.",
            setting="database_url",
        )
    try:
        parsed = sa.make_url(text)
    except (sa_exc.ArgumentError, ValueError) as exc:
        raise SettingError(
            "database backend: the URL cannot be read by SQLAlchemy. It looks like "
            "db+postgresql://user:password@host:5432/name; special characters in a password are written %40.",
            setting="result_backend",
        ) from exc
    if parsed.drivername == "postgres":
        parsed = parsed.set(drivername="postgresql")
    drivers = DRIVERS.get(parsed.drivername)
    if drivers:
        installed = [name for name, module in drivers if find_spec(module) is not None]
        if not installed:
            raise _no_driver(parsed.drivername)
        parsed = parsed.set(drivername=f"{parsed.drivername}+{installed[0]}")
    return parsed


def make_engine(url: sa.URL, settings: Mapping[str, Any]) -> sa.Engine:
    """The engine, not connected yet, as `database_engine_options` and the other settings want it.

    Raises:
        SettingError: SQLAlchemy or the driver does not take the options, or is not installed.
    """
    options = settings.get("database_engine_options")
    options = {"pool_pre_ping": True, "pool_recycle": 3600} if options is None else dict(options)
    if settings.get("database_short_lived_sessions"):
        options = {name: value for name, value in options.items() if not name.startswith("pool")}
        options["poolclass"] = sa.NullPool
    try:
        engine = sa.create_engine(url, **options)
    except ModuleNotFoundError as exc:
        raise _no_driver(url.get_backend_name(), exc.name) from exc
    except (sa_exc.NoSuchModuleError, sa_exc.ArgumentError, TypeError) as exc:
        raise SettingError(
            f"database backend: no engine can be made for {url.render_as_string()} with the options {sorted(options)}: "
            f"{exc}. See database_engine_options and the URL's first word.",
            setting="database_engine_options",
        ) from exc
    callback = settings.get("database_engine_callback")
    if callback is not None:
        _resolve(callback)(engine)
    return engine


def translate(exc: Exception, url: sa.URL) -> BackendError:
    """What SQLAlchemy raised, as an error of ours."""
    where = url.render_as_string()
    refused = isinstance(exc, (sa_exc.DataError, sa_exc.IntegrityError, sa_exc.ProgrammingError)) or (
        isinstance(exc, sa_exc.OperationalError) and _number(exc) in REFUSALS
    )
    if refused or (isinstance(exc, sa_exc.StatementError) and not isinstance(exc, sa_exc.DBAPIError)):
        return BackendStoreError(f"database backend: {where} refuses it: {_first_line(exc)}.")
    return BackendLost(f"database backend: {where} {_first_line(exc)}")


def unreachable(exc: Exception, url: sa.URL) -> BackendUnreachable:
    """The same when nothing worked yet."""
    place = url.render_as_string()
    return BackendUnreachable(
        f"database backend: cannot use {place}: {_first_line(exc)}.",
        url=place,
        hint="Is the server running, do user, password and database name fit, and may the user create tables?",
    )


def is_passing(exc: sa_exc.DBAPIError) -> bool:
    """Whether the same statements may well succeed if they are sent once more."""
    original = exc.orig
    code = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return exc.connection_invalidated or str(code) in PASSING_CODES or str(_number(exc)) in PASSING_CODES


def _number(exc: sa_exc.DBAPIError) -> Any:
    """MySQL's number of an error."""
    return exc.orig.args[0] if exc.orig is not None and exc.orig.args else None


def _first_line(exc: Exception) -> str:
    original = getattr(exc, "orig", None) or exc
    lines = str(original).strip().splitlines() or [type(original).__name__]
    return " ".join(lines[0].split()).rstrip(".")


def _no_driver(dialect: str, module: str | None = None) -> SettingError:
    extra = EXTRAS.get(dialect)
    todo = f"pip install 'celeriac-backend-database[{extra}]'" if extra else f"pip install {module or 'its driver'}"
    return SettingError(
        f"database backend: no driver for {dialect} is installed. Try: {todo}", setting="result_backend"
    )


def _resolve(callback: Any) -> Any:
    if callable(callback):
        return callback
    module, _, name = str(callback).replace(":", ".").rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise SettingError(
            f"database backend: database_engine_callback is {callback!r}, which cannot be imported: {exc}. "
            "Give a function, or its path as in 'proj.db.prepare'.",
            setting="database_engine_callback",
        ) from exc
    if not callable(found):
        raise SettingError(
            f"database backend: database_engine_callback {callback!r} is {found!r}, no function.",
            setting="database_engine_callback",
        )
    return found
