"""Libraries that stand between a program and the C library, for LD_PRELOAD."""

from __future__ import annotations

import subprocess
from pathlib import Path


def compiled(source: Path, folder: Path) -> Path:
    """Compile a C file into a library in a folder."""
    library = folder / source.with_suffix(".so").name
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
