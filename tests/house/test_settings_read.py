"""A setting that is declared is read by something, or is said to have no effect yet."""

from __future__ import annotations

import re
from pathlib import Path

from celeriac.app.settings_table import NOT_YET, TABLE

ROOT = Path(__file__).resolve().parents[2]
DATA = "settings_table.py"
FOR_CELERYS_SAKE = "Accepted for Celery's sake"
#: Settings of result stores whose plugins are others' or still to come.
OF_OTHER_PLUGINS = {"Results in a database", "Results in other stores"}


def names_read(sources: str) -> set[str]:
    """All names in quotes or after `conf.`."""
    return {name for found in re.findall(r"""["'](?=(\w+)["'])|\bconf\.(\w+)""", sources) for name in found}


def test_what_has_no_effect_is_known_not_to() -> None:
    files = [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("plugins/*/*/src/**/*.py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files if path.name != DATA)
    read = names_read(sources)
    unread = {
        name
        for name, setting in TABLE.items()
        if setting.section not in OF_OTHER_PLUGINS
        and not setting.meaning.startswith(FOR_CELERYS_SAKE)
        and name not in read
    }
    assert unread == NOT_YET, (
        f"in {DATA}, take out of NOT_YET: {sorted(NOT_YET - unread)}; put into it: {sorted(unread - NOT_YET)}; "
        "then run scripts/make_settings_page.py"
    )
