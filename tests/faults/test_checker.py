"""The checker sees what it is there for: hand-made histories, one promise broken in each."""

from __future__ import annotations

import pytest

from faults.checker import History

GOOD = (("submitted", ""), ("accepted", ""), ("outcome", "completed"), ("status", "completed"))


def judged(*entries: tuple[str, str], finished: int = 1, may_fail: bool = False) -> tuple[int, int, int, int]:
    history = History()
    for what, status in entries:
        history.note("t", what, status, may_fail=may_fail)
    history.finished(["t"] * finished)
    return history.verdict().counts


def test_a_good_history_is_good() -> None:
    assert judged(*GOOD) == (0, 0, 0, 0)
    assert judged(*GOOD, finished=0) == (0, 0, 0, 0)  # the scheduler died between record and log
    assert judged(("submitted", ""), ("refused", ""), finished=0) == (0, 0, 0, 0)
    assert judged(("submitted", ""), ("accepted", ""), ("left", ""), ("status", "cancelled")) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("entries", "finished", "counts"),
    [
        ((*GOOD[:3], ("status", "unknown")), 1, (1, 0, 0, 0)),
        ((*GOOD[:2], ("status", "unknown")), 0, (1, 0, 0, 0)),
        (GOOD, 2, (0, 1, 0, 0)),
        ((*GOOD[:3], ("status", "cancelled")), 1, (0, 1, 0, 0)),
        ((*GOOD[:3], ("outcome", "completed")), 1, (0, 1, 0, 0)),
        ((*GOOD, ("wrong", "")), 1, (0, 0, 1, 0)),
        ((*GOOD, ("stale", "")), 1, (0, 0, 1, 0)),
        (GOOD[1:], 1, (0, 0, 1, 0)),
        ((*GOOD[:2], ("outcome", "failed")), 1, (0, 0, 1, 0)),
        (GOOD[:2], 0, (0, 0, 0, 1)),
        ((*GOOD[:2], ("status", "queued")), 0, (0, 0, 0, 1)),
        ((*GOOD[:2], ("status", "completed")), 1, (0, 0, 0, 1)),
    ],
)
def test_each_broken_promise_has_its_count(
    entries: tuple[tuple[str, str], ...], finished: int, counts: tuple[int, int, int, int]
) -> None:
    assert judged(*entries, finished=finished) == counts


def test_a_guilty_task_may_fail() -> None:
    entries = (*GOOD[:2], ("outcome", "failed"))
    assert judged(*entries, may_fail=True) == (0, 0, 0, 0)


def test_an_outcome_without_a_submission_is_unexpected() -> None:
    history = History()
    history.finished(["stranger"])
    history.strange("a late result was taken")
    verdict = history.verdict()
    assert verdict.counts == (0, 0, 2, 0)
    assert "stranger" in "\n".join(verdict.reasons)
