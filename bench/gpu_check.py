"""Checks the grid on an NVIDIA GPU and measures it there; writes docs/gpu.md.

usage: gpu_check.py [--seconds S] [--turns N] [--out FILE] [--programs DIR]
       gpu_check.py --device cpu       a rehearsal on the processor; writes no page

Without a GPU it says so and ends with 0. Needs Python, torch 2.11.0, numpy, this folder, the package
`lamagrid` with its native module (installed, or in ../python), and both programs of the node. No Rust, no
Lama Cleaner, no network. Without Pillow the plain loop and JPEG are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_page
import gpu_speed
from gpu_grid import PYTHON, GridError, running_grid
from gpu_page import Forward, Parity
from gpu_speed import ANSWER_LIMIT_S, Files
from machine import machine
from stats import quantile

ROOT = Path(__file__).resolve().parent.parent
WANTED_TORCH = "2.11.0"

SIDE = 512
PARITY_SIZES = ((512, 512), (333, 500), (1024, 768), (768, 1024))  # height, width; the second is padded
REHEARSAL_SIZE = (16, 2)  # channels and blocks
FORWARDS = 50  # of which the median is told
WARM_UPS = 3  # TorchScript compiles for a size in its first two calls


class CheckError(Exception):
    """The check cannot go on; the text says why and what to do."""


def say(text: str) -> None:
    """One line, at once, also into a pipe."""
    print(text, flush=True)


def has_pillow() -> bool:
    """Whether this Python has Pillow."""
    return importlib.util.find_spec("PIL") is not None


# Pictures.


def picture(height: int, width: int) -> Any:
    """The packaged photo at that size, or without Pillow soft waves; with noise. (H, W, 3) u8 RGB."""
    import numpy as np

    if has_pillow():
        from pictures import photo

        return np.asarray(photo(width, height, noise=2.0))
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(down / 40 + shift) + np.cos(across / 30 - shift) for shift in (0.0, 1.0, 2.0)]
    noise = np.random.default_rng(12).normal(0.0, 2.0, (height, width, 3))
    return np.clip(np.stack(waves, 2) * 50 + 128 + noise, 0, 255).astype(np.uint8)


def hole(height: int, width: int) -> Any:
    """A mask with a rectangle in the middle, (H, W) u8."""
    import numpy as np

    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 2, width // 4 : width * 3 // 4] = 255
    return mask


def files(pixels: Any, mask: Any) -> dict[str, Files]:
    """The request by its format."""
    if not has_pillow():
        return {"PNG": (plain_png(pixels), plain_png(mask))}
    from PIL import Image

    from pictures import encoded

    image, white = Image.fromarray(pixels), encoded(Image.fromarray(mask), "PNG")
    return {form: (encoded(image, form), white) for form in ("PNG", "JPEG")}


def plain_png(pixels: Any) -> bytes:
    """A PNG file of (H, W, 3) or (H, W) u8 without Pillow, and without filters."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 6)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# Parity.


def references(networks: dict[str, Any]) -> dict[tuple[int, int], dict[str, Any]]:
    """The results of upstream's steps for each picture on each device, in this process."""
    from plain_loop import inpaint

    return {
        size: {
            device: inpaint(each, device, picture(*size), hole(*size)) for device, each in networks.items()
        }
        for size in PARITY_SIZES
    }


def parity(client: Any, device: str, wanted: dict[tuple[int, int], dict[str, Any]]) -> Iterator[Parity]:
    """The grid's pictures, made on ``device``, against those."""
    import numpy as np

    for (height, width), by_device in wanted.items():
        mask = hole(height, width)
        task = client.submit(picture(height, width), mask, durability="process", hd_strategy="Original")
        got = task.wait(ANSWER_LIMIT_S)
        inside = mask > 0
        own = by_device[device].astype(np.int16)
        for against, pixels in by_device.items():
            apart = np.abs(pixels.astype(np.int16) - got)
            yield Parity(
                height,
                width,
                against,
                most=int(apart[inside].max()),
                mean=float(apart[inside].mean()),
                contrast=float(pixels[inside].std()),
                outside=int((apart[~inside] > 0).sum()),
                torchs=int(np.abs(own - pixels).max()),
                same=bool(np.array_equal(own, got)),
            )


# The device.


def free_bytes(device: str) -> int:
    """The device's free memory."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


@contextlib.contextmanager
def least_free(device: str) -> Iterator[Callable[[], int]]:
    """Watches the device's free memory; what it yields gives the least that was seen."""
    seen = [free_bytes(device)]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            seen[0] = min(seen[0], free_bytes(device))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        stop.set()
        thread.join()


def forward(network: Any, device: str) -> Forward:
    """The time of one forward call, and of its kernels alone."""
    import torch

    image = torch.rand(1, 3, SIDE, SIDE, device=device)
    mask = (torch.rand(1, 1, SIDE, SIDE, device=device) > 0.5).long()

    def ms(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(FORWARDS):
            torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return 1e3 * quantile(seconds, 0.5)

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                network(image, mask)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            kept = network(image, mask)  # the graph writes here
        told = Forward(ms(lambda: network(image, mask)), ms(graph.replay))
        if not torch.equal(kept, network(image, mask)):
            raise CheckError("the replayed kernels give another picture than the call: no figure to tell")
    return told


def driver() -> str:
    """The NVIDIA driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown (no nvidia-smi)"
    return told.stdout.split("\n")[0].strip() or "unknown"


def absent() -> str | None:
    """Why there is nothing to check, None if there is a GPU.

    Raises:
        CheckError: There is a GPU that cannot be used.
    """
    present = Path("/dev/nvidiactl").exists()
    nothing = "this machine has no NVIDIA GPU"
    try:
        import torch
    except ImportError as error:
        if present:
            raise CheckError(f"there is an NVIDIA GPU, but this Python has no torch: {error}") from error
        return nothing
    if torch.cuda.is_available():
        return None
    if present:
        raise CheckError(f"there is an NVIDIA GPU, but torch {torch.__version__} cannot use it")
    return nothing


# The check.


def check(options: argparse.Namespace, folder: Path) -> bool:
    """Do all of it. Returns whether everything was as it should be; speed has no part in that."""
    import torch

    from lama import write_lama

    rehearsal = options.device == "cpu"
    if rehearsal:
        torch.set_num_threads(1)  # as the node then
    device = "cpu" if rehearsal else "cuda:0"
    network_file = folder / "lama.pt"
    parameters = write_lama(network_file, *(REHEARSAL_SIZE if rehearsal else ()))
    network_fact = f"LaMa's architecture, {parameters:.1f} M random parameters"
    say(f"network: {network_fact}")
    load: Any = torch.jit.load
    networks = {
        name: load(str(network_file), map_location=name).eval() for name in dict.fromkeys(["cpu", device])
    }
    wanted = references(networks)
    requests = files(picture(SIDE, SIDE), hole(SIDE, SIDE))
    plain: Callable[[Files], object] | None = None
    if has_pillow():
        from plain_loop import inpaint_file

        def plain(request: Files) -> object:
            return inpaint_file(networks[device], device, *request)

        for request in requests.values():
            for _ in range(WARM_UPS):
                plain(request)
    else:
        say("no Pillow here: the plain loop and JPEG are left out")

    passes = None if rehearsal else forward(networks[device], device)

    # From here on this process takes no more of the device's memory.
    memory: dict[str, float] = {}
    before = 0 if rehearsal else free_bytes(device)
    node_device = "cpu" if rehearsal else None
    with contextlib.ExitStack() as stack:
        grid = running_grid(folder, options.programs, network_file, node_device)
        client, info = stack.enter_context(grid)
        found = f"{info['device']} ({info.get('gpu') or 'no GPU'})"
        say(f"the node works on {found}")
        if not rehearsal and found != f"cuda:0 ({torch.cuda.get_device_name(0)})":
            raise CheckError(f"torch sees {torch.cuda.get_device_name(0)}, the node not:\n{info['log']}")
        results = list(parity(client, device, wanted))
        for line in gpu_page.parity_lines(results):
            say(line)
        for form, request in requests.items():
            gpu_speed.load(client, request, form.lower(), 2, 1.0)
        if not rehearsal:
            memory["the node, warm"] = before - free_bytes(device)
        least = None if rehearsal else stack.enter_context(least_free(device))
        speeds = gpu_speed.compare(client, plain, requests, options.seconds, options.turns, say)
        if least is not None:
            memory[f"the node, at most, with {gpu_speed.CLIENTS[-1]} clients"] = before - least()
    for line in gpu_page.speed_lines(speeds):
        say(line)
    if passes is None:
        say("A REHEARSAL on the processor with a small network: none of these are a GPU's figures,")
        say("and docs/gpu.md is left as it is.")
        return all(one.right for one in results)
    say(passes.line)
    memory["the device"] = torch.cuda.mem_get_info(device)[1]
    for name, size in memory.items():
        say(f"memory: {name}: {size / 2**20:.0f} MiB")
    host = machine()
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": torch.cuda.get_device_name(0),
        "driver": driver(),
        "torch": torch.__version__,
        "host": f"{host['processor']}, {host['cores']} cores, {host['memory']}",
        "network": network_fact,
    }
    options.out.write_text(gpu_page.page(facts, results, speeds, passes, memory), "utf-8")
    say(f"written: {options.out}")
    return all(one.right for one in results)


def main() -> int:
    """Parse, check, report. Returns 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu_check.py", description="Check and measure the grid on an NVIDIA GPU."
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu"], default="auto", help="cpu: a rehearsal with a small network"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: 8)")
    parser.add_argument("--turns", type=int, default=3, help="of all measurements (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "gpu.md", help="page to write (default: docs/gpu.md)"
    )
    parser.add_argument(
        "--programs",
        type=Path,
        default=ROOT / "target" / "release",
        help="folder of lamagrid-node and lamagrid-torch-worker (default: target/release)",
    )
    options = parser.parse_args()
    try:
        nothing = absent() if options.device == "auto" else None
        if nothing is not None:
            say(f"gpu-check: nothing was checked: {nothing}")
            return 0
        if importlib.util.find_spec("torch") is None or importlib.util.find_spec("numpy") is None:
            raise CheckError(f"this Python ({sys.executable}) needs torch {WANTED_TORCH} and numpy")
        import torch

        if torch.__version__.partition("+")[0] != WANTED_TORCH:
            raise CheckError(f"the node needs torch {WANTED_TORCH}, this is {torch.__version__}")
        if importlib.util.find_spec("lamagrid") is None:
            sys.path.insert(0, str(PYTHON))
        if not (options.programs / "lamagrid-node").is_file():
            raise CheckError(f"{options.programs} has no lamagrid-node: `make build`, or carry it there")
        with tempfile.TemporaryDirectory(prefix="lamagrid-gpu-check-") as folder:
            return 0 if check(options, Path(folder)) else 1
    except (CheckError, GridError) as error:
        print(f"gpu-check: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
