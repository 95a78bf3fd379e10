"""A node in Python: what ``lamagrid pynode`` stands on."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grids.pictures import encoded
from lamagrid import _native
from lamagrid.errors import InferenceError, InvalidInputError

from .conftest import Grid, Pixels, node_program

Picture = tuple[Pixels, Pixels]
Start = Callable[..., _native.NodeSession]


def node_options(grid: Grid, name: str, models: Sequence[str], slots: int) -> _native._NodeOptions:
    """Options of a Python node of this grid."""
    return {
        "data_dir": str(grid.data_dir),
        "name": name,
        "kind": "python",
        "device": "cpu",
        "models": list(models),
        "slots": slots,
        "missing": [],
        "capabilities": None,
        "cuda_visible_devices": None,
        "cuda_device_order": None,
        "join": None,
    }


@pytest.fixture
def start(lonely: Grid) -> Iterator[Start]:
    """Starts nodes of this process, and closes them."""
    sessions: list[_native.NodeSession] = []

    def make(name: str = "here", models: tuple[str, ...] = ("cv2",)) -> _native.NodeSession:
        session = _native.NodeSession(node_options(lonely, name, models, 1))
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


def test_a_node_whose_file_is_nowhere_does_not_start(data_dir: Path) -> None:
    """R6.1: it could never load its model."""
    for words, env, text in (
        (["--model", "mine=/none/m.pt"], {}, "model `mine`: there is no file /none/m.pt"),
        (["--model", "lama"], {"LAMA_MODEL_URL": "/none/l.pt"}, "upstream's variable LAMA_MODEL_URL"),
    ):
        done = subprocess.run(
            [node_program(), "--data-dir", data_dir, *words],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 78, done.stderr
        assert text in done.stderr


def test_several_slots_are_refused(lonely: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """By flag and by configuration: upstream's models keep state."""
    with pytest.raises(InvalidInputError, match=r"node\.slots is 2"):
        _native.NodeSession(node_options(lonely, "here", ["cv2"], 2))
    monkeypatch.setenv("LAMAGRID__NODE__SLOTS", "3")
    with pytest.raises(InvalidInputError, match=r"node\.slots is 3.*one task at a time"):
        _native.NodeSession(node_options(lonely, "here", ["cv2"], 1))


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
    assert job.take("image") == (image.tobytes(), (40, 60, 3))
    assert job.take("mask") == (mask.tobytes(), (40, 60, 1))
    assert job.take("example") is None
    assert job.take("image") is None  # each once
    assert job.step(1, 2)
    job.finish(image[:, :, ::-1].tobytes(), (40, 60))
    np.testing.assert_array_equal(task.wait(20), image)
    with pytest.raises(InvalidInputError, match="finished before"):
        job.step(2, 2)


def test_files_come_as_pixels_and_go_as_a_file(lonely: Grid, start: Start, picture: Picture) -> None:
    """P7.1: a node in Python sees pixels, whatever the client sent."""
    image, mask = picture
    session = start()
    alpha = np.arange(2400, dtype=np.uint32).reshape(40, 60).astype(np.uint8)
    photo = encoded(np.dstack([image, alpha]), "PNG")
    task = lonely.client.submit(photo, encoded(mask, "PNG"), model="cv2", output="png")
    job = job_of(session)
    assert job.take("image") == (image.tobytes(), (40, 60, 3))
    assert job.take("mask") == (mask.tobytes(), (40, 60, 1))
    job.finish(image[::-1, :, ::-1].tobytes(), (40, 60))
    with Image.open(io.BytesIO(task.wait_bytes(20))) as made:
        assert made.format == "PNG"
        np.testing.assert_array_equal(np.asarray(made), np.dstack([image[::-1], alpha]))
    with pytest.raises(InvalidInputError, match="encoded file"):
        task.wait(20)


@pytest.mark.parametrize(
    ("image", "mask", "text"),
    [
        (b"no picture", encoded(np.zeros((4, 4), np.uint8), "PNG"), "the image: it is no picture"),
        (encoded(np.zeros((4, 4, 3), np.uint8), "PNG"), b"", "the mask: it is no picture"),
        (
            encoded(np.zeros((4, 5, 3), np.uint8), "PNG"),
            encoded(np.zeros((5, 4), np.uint8), "PNG"),
            r"Mask shape\(5, 4\) not queal to Image shape\(4, 5\)",
        ),
    ],
)
def test_errors_of_broken_files_name_them(
    lonely: Grid, start: Start, picture: Picture, image: bytes, mask: bytes, text: str
) -> None:
    session = start()
    with pytest.raises(InvalidInputError, match=text):
        lonely.client.inpaint_bytes(image, mask, model="cv2", timeout=20)
    # The next good one works.
    task = lonely.client.submit(*picture, model="cv2")
    job = job_of(session)
    job.finish(bytes(7200), (40, 60))
    assert task.wait(20).shape == (40, 60, 3)


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
    with pytest.raises(InvalidInputError, match="40 x 60 x 3 are needed"):
        job.finish(b"short", (40, 60))
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
