"""Dramatiq's side: its Redis broker, with results."""

from __future__ import annotations

import os

import body
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

REDIS = os.environ["PEERS_REDIS"]
# A worker that is silent for this time is dead, and its messages go back (default 60 s).
broker = RedisBroker(url=REDIS, heartbeat_timeout=int(os.environ["PEERS_LEASE_S"]) * 1_000)
results = RedisBackend(url=REDIS)
broker.add_middleware(Results(backend=results))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def work(task: str, ms: int) -> str:
    """One task."""
    return body.work(task, ms)
