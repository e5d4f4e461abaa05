"""How celeriac logs: structlog and the standard library through one door, and `TaskLog` for the hot path.

`celeriac worker` calls `configure` once; afterwards every line, whoever wrote it, comes out in one format
(console or JSON), with control characters escaped and passwords in URLs masked.
"""

from celeriac.log.lines import parse_level
from celeriac.log.setup import configure, get_logger, route_structlog
from celeriac.log.stream import Stream, has_colors, open_stream
from celeriac.log.tasks import TaskLog
from celeriac.log.template import Formats

__all__ = [
    "Formats",
    "Stream",
    "TaskLog",
    "configure",
    "get_logger",
    "has_colors",
    "open_stream",
    "parse_level",
    "route_structlog",
]
