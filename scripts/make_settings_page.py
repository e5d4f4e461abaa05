"""Write docs/reference/settings.md from the table of settings (`celeriac.app.settings_table`).

Run it after a change to the table; `tests/house/test_settings_page.py` fails while the page is behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from celeriac.app.settings_source import ENVIRONMENT
from celeriac.app.settings_table import NOT_YET, SECTIONS, TABLE, Setting
from celeriac.app.settings_values import wanted

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "settings.md"

INTRODUCTION = """\
# Settings

<!-- Written by scripts/make_settings_page.py from core/src/celeriac/app/settings_table.py: change that, and run it. -->

Every setting that `app.conf` knows, with the values it takes, its default and the name it had before Celery 4.
Give settings in any of these ways; where two disagree, the upper one wins.

| way | example |
| --- | --- |
| command line | `celeriac -A proj worker -- worker.prefetch_multiplier=1` |
| environment | {environment} |
| in the program | `app.conf.timezone = 'UTC'`, `app.conf.update(...)`, `Celery('proj', task_serializer='json')` |
| a source | `app.config_from_object('celeriacconfig')`, `app.config_from_envvar('MY_SETTINGS')` |
| added defaults | `app.add_defaults({{...}})`, by plugins and integrations |
| defaults | this page |

- **Names are checked.** A slip of a known name (`broke_url`) is an error that gives the right one. Other unknown
  names are warned about once. A name that starts with `x_` is yours.
- **Values are checked** where they are given: `worker_concurrency = 'lots'` is an error that says what is wanted.
  Text is understood wherever it makes sense (`'4'`, `'true'`, `'json,msgpack'`), and so is a `timedelta` for seconds.
- **Old names work** everywhere, but one source cannot mix old and new ones. With `namespace='CELERY'` a source has
  the new names in capitals after `CELERY_`.
- **None** means «not set», except where it is listed among the values.
- A default that is not Celery's is marked with ◆; [Coming from Celery](../coming-from-celery.md) says why.
"""
WITHOUT_EFFECT = "- A setting marked with ○ has no effect so far; giving it another value than its default warns.\n"


def make_page() -> str:
    """The whole page."""
    variables = ", ".join(f"`{name}`" for names in ENVIRONMENT.values() for name in names)
    parts = [INTRODUCTION.format(environment=variables), WITHOUT_EFFECT if NOT_YET else ""]
    for section, rows in SECTIONS:
        parts.append(f"\n## {section}\n\n")
        parts.extend(make_rows([TABLE[row[0]] for row in rows]))
    return "".join(parts)


def make_rows(settings: list[Setting]) -> Iterator[str]:
    """The table of one section, line by line."""
    yield "| setting | values | default | meaning | before Celery 4 |\n| --- | --- | --- | --- | --- |\n"
    for setting in settings:
        mark = f" ◆ (Celery: {setting.celery_default})" if setting.celery_default else ""
        cells = (
            f'<a id="{setting.name}"></a>`{setting.name}`{" ○" if setting.name in NOT_YET else ""}',
            wanted(setting),
            f"`{setting.default!r}`{mark}",
            setting.meaning,
            f"`{setting.old}`" if setting.old else "",
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(make_page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(TABLE)} settings")
