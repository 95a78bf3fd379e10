"""The text of docs/gpu.md."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_speed import CLIENTS, PLAIN, Speed, waiting
from stats import figure

MOST, MEAN = 6, 0.5
"""Levels of 255 in the hole, GPU to CPU: cuDNN's convolutions keep 10 bits (TF32), the CPU's 23."""

SHARE_AIM, RATIO_AIM = 0.9, 3.0

INTRODUCTION = """\
# On a GPU

`make gpu-check` checks the grid on an NVIDIA GPU and writes this page. Without a GPU it says so, and leaves
the page alone.

It needs no Rust, no Lama Cleaner and no network, so it also runs on a machine with nothing but Python,
torch 2.11.0 and numpy. Carry this tree there, with three files that `make build` made:
`target/release/lamagrid-node`, `target/release/lamagrid-torch-worker` and `python/lamagrid/_native.abi3.so`.
Then:

```
python3 bench/gpu_check.py
```

Without Pillow there, the plain loop and JPEG are left out. `--device cpu` rehearses everything on the
processor with a small network, and writes nothing.
"""


@dataclass(frozen=True)
class Parity:
    """How far the grid's picture is from upstream's steps on a device.

    Attributes:
        against: That device.
        most: The largest difference in the hole, in levels of 255.
        mean: The mean one.
        contrast: The standard deviation of the hole itself: of an even grey one could tell no difference.
        outside: Samples that differ outside the hole.
        torchs: The largest difference between upstream's steps on that device and on the node's.
        same: Whether the grid's picture is the one of upstream's steps on the node's device.
    """

    height: int
    width: int
    against: str
    most: int
    mean: float
    contrast: float
    outside: int
    torchs: int
    same: bool

    @property
    def verdict(self) -> str:
        """Whether that is tolerated: a difference that torch itself makes between its devices is not ours."""
        if self.most <= MOST and self.mean <= MEAN and self.outside == 0:
            return "ok"
        return "torch's own" if self.torchs > MOST and self.same else "MISS"

    @property
    def right(self) -> bool:
        """Whether the grid did nothing wrong."""
        return self.verdict != "MISS"

    @property
    def cells(self) -> list[str]:
        """As a line of the table."""
        return [
            f"{self.width}x{self.height}",
            self.against,
            str(self.most),
            f"{self.mean:.4f}",
            f"{self.contrast:.1f}",
            str(self.outside),
            str(self.torchs),
            self.verdict,
        ]


@dataclass(frozen=True)
class Forward:
    """Milliseconds of one forward call, as libtorch runs it and with its kernels replayed as a CUDA graph."""

    called_ms: float
    replayed_ms: float

    @property
    def line(self) -> str:
        """In words."""
        return (
            f"One forward call of the network: {figure(self.called_ms)} ms as libtorch runs it, "
            f"{figure(self.replayed_ms)} ms when the\n"
            "same kernels are replayed as one CUDA graph. The rest is the processor that launches them one\n"
            "by one; it counts as the device's share above, and a device this fast waits for it."
        )


def page(
    facts: dict[str, str],
    results: list[Parity],
    speeds: list[Speed],
    forward: Forward,
    memory: dict[str, float],
) -> str:
    """All of it; ``memory`` is in bytes."""
    parts = [
        INTRODUCTION,
        "## The machine\n",
        *table(["", ""], [[name, value] for name, value in facts.items()]),
        "\n## Parity\n",
        *parity_lines(results),
        "\n## Speed\n",
        *speed_lines(speeds),
        f"\n{forward.line}",
        "\n## Device memory\n",
        *table(["", "MiB"], [[name, f"{size / 2**20:.0f}"] for name, size in memory.items()]),
    ]
    return "\n".join(parts) + "\n"


def parity_lines(results: list[Parity]) -> list[str]:
    """The table of differences."""
    return [
        "The node's pictures against upstream's steps (numpy, the same TorchScript) in one process, on each",
        "device: differences in the hole, in levels of 255. Tolerated:",
        f"at most {MOST}, on average {MEAN}; outside the hole none. cuDNN's convolutions keep 10 bits of a",
        "number (TF32, torch's default), the CPU's 23. Where upstream's steps themselves give another",
        "picture on the GPU than on the CPU (column torch), the grid's has to be the GPU's, sample for",
        "sample. 1024 wide is such a size: LaMa's spectra keep imaginary parts where a picture's has none,",
        "which the CPU drops and cuFFT does not for rows of 128 values (1024 / 8).\n",
        *table(
            ["picture", "against", "at most", "on average", "contrast", "outside", "torch", ""],
            [one.cells for one in results],
        ),
    ]


def speed_lines(speeds: list[Speed]) -> list[str]:
    """The table of speeds, with what is aimed at."""
    base = {speed.form: speed.rate.median for speed in speeds if speed.way == PLAIN}
    rows, aims = [], []
    for speed in speeds:
        ratio = speed.rate.median / base[speed.form] if speed.form in base else None
        share = speed.share
        rows.append(
            [
                speed.form,
                speed.way,
                str(speed.rate),
                figure(speed.percentile(0.5)),
                figure(speed.percentile(0.99)),
                "-" if ratio is None else f"{ratio:.2f}",
                "-" if share is None else f"{100 * share:.1f} %",
            ]
        )
        if speed.way == waiting(CLIENTS[-1]):
            told = (
                []
                if share is None
                else [_aim(f"the device's share is {100 * share:.1f} %", share, SHARE_AIM)]
            )
            if ratio is not None:
                told.append(_aim(f"{ratio:.2f} times the plain loop", ratio, RATIO_AIM))
            aims.append(f"- {speed.form}, {CLIENTS[-1]} waiting: {', '.join(told)}.")
    if not base:
        aims.append("- The plain loop and JPEG were left out: this Python has no Pillow.")
    return [
        "512x512 pixels, file to file, strategy Original. The plain loop is one thread with Pillow, numpy",
        "and the same TorchScript on the same device; the grid is a scheduler, one node, and clients that",
        "each wait for their picture. Pictures per second: the median of the turns (10 % to 90 %). The",
        "device's share: the tasks' own time in the model, over the wall's.\n",
        *table(
            ["format", "", "pictures/s", "p50 ms", "p99 ms", "to the plain loop", "device's share"],
            rows,
        ),
        "",
        *aims,
    ]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _aim(told: str, value: float, aim: float) -> str:
    return f"{told} (aim {aim:g}: {'ok' if value >= aim else 'MISS'})"
