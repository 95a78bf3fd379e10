"""OpenCV as every node uses it."""

from __future__ import annotations

import cv2


def without_ipp() -> None:
    """Turn Intel's closed code off, which x86 wheels alone have: its resize differs in the last bit."""
    if hasattr(cv2, "ipp"):
        cv2.ipp.setUseIPP(False)
