"""Submit, wait, cancel, follow, against a real scheduler and an echo node."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lamagrid import LamaGridError, TaskClient, TaskOptions, types
from lamagrid.client import statuses
from lamagrid.errors import (
    CancelledError,
    ConfigError,
    DisconnectedError,
    InvalidInputError,
    UnknownTaskError,
    WaitTimeoutError,
)

from .conftest import Grid, Pixels

Picture = tuple[Pixels, Pixels]


def test_the_echo_comes_back(grid: Grid, picture: Picture) -> None:
    """R3.1: the id names the task from the first moment."""
    image, mask = picture
    task = grid.client.submit(image, mask, hd_strategy="Original", hd_strategy_crop_margin=np.int64(32))
    np.testing.assert_array_equal(task.wait(30), image)
    np.testing.assert_array_equal(task.wait_bgr(30), image[:, :, ::-1])
    status = task.status()
    assert (status["status"], status["model"], status["queue"]) == ("completed", "lama", "gpu")
    assert task.outcome(5).task["stages"]["infer_ms"] >= 0
    assert grid.client.task(task.id).outcome(5).data == task.outcome(5).data
    task.release()
    with pytest.raises(InvalidInputError, match="released"):
        task.wait(5)


def test_results_have_exactly_the_keys_of_their_types(grid: Grid, picture: Picture) -> None:
    def has_keys(value: Mapping[str, Any], kind: type) -> None:
        required: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]
        assert required <= set(value) <= set(kind.__annotations__), kind

    task = grid.client.submit(*picture)
    ended = task.outcome(30).task
    for info in (ended, task.status(), *known(statuses([task]))):
        has_keys(info, types.TaskInfo)
        has_keys(info["counters"], types.Counters)
        has_keys(info["stages"], types.Stages)
    failed = grid.client.submit(*picture, run_limit=0.001, echo_ms=5_000)
    with pytest.raises(LamaGridError):
        failed.wait(30)
    failure = failed.status()["failure"]
    assert failure is not None
    has_keys(failure, types.Failure)
    status = grid.client.survey()
    has_keys(status, types.GridStatus)
    for node in status["nodes"]:
        has_keys(node, types.NodeStatus)
        has_keys(node["info"], types.NodeInfo)
        if "figures" in node:
            has_keys(node["figures"], types.LiveFigures)
        for offer in node["info"]["models"]:
            has_keys(offer, types.ModelOffer)
    for queue in status["queues"]:
        has_keys(queue, types.QueueStatus)


def known(found: list[types.TaskInfo | None]) -> list[types.TaskInfo]:
    assert None not in found
    return [each for each in found if each is not None]


def test_options_and_keywords_are_the_same_and_keywords_go_first(grid: Grid, picture: Picture) -> None:
    image, mask = picture
    options = TaskOptions(model="lama", priority=3, params={"hd_strategy": "Crop", "echo_ms": 1})
    np.testing.assert_array_equal(grid.client.inpaint(image, mask, options, timeout=30), image)
    np.testing.assert_array_equal(
        grid.client.inpaint(image, mask, options, timeout=30, priority=4, hd_strategy="Original"), image
    )
    changed = options.with_keywords({"priority": 4, "hd_strategy": "Original"})
    assert (changed.priority, changed.params) == (4, {"hd_strategy": "Original", "echo_ms": 1})
    with pytest.raises(InvalidInputError, match=r"there is no option hd_stratgy, did you mean hd_strategy\?"):
        grid.client.submit(image, mask, TaskOptions(params={"hd_stratgy": "Crop"}))
    with pytest.raises(InvalidInputError, match="priority is 200"):
        grid.client.submit(image, mask, TaskOptions(priority=200))
    with pytest.raises(InvalidInputError, match="there is no option params"):
        grid.client.submit(image, mask, params={"hd_strategy": "Crop"})


def test_a_large_picture_goes_by_reference(grid: Grid) -> None:
    image = np.random.default_rng(2).integers(0, 256, (1500, 2000, 3), np.uint8)
    mask = np.zeros((1500, 2000), np.uint8)
    np.testing.assert_array_equal(grid.client.inpaint(image[:, ::-1], mask, timeout=60), image[:, ::-1])
    left = [path for path in (grid.data_dir / "spool").glob("*/*/*") if path.is_file()]
    grid.processes.wait_until(lambda: not [p for p in left if p.exists()], 10, "the end of its blobs")


def test_follow_ends_with_the_task(grid: Grid, picture: Picture) -> None:
    seen = list(grid.client.submit(*picture).follow(30))
    assert seen[-1].status == "completed"
    assert {event.status for event in seen[:-1]} <= {"queued", "processing"}


def test_a_wait_times_out_and_may_be_repeated(lonely: Grid, picture: Picture) -> None:
    task = lonely.client.submit(*picture)
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match="wait again or cancel") as info:
        task.wait(0.3)
    assert 0.25 < time.monotonic() - began < 2
    assert isinstance(info.value, TimeoutError)
    assert info.value.task_id == task.id
    assert task.status()["status"] == "queued"
    lonely.start_echo()
    np.testing.assert_array_equal(task.wait(30), picture[0])


def test_cancel(lonely: Grid, picture: Picture) -> None:
    """R3.2, R3.3: a queued task is gone at once, and says so."""
    task = lonely.client.submit(*picture)
    threading.Timer(0.2, task.cancel).start()
    with pytest.raises(CancelledError) as info:
        task.wait(30)
    assert info.value.task_id == task.id
    assert task.cancel() == "cancelled"


def test_other_threads_run_during_a_wait(lonely: Grid, picture: Picture) -> None:
    task = lonely.client.submit(*picture)
    counted = 0
    over = threading.Event()

    def count() -> None:
        nonlocal counted
        while not over.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    with pytest.raises(WaitTimeoutError):
        task.wait(1)
    over.set()
    thread.join()
    assert counted > 100


def test_many_threads_share_a_client(grid: Grid, picture: Picture) -> None:
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        image = np.random.default_rng(seed).integers(0, 256, (100, 100, 3), np.uint8)
        try:
            for _ in range(5):
                got = grid.client.inpaint(image, np.zeros((100, 100), np.uint8), timeout=60)
                np.testing.assert_array_equal(got, image)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_waiting_client_outlives_its_scheduler(lonely: Grid, picture: Picture) -> None:
    task = lonely.client.submit(*picture)
    lonely.kill_scheduler()

    def come_back() -> None:
        time.sleep(0.5)
        lonely.start_scheduler()
        lonely.start_echo()

    thread = threading.Thread(target=come_back)
    thread.start()
    np.testing.assert_array_equal(task.wait(60), picture[0])
    thread.join()


def test_without_a_scheduler_the_error_says_what_to_do(data_dir: os.PathLike[str], picture: Picture) -> None:
    client = TaskClient(data_dir)
    began = time.monotonic()
    with pytest.raises(DisconnectedError, match=f"lamagrid scheduler --data-dir {data_dir}") as info:
        client.submit(*picture, timeout=0.5)
    assert client.address in str(info.value)
    assert time.monotonic() - began < 2


def test_unknown_tasks(lonely: Grid) -> None:
    with pytest.raises(UnknownTaskError, match="knows no task"):
        lonely.client.task("0" * 32).wait(10)
    with pytest.raises(UnknownTaskError):
        lonely.client.task("0" * 32).status()
    with pytest.raises(InvalidInputError, match="32 hexadecimal digits"):
        lonely.client.task("../../etc").status()


IMAGE = np.zeros((4, 6, 3), np.uint8)
MASK = np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([[1]], MASK), "image is a list"),
        ((IMAGE[:, :, 0], MASK), r"image has the shape \(4, 6\)"),
        ((IMAGE.astype(np.float32), MASK), "image is of float32"),
        ((IMAGE, IMAGE), r"mask has the shape \(4, 6, 3\)"),
        ((IMAGE, MASK[:3]), "mask is 3x6 pixels, but image 4x6"),
        ((IMAGE[:0], MASK[:0]), "has no pixels"),
        ((IMAGE, MASK, {"example": MASK}), "example has the shape"),
        ((IMAGE, MASK, {"priority": 200}), "priority is 200"),
        ((IMAGE, MASK, {"prompt": object()}), "prompt is a object"),
        ((IMAGE, MASK, {"prompt": "x" * 9000}), "prompt"),
        ((IMAGE, MASK, {"model": "no such model"}), "no such model"),
        ((IMAGE, MASK, {"durability": "none"}), "none"),
        ((IMAGE, MASK, {"durability": "ful"}), r"did you mean full\?"),
        ((IMAGE, MASK, {"output": "jpg"}), r"did you mean jpeg\?"),
        ((IMAGE, MASK, {"hd_stratgy": "Crop"}), r"there is no option hd_stratgy, did you mean hd_strategy\?"),
        ((IMAGE, MASK, {"hd_strategy": "resize"}), r"did you mean Resize\?"),
        ((IMAGE, MASK, {"qualty": 3}), r"did you mean quality\?"),
        ((IMAGE, MASK, {"deadline": -1.0}), "-1"),
        ((IMAGE, MASK, {"timeout": float("nan")}), "timeout"),
    ],
)
def test_wrong_arguments_are_named(
    data_dir: os.PathLike[str], arguments: tuple[object, ...], text: str
) -> None:
    image, mask, *rest = arguments
    options = rest[0] if rest else {}
    with pytest.raises(InvalidInputError, match=text):
        TaskClient(data_dir).submit(image, mask, **options)  # type: ignore[arg-type]


def test_wrong_arguments_of_plugins_are_named(data_dir: os.PathLike[str]) -> None:
    client = TaskClient(data_dir)
    with pytest.raises(InvalidInputError, match=r"plugin is 'RemoveBg', did you mean RemoveBG\?"):
        client.submit_plugin("RemoveBg", b"file")
    with pytest.raises(InvalidInputError, match=r"there is no option upscal, did you mean upscale\?"):
        client.submit_plugin("RealESRGAN", b"file", upscal=2)
    with pytest.raises(InvalidInputError, match="there is no option upscale"):
        client.submit_plugin("RemoveBG", b"file", upscale=2)
    with pytest.raises(InvalidInputError, match=r"did you mean RealESRGAN_x4plus\?"):
        client.submit_plugin("RealESRGAN", b"file", upscale=2, realesrgan_model="RealESRGAN_x4")


def test_a_time_limit_holds_from_the_call_on(data_dir: os.PathLike[str], picture: Picture) -> None:
    """Without a scheduler, too: not the half minute that a submission alone may take."""
    client = TaskClient(data_dir)
    for call in (client.inpaint, client.inpaint_bytes):
        began = time.monotonic()
        with pytest.raises(DisconnectedError, match="no scheduler answered"):
            call(*picture, timeout=1.0)
        assert time.monotonic() - began < 15
    with pytest.raises(InvalidInputError, match="inpaint_bytes"):
        client.inpaint(*picture, output="png")


def test_a_wrong_configuration_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMAGRID__CLIENT__TIMEOUT", "1")
    with pytest.raises(ConfigError, match="timeout_ms"):
        TaskClient()


def test_owners_do_not_see_each_other(lonely: Grid, picture: Picture) -> None:
    """X8: a task is its owner's."""
    task = TaskClient(lonely.data_dir, owner="alice").submit(*picture)
    with pytest.raises(LamaGridError):
        TaskClient(lonely.data_dir, owner="bob").task(task.id).status()
    assert TaskClient(lonely.data_dir, owner="alice").task(task.id).cancel() == "cancelled"


def test_a_signal_handler_runs_during_a_wait(lonely: Grid, picture: Picture) -> None:
    class AlarmError(Exception):
        pass

    def ring(_number: int, _frame: object) -> None:
        raise AlarmError

    task = lonely.client.submit(*picture)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        began = time.monotonic()
        with pytest.raises(AlarmError):
            task.wait(60)
        assert time.monotonic() - began < 1
    finally:
        signal.signal(signal.SIGALRM, before)
    assert task.status()["status"] == "queued"
