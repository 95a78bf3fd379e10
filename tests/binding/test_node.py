"""A node in Python: what ``lamagrid pynode`` stands on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lamagrid import _native
from lamagrid.errors import InferenceError, InvalidInputError

from .conftest import Grid, Pixels

Picture = tuple[Pixels, Pixels]
Start = Callable[..., _native.NodeSession]


@pytest.fixture
def start(lonely: Grid) -> Iterator[Start]:
    """Starts nodes of this process, and closes them."""
    sessions: list[_native.NodeSession] = []

    def make(name: str = "here", models: tuple[str, ...] = ("cv2",)) -> _native.NodeSession:
        session = _native.NodeSession(str(lonely.data_dir), name, "python", "cpu", list(models), 1)
        sessions.append(session)
        lonely.processes.wait_until(
            lambda: name in [n["info"]["name"] for n in lonely.client.survey()["nodes"]], 20, "the node"
        )
        return session

    yield make
    for session in sessions:
        session.close()


def job_of(session: _native.NodeSession) -> _native.Job:
    job = session.next_job(20)
    assert job is not None
    return job


def test_a_task_is_done_in_python(lonely: Grid, start: Start, picture: Picture) -> None:
    image, mask = picture
    session = start()
    task = lonely.client.submit(image, mask, model="cv2", cv2_radius=4, cv2_flag="INPAINT_NS")
    job = job_of(session)
    spec = job.spec
    assert (spec["id"], spec["model"], spec["queue"], job.attempt) == (task.id, "cv2", "cpu", 1)
    assert spec["params"] == {"cv2_radius": 4, "cv2_flag": "INPAINT_NS"}
    forms = {blob["role"]: blob["form"]["raw"] for blob in spec["blobs"]}
    assert forms["mask"] == {"height": 40, "width": 60, "channels": 1}
    assert job.input("image") == image.tobytes()
    assert job.input("mask") == mask.tobytes()
    with pytest.raises(InvalidInputError, match="no example"):
        job.input("example")
    assert job.step(1, 2)
    job.finish(image[:, :, ::-1].tobytes(), {"height": 40, "width": 60, "channels": 3})
    np.testing.assert_array_equal(task.wait(20), image)
    with pytest.raises(InvalidInputError, match="finished before"):
        job.step(2, 2)


def test_progress_reaches_a_follower(lonely: Grid, start: Start, picture: Picture) -> None:
    """R2.4."""
    session = start()
    task = lonely.client.submit(*picture, model="cv2")
    job = job_of(session)

    def work() -> None:
        for step in range(1, 6):
            job.step(step, 5)
            time.sleep(0.1)
        job.fail("inference", "enough")

    thread = threading.Thread(target=work)
    events = task.follow(20)
    thread.start()
    steps = [(event.step, event.of) for event in events if event.of]
    thread.join()
    assert steps[-1] == (5, 5)
    assert steps == sorted(steps)
    with pytest.raises(InferenceError, match="enough"):
        task.wait(20)


def test_a_cancel_reaches_the_node(lonely: Grid, start: Start, picture: Picture) -> None:
    """R3.4, P5.3."""
    session = start()
    task = lonely.client.submit(*picture, model="cv2")
    job = job_of(session)
    assert not job.cancelled
    task.cancel()
    lonely.processes.wait_until(lambda: job.cancelled, 10, "the cancel")
    assert not job.step(1, 2)
    job.fail("cancelled", "as told")


def test_a_wrong_result_is_refused_before_it_leaves(lonely: Grid, start: Start, picture: Picture) -> None:
    session = start()
    lonely.client.submit(*picture, model="cv2")
    job = job_of(session)
    with pytest.raises(InvalidInputError, match="its form makes 7200"):
        job.finish(b"short", {"height": 40, "width": 60, "channels": 3})
    with pytest.raises(InvalidInputError, match="none of node_lost"):
        job.fail("bad luck", "text")
    job.fail("internal", "text")


def test_waiting_for_a_task_lets_others_run_and_ends(start: Start) -> None:
    session = start()
    began = time.monotonic()
    assert session.next_job(0.3) is None
    assert 0.25 < time.monotonic() - began < 2
    session.close()
    assert session.next_job(0.1) is None
    assert session.closed
