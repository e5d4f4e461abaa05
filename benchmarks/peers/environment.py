"""What the benchmark tells an app module: which broker, under which addresses, in which configuration.

Every app module in this folder reads these names and nothing else; `benchmarks.cells` sets them. Standard library
only, because this file runs inside each peer's own venv.
"""

from __future__ import annotations

import os

BROKER = os.environ.get("BENCH_BROKER", "redis")
"""`redis`, `rabbitmq` or `sqlite`."""

BROKER_URL = os.environ.get("BENCH_BROKER_URL", "")
"""Where the messages go; for sqlite the path of the file."""

RESULT_URL = os.environ.get("BENCH_RESULT_URL", "")
"""Where the results go; empty when the cell keeps none."""

QUEUE = os.environ.get("BENCH_QUEUE", "bench")
"""A queue of this cell's own, so that nothing left over by another cell is ever found."""

SETUP = os.environ.get("BENCH_SETUP", "")
"""The configuration's name, for peers that differ in code and not only in the command line."""
