"""Requests to a running server as a browser sends them: one timed, or many clients at once."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lamagrid.demo.__main__ import multipart
from stock.forms import stock_form

TASK_HEADER = "X-Lamagrid-Task"
ANSWER_LIMIT_S = 120.0
TOLD_CHARS = 120  # of an error's text


class RequestError(Exception):
    """A server did not answer a request as it should; the text says how."""


@dataclass(frozen=True)
class Upload:
    """The body of one ``POST /inpaint``, made before any clock runs."""

    body: bytes
    content_type: str


@dataclass(frozen=True)
class Answer:
    """A picture that came back.

    Attributes:
        seconds: From the connection's begin to the last byte.
        task: The grid's task, None from stock.
        data: The encoded picture.
    """

    seconds: float
    task: str | None
    data: bytes


def upload(image: bytes, mask: bytes, **overrides: object) -> Upload:
    """The page's request for lama; ``overrides`` replace fields of its form."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    files = {
        "image": (f"photo.{kind}", f"image/{kind}", image),
        "mask": ("mask.png", "image/png", mask),
    }
    return Upload(*multipart(stock_form("lama", **overrides), files))


def send(port: int, request: Upload) -> Answer:
    """Send one, over a connection of its own as upstream's server wants it.

    Raises:
        RequestError: Any status but 200, or no answer.
    """
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("POST", "/inpaint", request.body, {"Content-Type": request.content_type})
        reply = connection.getresponse()
        data = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise RequestError(f"{type(error).__name__}: {error}"[:TOLD_CHARS]) from error
    finally:
        connection.close()
    took = time.perf_counter() - began
    if reply.status != 200:
        text = " ".join(data[:TOLD_CHARS].decode(errors="replace").split())
        raise RequestError(f"status {reply.status}: {text}")
    return Answer(took, reply.headers.get(TASK_HEADER), data)


@dataclass
class Load:
    """The answers to clients that sent one request after the other for a while.

    Attributes:
        wall_s: How long they began new requests.
        in_time: Requests that were answered within that time.
        seconds: The time of each answered request, those that were under way at the end included.
        errors: The other answers.
    """

    wall_s: float
    in_time: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def load(port: int, requests: Sequence[Upload], clients: int, wall_s: float) -> Load:
    """Let ``clients`` send requests for ``wall_s`` seconds; each takes the kinds of request in turn."""
    seen = Load(wall_s)
    guard = threading.Lock()  # of `seen`
    ends = 0.0

    def begin() -> None:
        nonlocal ends
        ends = time.perf_counter() + wall_s

    start = threading.Barrier(clients, action=begin)

    def client(number: int) -> None:
        start.wait()
        turn = number
        while time.perf_counter() < ends:
            try:
                answer = send(port, requests[turn % len(requests)])
            except RequestError as error:
                with guard:
                    seen.errors.append(str(error))
                time.sleep(0.05)  # a server that refuses at once shall not be flooded
            else:
                with guard:
                    seen.seconds.append(answer.seconds)
                    seen.in_time += time.perf_counter() <= ends
            turn += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen
