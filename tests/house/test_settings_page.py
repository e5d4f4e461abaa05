"""docs/reference/settings.md says what the table of settings says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_settings_is_current() -> None:
    script = ROOT / "scripts" / "make_settings_page.py"
    spec = importlib.util.spec_from_file_location("make_settings_page", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.make_page(), "run scripts/make_settings_page.py"
