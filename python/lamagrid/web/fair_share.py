"""Divides a bounded resource among clients that are not told of each other.

A client may hold as much as is left free, at most: one alone gets half of everything, and each further one
finds as much as the greediest holds. No number of requests of one client uses the resource up.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable


class FairShare:
    """A resource of ``total`` units.

    Args:
        total: How much there is.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._lock = threading.Lock()  # guards both below
        self._held: Counter[Hashable] = Counter()
        self._sum = 0

    def take(self, client: Hashable, units: int = 1, is_proxy: bool = False) -> bool:
        """Take that much for a client, if there is enough.

        Args:
            is_proxy: Whether many people are behind this client: it may take all that is free.
        """
        with self._lock:
            free = self._total - self._sum - units
            if free < (0 if is_proxy else self._held[client] + units):
                return False
            self._held[client] += units
            self._sum += units
            return True

    def give_back(self, client: Hashable, units: int = 1) -> None:
        """Return what :meth:`take` took."""
        if units == 0:
            return
        with self._lock:
            self._held[client] -= units
            self._sum -= units
            if self._held[client] <= 0:
                del self._held[client]
