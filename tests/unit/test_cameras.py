"""Cameras: what looks at a cluster every now and then."""

from __future__ import annotations

import time
from typing import Any

import pytest

from celeriac.events import Event, State
from celeriac.events.snapshot import Polaroid, find_camera
from celeriac.testing.kit import eventually


class Camera(Polaroid):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pictures: list[list[str]] = []
        self.cleanups = 0

    def on_shutter(self, state: State) -> None:
        self.pictures.append(sorted(state.tasks))

    def on_cleanup(self) -> None:
        self.cleanups += 1


@pytest.fixture
def cluster() -> State:
    state = State()
    for number, kind in enumerate(("task-received", "task-succeeded")):
        fields = {"uuid": f"t{number}", "hostname": "w@h", "clock": number, "local_received": time.time(), "pid": 1}
        state.event(Event(kind, **fields))
    return state


def test_a_camera_takes_pictures_cleans_up_and_tells_receivers_of_its_signals(cluster: State) -> None:
    told: list[str] = []

    def shutter(sender: Any, **_: Any) -> None:
        told.append("shutter")

    def cleanup(sender: Any, **_: Any) -> None:
        told.append("cleanup")

    with Camera(cluster, freq=0.01, cleanup_freq=0.01) as camera:
        camera.shutter_signal.connect(shutter, sender=cluster)
        camera.cleanup_signal.connect(cleanup, sender=cluster)
        eventually(lambda: len(camera.pictures) > 2 and camera.cleanups > 2 and {*told} == {"shutter", "cleanup"})
    assert camera.pictures[0] == ["t0", "t1"]


def test_a_camera_takes_no_more_pictures_than_its_rate_allows(cluster: State) -> None:
    camera = Camera(cluster, maxrate="1/h")
    for _ in range(5):
        camera.capture()
    assert len(camera.pictures) == 1


def test_a_camera_may_forget_what_has_ended(cluster: State) -> None:
    camera = Camera(cluster)
    camera.clear_after = True
    camera.capture()
    assert sorted(cluster.tasks) == ["t0"]


def test_what_is_on_no_picture_is_not_forgotten(cluster: State) -> None:
    camera = Camera(cluster, maxrate="1/h")
    camera.clear_after = True
    camera.capture()
    cluster.event(Event("task-succeeded", uuid="t2", hostname="w@h", clock=3, pid=1))
    camera.capture()
    assert sorted(cluster.tasks) == ["t0", "t2"]


def test_a_picture_that_fails_is_followed_by_others(cluster: State) -> None:
    class Shaken(Camera):
        clear_after = True

        def on_shutter(self, state: State) -> None:
            super().on_shutter(state)
            if len(self.pictures) == 1:
                raise ValueError("no film")

    with Shaken(cluster, freq=0.01) as camera:
        eventually(lambda: len(camera.pictures) > 2)
    assert camera.pictures[:3] == [["t0", "t1"], ["t0", "t1"], ["t0"]]


@pytest.mark.parametrize("path", ["celeriac.events.snapshot.Polaroid", "celeriac.events.snapshot:Polaroid"])
def test_a_camera_is_found_by_its_path(path: str) -> None:
    assert find_camera(path) is Polaroid
