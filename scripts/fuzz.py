"""Fuzz the readers of bytes with atheris, for as long as one likes.

    pip install atheris            # CPython on Linux and macOS; not among the project's own tools
    .venv/bin/python scripts/fuzz.py                      # each reader for ten seconds
    .venv/bin/python scripts/fuzz.py "amqp head" 600      # one of them for ten minutes
    .venv/bin/python scripts/fuzz.py --list

It begins with `tests/corpus`. What breaks a reader is written to the current folder as `crash-…`, and printed; once it
is understood it belongs in the corpus.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def fuzz(name: str, seconds: int) -> None:
    """Feed one reader in this process; it ends with the process."""
    atheris = importlib.import_module("atheris")  # which nobody needs for anything else

    with atheris.instrument_imports(include=["celeriac", "celeriac_broker_amqp", "celeriac_broker_redis"]):
        from tests.fuzz.readers import READERS
    reader = READERS[name]

    def feed(data: bytes) -> None:
        try:
            reader.read(data)
        except reader.errors:
            pass  # which is what it may say

    found = tempfile.mkdtemp(prefix="celeriac-fuzz-")
    words = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup([*words, found, str(ROOT / "tests" / "corpus" / reader.corpus)], feed)
    atheris.Fuzz()


def main(words: list[str]) -> int:
    """One reader, or each in a process of its own; 1 if one of them broke."""
    if words and words != ["--list"]:
        fuzz(words[0], int(words[1]) if len(words) > 1 else 10)
        return 0
    from tests.fuzz.readers import READERS  # not before `fuzz`, which wants to see it imported

    if words:
        print("\n".join(READERS))
        return 0
    broken = []
    for name in READERS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, __file__, name, "10"], check=False).returncode:
            broken.append(name)
    print(f"broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
