"""Names the system package that brings a library which OpenCV's wheel expects to find."""

from __future__ import annotations

import re

DEBIAN_PACKAGES = {
    "libGL.so.1": "libgl1",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libSM.so.6": "libsm6",
    "libXext.so.6": "libxext6",
    "libXrender.so.1": "libxrender1",
    "libgomp.so.1": "libgomp1",
}


def missing_library(error: ImportError) -> str | None:
    """What to do about an import that failed for want of a system library; None if it failed otherwise."""
    found = re.match(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", str(error))
    if found is None:
        return None
    library = found.group(1)
    package = DEBIAN_PACKAGES.get(library)
    if package is None:
        return f"the system library {library} is missing: install the package of your system that has it"
    return f"the system library {library} is missing: apt-get install {package} (Debian, Ubuntu)"
