"""A command of ours that runs beside a test, with what it writes to its two outputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

CELERIAC = Path(sys.executable).parent / "celeriac"
WAIT_S = 60.0


class Watched:
    """`celeriac …` in a folder, whose files `out` and `err` are its outputs."""

    def __init__(self, folder: Path, *words: str, variables: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            environment = {**os.environ, **(variables or {})}
            self.process = subprocess.Popen([CELERIAC, *words], cwd=folder, env=environment, stdout=out, stderr=err)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, *texts: str, count: int = 1) -> None:
        """Until its log has each of these so often."""
        deadline = time.monotonic() + WAIT_S
        while True:
            has_ended = self.process.poll() is not None  # it may say its last words after we have read
            if all(self.err.count(text) >= count for text in texts):
                return
            assert not has_ended, self.err
            assert time.monotonic() < deadline, f"{texts} never came:\n{self.err}"
            time.sleep(0.02)

    def stop(self) -> int:
        """Tell it to end, and wait; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """Whatever happened, leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_S)
