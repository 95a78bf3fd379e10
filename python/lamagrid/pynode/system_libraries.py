"""Names the system package of a library that OpenCV's wheel needs."""

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
    """The remedy for an import that failed because of a missing system library; None for other failures."""
    found = re.match(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", str(error))
    if found is None:
        return None
    library = found.group(1)
    package = DEBIAN_PACKAGES.get(library)
    if package is None:
        return f"the system library {library} is missing: install the package of your system that has it"
    return f"the system library {library} is missing: apt-get install {package} (Debian, Ubuntu)"
