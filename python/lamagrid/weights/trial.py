"""Runs a model once, through the node program, without a scheduler.

Does not: run upstream's models that need Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lamagrid.errors import ModelLoadError
from lamagrid.launcher import process_specs
from lamagrid.launcher.errors import LaunchError

DEMO = Path(__file__).parent.parent / "demo"
SAMPLE_IMAGE = DEMO / "photo.jpg"
SAMPLE_MASK = DEMO / "mask.png"
LIMIT_S = 1800.0
"""For one run, with a download."""


@dataclass(frozen=True)
class Report:
    """The node program's report about a run.

    Attributes:
        load_ms: How long it took to load the model.
        run_ms: How long the run took, of which the network had ``infer_ms``.
        model_bytes: The model's memory; None where it was not measured, as on a GPU.
        peak_bytes: The same with that of the run.
        pixels: Of the largest patch that the network got; None as above.
    """

    device: str
    height: int
    width: int
    load_ms: int
    run_ms: int
    infer_ms: float
    model_bytes: int | None
    peak_bytes: int | None
    pixels: int | None

    def __str__(self) -> str:
        text = (
            f"{self.width} x {self.height} pixels on {self.device}: loaded in {self.load_ms / 1000:.2f} s, "
            f"ran in {self.run_ms / 1000:.2f} s, {self.infer_ms / 1000:.2f} s of it in the network"
        )
        if self.model_bytes is None or self.peak_bytes is None:
            return text
        return f"{text}; {self.model_bytes >> 20} MiB of memory, {self.peak_bytes >> 20} MiB at most"


def run(model: str, image: Path, mask: Path, out: Path) -> Report:
    """Run a model once, and write the result to ``out`` as PNG.

    Raises:
        ModelLoadError: It did not work; the text says what to do.
    """
    try:
        program = process_specs.node_command(None)
    except LaunchError as error:
        raise ModelLoadError(str(error)) from error
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        [program, "--model", model, "--once", image, mask, out],
        env={"LAMAGRID__LOG__LEVEL": "error", **os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("lamagrid-")]
        raise ModelLoadError(
            "; ".join(said or lines[-1:]) or f"the node program ended with {done.returncode}"
        )
    return Report(**json.loads(done.stdout.splitlines()[-1]))
