"""Celery's side: an application as its documentation advises where no task may be lost."""

from __future__ import annotations

import os

import body
from celery import Celery

REDIS = os.environ["PEERS_REDIS"]
app = Celery("app_celery", broker=REDIS, backend=REDIS)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    # Redis has no acknowledgements: a message comes back when it was out for this time (default 3,600 s).
    broker_transport_options={"visibility_timeout": int(os.environ["PEERS_LEASE_S"])},
)


@app.task(name="work")
def work(task: str, ms: int) -> str:
    """One task."""
    return body.work(task, ms)
