"""Writes constraints/hashes.txt: the SHA-256 of the file that each pin of constraints/ stands for.

usage: .venv/bin/python tools/hashes.py     after a pin was changed; on CPython 3.11, x86-64 Linux

tools/venv.sh installs by these hashes: a file that was exchanged on its way or at its source is refused.
They are of one platform; elsewhere the pins alone hold: pip install -r constraints/lama-cleaner.txt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints"
HASHES = CONSTRAINTS / "hashes.txt"
HEAD = "# Made by tools/hashes.py from the pins beside this file, for CPython 3.11 on x86-64 Linux.\n"
PINS = ("lama-cleaner.txt", "plugins.txt", "dev.txt")


def resolved(pins: Path) -> list[str]:
    """A line for each pin: what pip would install, with its hash."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
            "--report",
            report.name,
        ]
        subprocess.run([sys.executable, "-m", "pip", *command, "-r", pins], check=True)
        found = json.loads(Path(report.name).read_text())["install"]
    return [
        f"{each['metadata']['name']}=={each['metadata']['version']}"
        f" --hash=sha256:{each['download_info']['archive_info']['hashes']['sha256']}"
        for each in found
    ]


def main() -> None:
    """Ask for all pins, and write them in one order."""
    lines = {line for name in PINS for line in resolved(CONSTRAINTS / name)}
    HASHES.write_text(HEAD + "".join(f"{line}\n" for line in sorted(lines, key=str.lower)))


if __name__ == "__main__":
    main()
