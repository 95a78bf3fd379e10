"""Many clients at once, against stock and a grid of two nodes by turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cases import Result, concurrency
from servers import Running
from stats import Spread, figure, quantile
from traffic import Load, Upload, load


def measure(
    servers: Sequence[Running],
    requests: Sequence[Upload],
    clients: int,
    wall_s: float,
    turns: int,
    tell: Callable[[str], None],
) -> tuple[list[Result], dict[str, Counter[str]]]:
    """Load stock, then the grid, ``turns`` times over.

    Returns:
        The three rows, each the median of the turns with their spread, and each server's errors by text.
    """
    seen: dict[str, list[Load]] = {server.name: [] for server in servers}
    for turn in range(turns):
        for server in servers:
            one = load(server.port, requests, clients, wall_s)
            seen[server.name].append(one)
            tell(
                f"turn {turn + 1} of {turns}, {server.name}: {figure(one.in_time / one.wall_s)} requests/s, "
                f"p50 {figure(1e3 * quantile(one.seconds, 0.5))} ms, "
                f"p99 {figure(1e3 * quantile(one.seconds, 0.99))} ms of {len(one.seconds)}, "
                f"{len(one.errors)} errors"
            )
    per_row: tuple[Callable[[Load], float], ...] = (
        lambda one: one.in_time / one.wall_s,
        lambda one: 1e3 * quantile(one.seconds, 0.5),
        lambda one: 1e3 * quantile(one.seconds, 0.99),
    )
    results = [
        Result(row, *(Spread.of([value(one) for one in seen[server.name]]) for server in servers))
        for row, value in zip(concurrency(clients), per_row)
    ]
    errors = {name: Counter(text for one in loads for text in one.errors) for name, loads in seen.items()}
    return results, errors
