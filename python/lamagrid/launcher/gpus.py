"""Counts the GPUs of this host without initializing CUDA in this process.

CUDA reads ``CUDA_VISIBLE_DEVICES`` once, when it is initialized; the web process must not initialize it.
"""

from __future__ import annotations

import ctypes


def cuda_gpus(visible: str | None) -> int:
    """Count the NVIDIA GPUs of the driver; 0 if ``visible`` (CUDA_VISIBLE_DEVICES) hides them all."""
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    if nvml.nvmlInit_v2() != 0:
        return 0
    count = ctypes.c_uint()
    found = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    nvml.nvmlShutdown()
    return count.value if found else 0
