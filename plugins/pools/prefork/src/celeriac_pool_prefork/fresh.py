"""Where a spawned child begins: a fresh interpreter that knows nothing yet.

Run by path (`birth.spawn`), with the number of a descriptor to read from what it has to know. Nothing but the standard
library can be imported until it has the worker's `sys.path`.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys


def main(told_fd: int) -> None:
    """Be a child; never returns."""
    with open(told_fd, "rb") as file:
        file.seek(0)  # where the parent, which wrote it, has left it is the end
        told = pickle.load(file)
    sys.path[:] = told["path"]
    sys.argv[:] = told["argv"]
    from celeriac.spec import Recipe
    from celeriac_pool_prefork import child
    from celeriac_support_pools.process import Page

    jobs_fd, reports_fd, page_fd = told["ends"]
    page = Page(page_fd)
    os.close(page_fd)
    ends = child.Ends(
        socket.socket(fileno=jobs_fd),
        socket.socket(fileno=reports_fd),
        page,
        told["parent_pid"],
        child.Limits(*told["limits"]),
    )
    for end in (ends.jobs, ends.reports):
        end.set_inheritable(False)  # for what tasks start
    child.main(Recipe(*told["recipe"]).make, ends)


if __name__ == "__main__":
    main(int(sys.argv[1]))
