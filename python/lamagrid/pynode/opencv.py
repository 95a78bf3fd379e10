"""Configures OpenCV the same way on every node."""

from __future__ import annotations

import cv2


def without_ipp() -> None:
    """Turn off Intel IPP, which only x86 wheels contain: its resize differs in the last bit."""
    if hasattr(cv2, "ipp"):
        cv2.ipp.setUseIPP(False)
