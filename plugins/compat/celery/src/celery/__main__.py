"""The command `celery`, and `python -m celery`: celeriac's command line under this name."""

from __future__ import annotations

from celeriac.cli import main as run


def main() -> None:
    """Run a command and end the process with its exit code."""
    run(prog="celery")


if __name__ == "__main__":
    main()
