"""Checks the system libraries that OpenCV loads, and names the Debian packages of those that are missing."""

from __future__ import annotations

import ctypes
import sys

# `import cv2` dies with the bare name of the library; its package is hard to guess.
NEEDED = {"libGL.so.1": "libgl1", "libgthread-2.0.so.0": "libglib2.0-0"}


def main() -> int:
    """Load each one."""
    missing = {}
    for library, package in NEEDED.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing[library] = package
    if missing:
        print(f"OpenCV needs {', '.join(missing)}, not found on this system.", file=sys.stderr)
        print(
            f"Install: apt-get install {' '.join(missing.values())}   (or, as root: make deps)",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
