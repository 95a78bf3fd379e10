"""Divides a bounded resource among clients.

A client may hold at most as much as it leaves free: a single one gets half of the whole, and a second one
finds as much free as the first holds. One client cannot use the resource up.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple


class Client(NamedTuple):
    """Who takes a share.

    Attributes:
        key: Tells clients apart: an address, or a network.
        is_proxy: Whether many people are behind it. It may take all that is free.
    """

    key: str
    is_proxy: bool = False


class FairShare:
    """A resource of ``total`` units.

    Args:
        total: How much there is.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._lock = threading.Lock()  # guards both below
        self._held: Counter[str] = Counter()
        self._sum = 0

    def take(self, client: Client, units: int = 1) -> bool:
        """Take that much for a client, if there is enough."""
        with self._lock:
            free = self._total - self._sum - units
            if free < (0 if client.is_proxy else self._held[client.key] + units):
                return False
            self._held[client.key] += units
            self._sum += units
            return True

    def give_back(self, client: Client, units: int = 1) -> None:
        """Give back units that :meth:`take` took."""
        if units == 0:
            return
        with self._lock:
            self._held[client.key] -= units
            self._sum -= units
            if self._held[client.key] <= 0:
                del self._held[client.key]
