"""Runs the whole stack once: starts the server, sends a photo and a mask, shows the time per stage.

usage: python -m lamagrid.demo [--out target/demo.png]
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lamagrid.upstream.forms import page_form

HERE = Path(__file__).resolve().parent
START_LIMIT_S = 180.0
ANSWER_LIMIT_S = 300.0
STOP_LIMIT_S = 20.0


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def say(text: str) -> None:
    """One line, at once, also into a pipe."""
    print(text, flush=True)


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(url: str, timeout: float, body: bytes | None = None, content_type: str = "") -> Answer:
    """One HTTP exchange that ignores proxies; every status is an answer."""
    request = urllib.request.Request(url, data=body)
    if body is not None:
        request.add_header("Content-Type", content_type)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as reply:
            return Answer(reply.status, dict(reply.headers.items()), reply.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return Answer(refused.code, dict(refused.headers.items()), refused.read())


class Upload(NamedTuple):
    """A file of a form."""

    filename: str
    content_type: str
    data: bytes


class Form(NamedTuple):
    """A form as a browser sends it."""

    body: bytes
    content_type: str


def multipart(fields: Mapping[str, str], files: Mapping[str, Upload]) -> Form:
    """Encode a form."""
    boundary = uuid.uuid4().hex
    out = io.BytesIO()
    for name, value in fields.items():
        out.write(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        )
    for name, (filename, kind, data) in files.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {kind}'
        out.write(f"--{boundary}\r\n{head}\r\n\r\n".encode())
        out.write(data + b"\r\n")
    out.write(f"--{boundary}--\r\n".encode())
    return Form(out.getvalue(), f"multipart/form-data; boundary={boundary}")


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log."""
    try:
        return "\n".join("  | " + line for line in path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"  | ({error})"


def program(name: str) -> Path:
    """A console script of this Python's environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise DemoError(f"{path} is missing: install this package into that environment (`make build`)")
    return path


def wait_until_ready(server: subprocess.Popen[bytes], base: str, log: Path) -> float:
    """Wait for GET /model, saying how it goes. Returns the seconds it took."""
    begin = time.monotonic()
    last_report = 0.0
    while True:
        waited = time.monotonic() - begin
        if server.poll() is not None:
            raise DemoError(
                f"the server ended with status {server.returncode} before it answered:\n{tail(log)}"
            )
        try:
            answer = fetch(f"{base}/model", timeout=5)
            if answer.status == 200 and answer.body == b"lama":
                return time.monotonic() - begin
            raise DemoError(
                f"GET /model answered {answer.status} {answer.body[:200]!r}, expected 200 b'lama'"
            )
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        if waited > START_LIMIT_S:
            raise DemoError(f"no answer from {base}/model within {START_LIMIT_S:.0f} s:\n{tail(log)}")
        if waited - last_report >= 2.0:
            last_report = waited
            say(f"   ... {waited:.0f} s")
        time.sleep(0.1)


def stages_of(task: str, data_dir: Path) -> dict[str, float]:
    """The time per stage, as the scheduler remembers it."""
    command = [str(program("lamagrid")), "task", "show", task, "--output", "json"]
    command += ["--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise DemoError(f"`lamagrid task show {task}` ended with {done.returncode}: {done.stderr.strip()}")
    try:
        shown = json.loads(done.stdout)
        state = shown["state"]
        stages = {str(name): float(value) for name, value in shown["stages"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DemoError(f"`lamagrid task show` said something else: {done.stdout[:300]!r}") from error
    if state != "completed":
        raise DemoError(f"task {task} is {state}, not completed")
    return stages


def side_by_side(photo: bytes, mask: bytes, result: bytes, out: Path) -> None:
    """Draw the photo, the painted mask and the result side by side."""
    before = Image.open(io.BytesIO(photo)).convert("RGB")
    hole = Image.open(io.BytesIO(mask)).convert("L")
    after = Image.open(io.BytesIO(result)).convert("RGB")
    if after.size != before.size:
        raise DemoError(
            f"the answer is {after.size[0]}x{after.size[1]}, the photo {before.size[0]}x{before.size[1]}"
        )
    painted = Image.composite(
        Image.blend(before, Image.new("RGB", before.size, (255, 40, 40)), 0.6), before, hole
    )
    gap = 8
    sheet = Image.new("RGB", (before.width * 3 + gap * 2, before.height), "white")
    for column, picture in enumerate((before, painted, after)):
        sheet.paste(picture, (column * (before.width + gap), 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and wait for it."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            say(f"the server did not end within {STOP_LIMIT_S:.0f} s of SIGTERM: killing it")
            server.kill()
            server.wait()


def run(out: Path, log: Path, data_dir: Path) -> None:
    """The demo, on a data directory of its own: another grid of this user may run beside it."""
    photo = (HERE / "photo.jpg").read_bytes()
    mask = (HERE / "mask.png").read_bytes()
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [str(program("lama-cleaner-grid")), "--model", "lama", "--grid-demo-model"]
    command += ["--port", str(port), "--grid-data-dir", str(data_dir)]
    say("1. The demo model, which has no trained weights, replaces lama (--grid-demo-model).")
    say(f"2. Starting the server, scheduler and node on {base} (log: {log})")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
    try:
        ready = wait_until_ready(server, base, log)
        say(f"   ready after {ready:.1f} s")
        files = {
            "image": Upload("photo.jpg", "image/jpeg", photo),
            "mask": Upload("mask.png", "image/png", mask),
        }
        body, content_type = multipart(page_form(), files)
        say(f"3. POST {base}/inpaint: a photo of {len(photo) // 1024} KiB and a mask")
        begin = time.monotonic()
        answer = fetch(f"{base}/inpaint", ANSWER_LIMIT_S, body, content_type)
        took = (time.monotonic() - begin) * 1000
        if answer.status != 200:
            raise DemoError(
                f"/inpaint answered {answer.status}: {answer.body[:500].decode(errors='replace')}"
            )
        side_by_side(photo, mask, answer.body, out)
        task = next(
            (value for name, value in answer.headers.items() if name.lower() == "x-lamagrid-task"), None
        )
        if task is None:
            raise DemoError("the answer carries no X-Lamagrid-Task: it did not come through the grid")
        say(f"4. Answered; task {task}:")
        stages = stages_of(task, data_dir)
        width = max(len(name) for name in [*stages, "request"])
        for name, value in stages.items():
            say(f"   {name.removesuffix('_ms'):<{width}} {value:>9.1f} ms")
        say(f"   {'request':<{width}} {took:>9.1f} ms   (as the browser sees it)")
        say(f"5. Before, mask, after: {out}")
    finally:
        stop(server)


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(
        prog="python -m lamagrid.demo", description="Run the whole stack once on a real photo."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("target/demo.png"), help="picture to write (default: %(default)s)"
    )
    options = parser.parse_args()
    out: Path = options.out
    log = out.with_suffix(".log")
    try:
        with tempfile.TemporaryDirectory(prefix="lamagrid-demo-") as data_dir:
            run(out, log, Path(data_dir))
    except (DemoError, OSError, subprocess.SubprocessError) as error:
        say(f"demo failed: {error}\nlog of the server: {log.resolve()}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
