"""A peer's task: it notes that it begins, takes its time, and notes that it ends."""

from __future__ import annotations

import os
import time

import redis

_notes = redis.Redis.from_url(os.environ["PEERS_NOTES"])


def work(task: str, ms: int) -> str:
    """Sleep ``ms`` milliseconds. Each start and each end is a line of the lists ``begun`` and ``ended``."""
    node = os.environ["PEERS_NODE"]
    _notes.rpush("begun", f"{task} {node} {time.time()}")
    time.sleep(ms / 1_000)
    _notes.rpush("ended", f"{task} {node} {time.time()}")
    return task
