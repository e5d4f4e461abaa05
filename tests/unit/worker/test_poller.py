"""Where the worker sleeps."""

from __future__ import annotations

import os

from celeriac.worker.poller import Sleeper


def test_whoever_wakes_a_worker_that_has_ended_writes_to_no_descriptor_of_others() -> None:
    sleeper = Sleeper()
    sleeper.close()
    pipes = [os.pipe() for _ in range(2)]  # they take the numbers that are free now
    try:
        for read_fd, _ in pipes:
            os.set_blocking(read_fd, False)
        sleeper.wake()
        sleeper.close()
        for read_fd, write_fd in pipes:
            os.write(write_fd, b"mine")
            assert os.read(read_fd, 100) == b"mine"
    finally:
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)


def test_a_wake_ends_the_next_sleep_if_there_is_none_now() -> None:
    sleeper = Sleeper()
    sleeper.wake()
    sleeper.sleep(None)
    sleeper.close()
