"""Stock Lama Cleaner against the grid, side by side in one run; see bench/README.md.

usage: bench/run.py [--quick] [ROW...]      all rows, or those whose names are, or begin with, these words
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# The tests' code that starts and asks servers is used here, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from loguru import logger

import concurrency
from cases import (
    CONCURRENCY,
    FULL_SIZE,
    FULL_SIZE_REQUEST,
    NAMES,
    OUTSIDE,
    PNG_SIZE,
    WEB_CPU,
    WEB_CPU_REQUEST,
    Request,
    Result,
    Row,
    chosen,
)
from forward import Forward
from lama import write_lama
from machine import disturbance, machine, versions
from networks import write_inverse
from pictures import brush_stroke, encoded, full_mask, photo, photos_at_hand
from sequence import Series, alternate, compare
from servers import Pair, pair
from stats import Spread
from traffic import RequestError, Upload, load, send, upload

OUT = Path(__file__).resolve().parent.parent / "target" / "bench.json"
PACKAGES = ("lama-cleaner", "torch", "numpy", "pillow", "opencv-python")

STOPPED = 143  # as a shell says it of SIGTERM
ROUNDS, QUICK_ROUNDS = 10, 3
SMALL_ROUNDS = 30  # of pictures up to a megapixel, whose requests are short and noisy
TURNS, QUICK_TURNS = 3, 1
WALL_S, QUICK_WALL_S = 6.0, 2.0


def say(text: str) -> None:
    """One line, at once, also into a pipe."""
    print(text, flush=True)


class Bench:
    """One run: what was asked for, what came out, and what went wrong.

    Attributes:
        results: The rows measured so far, by name.
        errors: Sentences about failures; slowness is not one.
    """

    def __init__(self, names: Iterable[str], quick: bool, noise: float, out: Path, keep: bool) -> None:
        self.names = set(names)
        self.quick = quick
        self.noise = noise
        self.turns = QUICK_TURNS if quick else TURNS
        self.wall_s = QUICK_WALL_S if quick else WALL_S
        self.results: dict[str, Result] = {}
        self.errors: list[str] = []
        self._began = time.monotonic()
        self._out = out
        self._earlier = _earlier(out) if keep else []

    def rounds(self, request: Request) -> int:
        """How often a request is sent to each server."""
        if self.quick:
            return QUICK_ROUNDS
        return SMALL_ROUNDS if request.width * request.height <= 1_000_000 else ROUNDS

    def tell(self, name: str, text: str) -> None:
        """Say how it goes with a row."""
        say(f"[{time.monotonic() - self._began:5.0f} s] {name}: {text}")

    def record(self, result: Result) -> None:
        """Take a result, and write all there are: a run that is cut off leaves what it had."""
        self.results[result.row.name] = result
        items = {str(item["name"]): item for item in self._earlier}
        items |= {name: each.item() for name, each in self.results.items()}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(
            json.dumps([items[name] for name in NAMES if name in items], indent=1) + "\n", "utf-8"
        )

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Do a row's work; what goes wrong in it ends that row alone."""
        try:
            work()
        except (RequestError, ValueError) as error:
            self.errors.append(f"{name}: {error}")
            self.tell(name, f"FAILED: {error}")

    # One network that does next to nothing, one node: what lies outside the model.

    def small_network(self, folder: Path) -> None:
        """The rows of one request at a time, but for the real-size network."""
        wanted = [name for name in OUTSIDE if name in self.names]
        if WEB_CPU.name in self.names and WEB_CPU_REQUEST not in wanted:
            wanted.append(WEB_CPU_REQUEST)
        if not wanted and PNG_SIZE.name not in self.names:
            return
        self.tell("servers", "starting stock and the grid")
        network = write_inverse(folder)
        with pair(network) as servers:
            for name in wanted:
                self.attempt(name, functools.partial(self._outside, name, servers, network))
            if PNG_SIZE.name in self.names:
                self.attempt(PNG_SIZE.name, functools.partial(self._png_size, servers))

    def _outside(self, name: str, servers: Pair, network: Path) -> None:
        row, request = OUTSIDE[name]
        image, mask, body = self._made(request)
        forward = Forward(network, image, mask, request.strategy)
        rounds = self.rounds(request)
        self.tell(name, f"{rounds} rounds; the network gets {forward.shapes}")
        series = alternate(servers, body, forward, rounds, functools.partial(self.tell, name))
        inside = Spread.of([1e3 * each for each in series.network])
        if name in self.names:
            stock, grid = series.whole()
            self._finish(Result(row, *series.outside()), series)
            self.tell(
                name, f"whole requests: stock {stock} ms, grid {grid} ms; the network alone {inside} ms"
            )
        if name == WEB_CPU_REQUEST and WEB_CPU.name in self.names:
            self._finish(Result(WEB_CPU, *series.cpu()), None)

    def _png_size(self, servers: Pair) -> None:
        stock_bytes = grid_bytes = 0
        for name, picture in photos_at_hand().items():
            body = upload(encoded(picture, "PNG"), brush_stroke(*picture.size))
            stock, grid = (send(server.port, body).data for server in (servers.stock, servers.grid))
            compare(stock, grid)
            stock_bytes += len(stock)
            grid_bytes += len(grid)
            size = f"{picture.width}x{picture.height}"
            self.tell(PNG_SIZE.name, f"{name} ({size}): {len(grid) / len(stock):.3f} of {len(stock)} bytes")
        kib = (Spread.of([each / 1024]) for each in (stock_bytes, grid_bytes))
        self._finish(Result(PNG_SIZE, *kib), None)

    # A network of lama's real size, one node: what a user waits for.

    def full_network(self, folder: Path) -> None:
        """The row of the real-size network."""
        if FULL_SIZE.name not in self.names:
            return
        self.tell(FULL_SIZE.name, "making the network, starting stock and the grid")
        network = folder / "lama.pt"
        parameters = write_lama(network)
        with pair(network) as servers:
            rounds = QUICK_ROUNDS if self.quick else ROUNDS
            self.tell(FULL_SIZE.name, f"{rounds} rounds; {parameters:.1f} M parameters, random")

            self.attempt(FULL_SIZE.name, functools.partial(self._full_size, servers, rounds))

    def _full_size(self, servers: Pair, rounds: int) -> None:
        _, _, body = self._made(FULL_SIZE_REQUEST)
        series = alternate(servers, body, None, rounds, functools.partial(self.tell, FULL_SIZE.name))
        self._finish(Result(FULL_SIZE, *series.whole()), series)

    # Two nodes, and the small network again: many clients.

    def clients(self, folder: Path) -> None:
        """The rows of each number of clients."""
        counts = sorted({CONCURRENCY[name] for name in self.names if name in CONCURRENCY})
        if not counts:
            return
        self.tell("servers", "starting stock and a grid of two nodes")
        requests = [self._made(Request(512, 512, form))[2] for form in ("PNG", "JPEG")]
        with pair(write_inverse(folder), nodes=2) as servers:
            both = (servers.stock, servers.grid)
            for server in both:  # each node compiles the network for this size
                load(server.port, requests, 4, 1.0)
            for count in counts:
                name = f"concurrency_{count}"
                results, errors = concurrency.measure(
                    both, requests, count, self.wall_s, self.turns, functools.partial(self.tell, name)
                )
                for result in results:
                    if result.row.name in self.names:
                        self.record(result)
                for server_name, texts in errors.items():
                    for text, times in texts.items():
                        told = f"{name}: {server_name} answered {times} requests with an error: {text}"
                        say(f"  {told}")
                        if server_name == "grid":
                            self.errors.append(told)

    def _made(self, request: Request) -> tuple[bytes, bytes, Upload]:
        """The picture, the mask and the whole body of a request."""
        image = encoded(photo(request.width, request.height, self.noise), request.form)
        mask = (full_mask if request.full else brush_stroke)(request.width, request.height)
        return image, mask, upload(image, mask, hdStrategy=request.strategy)

    def _finish(self, result: Result, series: Series | None) -> None:
        self.record(result)
        name, unit = result.row.name, result.row.unit
        self.tell(name, f"stock {result.stock} {unit}, grid {result.grid} {unit}, ratio {result.ratio:.3f}")
        if series is not None:
            self.tell(name, f"the grid's task, ms: {series.stages_line()}")
            stock, grid = series.sizes
            self.tell(name, f"answers: stock {stock} bytes, grid {grid} bytes, the same picture")

    def table(self) -> None:
        """All rows of this run, and how many are within their bound."""
        lines = [("row", "unit", "stock", "grid", "ratio", "bound", "")]
        for name in NAMES:
            result = self.results.get(name)
            if result is not None:
                row: Row = result.row
                bound = "-" if row.bound is None else f"<= {row.bound:g}"
                ratio = f"{result.ratio:.3f}"
                verdict = "" if row.bound is None else result.verdict
                lines.append((name, row.unit, str(result.stock), str(result.grid), ratio, bound, verdict))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        say("")
        for line in lines:
            say("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        say("values: median (p10..p90)")
        for error in self.errors:
            say(f"error: {error}")
        bounded = [result for result in self.results.values() if result.row.bound is not None]
        within = sum(result.verdict == "ok" for result in bounded)
        say(f"{within} of {len(bounded)} rows within their bound")


def _earlier(out: Path) -> list[dict[str, object]]:
    """The rows of an earlier run's file; none if there is no such file."""
    try:
        items: list[dict[str, object]] = json.loads(out.read_text("utf-8"))
        return [item for item in items if item["name"] in NAMES]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def main() -> int:
    """Parse, measure, show. Returns 1 if something went wrong, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Stock Lama Cleaner against the grid, in one run."
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help="only rows that are called so or begin so, such as inpaint_12mp; the file keeps the others",
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it work at all")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="LEVELS",
        help="noise of the photo, standard deviation in levels of 255; 2 is like a camera's (default: none)",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows and end")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (default: target/bench.json)")
    options = parser.parse_args()
    if options.list:
        say("\n".join(NAMES))
        return 0
    try:
        names = chosen(options.rows)
    except ValueError as error:
        parser.error(str(error))
    say("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items()))
    say("versions: " + ", ".join(f"{name} {value}" for name, value in versions(*PACKAGES).items()))
    noise = disturbance()
    if noise:
        say(f"warning: {noise}")
    bench = Bench(names, options.quick, options.noise, options.out, keep=bool(options.rows))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # not without ending the servers
    logger.disable("lama_cleaner")  # in this process; the servers log as they always do
    try:
        with tempfile.TemporaryDirectory(prefix="lamagrid-bench-") as scratch:
            for part in (bench.small_network, bench.full_network, bench.clients):
                part(Path(scratch))
    except AssertionError as error:  # a server did not start
        bench.errors.append(str(error))
    except KeyboardInterrupt:
        bench.errors.append("stopped; the rows so far are written")
    bench.table()
    say(f"written: {options.out}")
    return 1 if bench.errors else 0


if __name__ == "__main__":
    sys.exit(main())
