"""Whether this host has a GPU that CUDA programs may use, asked without starting CUDA in this process.

CUDA reads which devices it may see once, at its start; a web process that is to see none must never start it.
"""

from __future__ import annotations

import ctypes


def cuda_gpus(visible: str | None) -> int:
    """How many NVIDIA GPUs the driver has; 0 if ``visible`` (CUDA_VISIBLE_DEVICES) hides them all."""
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
