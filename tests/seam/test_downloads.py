"""How files come from the web: ended downloads go on, proxies and authorities are those of the environment.

R8.4, X11.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import select
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CONTENT = os.urandom(3 << 20)
MD5 = hashlib.md5(CONTENT).hexdigest()
AUTHORITY = Path(__file__).parent / "authority"
WAIT_S = 60.0
VARIABLES = re.compile(r"(?i)(http|https|all|no)_proxy|request_method|ssl_cert_(file|dir)")


class Files(http.server.BaseHTTPRequestHandler):
    """Serves one content with ranges; holds back what is beyond the server's limit."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        wanted = self.headers.get("Range", "")
        server.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        if wanted and self.headers.get("If-Range") == server.etag:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            start = 0
            self.send_response(200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        limit = max(server.limit, start)
        self.wfile.write(CONTENT[start:limit])
        self.wfile.flush()
        if limit < len(CONTENT):
            server.release.wait(WAIT_S)
            self.wfile.write(CONTENT[limit:])

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Origin(http.server.ThreadingHTTPServer):
    """Where files are.

    Attributes:
        asked: The path and range of each request.
        limit: Bytes of the file that are sent; the rest waits.
        release: Lets the rest go.
    """

    daemon_threads = True

    def __init__(self, secure: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Files)
        self.asked: list[tuple[str, str]] = []
        self.etag = '"one"'
        self.limit = len(CONTENT)
        self.release = threading.Event()
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(AUTHORITY / "server.pem")
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if secure else ''}://127.0.0.1:{self.server_port}/m.pt"

    def handle_error(self, *_: Any) -> None:
        """A client that does not trust us, or was killed."""


class ProxyHandler(socketserver.StreamRequestHandler):
    """One connection to a proxy that passes on whatever it is asked for."""

    def handle(self) -> None:
        server: Any = self.server
        first = self.rfile.peek(1)[:1]
        host, port = self._socks() if first == b"\x05" else self._http()
        with socket.create_connection((host, port), WAIT_S) as other:
            other.sendall(self._head)
            self._pass(other)
        server.done.set()

    def _http(self) -> tuple[str, int]:
        lines = [self.rfile.readline().decode("latin-1").strip()]
        while lines[-1]:
            lines.append(self.rfile.readline().decode("latin-1").strip())
        method, target, _ = lines[0].split(" ")
        self.server.asked.append(f"{method} {target}")  # type: ignore[attr-defined]
        self.server.heads.append("\n".join(lines))  # type: ignore[attr-defined]
        if method == "CONNECT":
            self._head = b""
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            host, port = target.split(":")
            return host, int(port)
        found = re.fullmatch(r"http://([^:/]+):(\d+)(/.*)", target)
        assert found is not None, target
        head = [f"{method} {found[3]} HTTP/1.1", *lines[1:-1], "Connection: close", "", ""]
        self._head = "\r\n".join(head).encode("latin-1")
        return found[1], int(found[2])

    def _socks(self) -> tuple[str, int]:
        """SOCKS 5 without a password, to an address or a name."""
        count = self.rfile.read(2)[1]
        self.rfile.read(count)
        self.wfile.write(b"\x05\x00")
        _, _, _, kind = self.rfile.read(4)
        host = (
            socket.inet_ntoa(self.rfile.read(4))
            if kind == 1
            else self.rfile.read(self.rfile.read(1)[0]).decode()
        )
        port = int.from_bytes(self.rfile.read(2), "big")
        self.server.asked.append(f"SOCKS {host}:{port}")  # type: ignore[attr-defined]
        self.wfile.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        self._head = b""
        return host, port

    def _pass(self, other: socket.socket) -> None:
        ends = [self.connection, other]
        buffered = self.rfile.peek(1) if select.select([self.connection], [], [], 0)[0] else b""
        if buffered:
            other.sendall(self.rfile.read1())
        while True:
            readable, _, _ = select.select(ends, [], [], WAIT_S)
            for end in readable:
                data = end.recv(65536)
                if not data:
                    return
                ends[end is self.connection].sendall(data)
            if not readable:
                return


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy for HTTP, with CONNECT, and for SOCKS 5.

    Attributes:
        asked: The requests that it got.
        heads: The heads of the HTTP requests among that.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.done = threading.Event()
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """An end that has gone."""


def running(server: Any) -> Iterator[Any]:
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    yield from running(Origin())


@pytest.fixture
def secure() -> Iterator[Origin]:
    """As :func:`origin`, over TLS, with a certificate of an unknown authority."""
    yield from running(Origin(secure=True))


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    yield from running(Proxy())


Pull = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``lamagrid model`` for the one file of lama at a URL."""
    children: list[subprocess.Popen[str]] = []

    def begin(url: str, *words: str, md5: str | None = MD5, **env: str) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not VARIABLES.fullmatch(name)}
        clean |= {"TORCH_HOME": str(tmp_path), "LAMA_MODEL_URL": url, **env}
        if md5 is not None:
            clean["LAMA_MODEL_MD5"] = md5
        command = [sys.executable, "-m", "lamagrid", "model", *(words or ("pull", "lama"))]
        child = subprocess.Popen(
            command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def pull(start: Callable[..., subprocess.Popen[str]]) -> Pull:
    """As :func:`start`, to its end."""

    def run(url: str, *words: str, **named: Any) -> subprocess.CompletedProcess[str]:
        child = start(url, *words, **named)
        out, err = child.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)

    return run


def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "checkpoints"


def wait_for_bytes(part: Path, count: int) -> None:
    """Wait until the part has this number of bytes."""
    end = time.monotonic() + WAIT_S
    while not (part.exists() and part.stat().st_size >= count):
        assert time.monotonic() < end
        time.sleep(0.02)


# Downloads that were ended.


def test_interrupted_downloads_are_resumed(
    tmp_path: Path, origin: Origin, start: Callable[..., subprocess.Popen[str]], pull: Pull
) -> None:
    part = checkpoints(tmp_path) / "m.pt.part"
    for number, how in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL), 1):
        origin.limit = number * 400_000
        child = start(origin.url)
        wait_for_bytes(part, origin.limit)
        child.send_signal(how)
        out, err = child.communicate(timeout=WAIT_S)
        assert out == ""
        assert [path.name for path in checkpoints(tmp_path).iterdir()] == ["m.pt.part"]
        if how == signal.SIGINT:
            assert child.returncode == 130, err
            assert "lamagrid model: lama: ended; `lamagrid model pull lama` resumes the download" in err
            assert "Traceback" not in err
    origin.limit = len(CONTENT)
    done = pull(origin.url)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in checkpoints(tmp_path).iterdir()] == ["m.pt"]
    assert (checkpoints(tmp_path) / "m.pt").read_bytes() == CONTENT
    assert [wanted for _, wanted in origin.asked] == [
        "",
        *(f"bytes={number * 400_000}-" for number in range(1, 5)),
    ]
    origin.release.set()


def test_two_pulls_at_the_same_time_fetch_a_file_once(
    tmp_path: Path, origin: Origin, start: Callable[..., subprocess.Popen[str]]
) -> None:
    origin.limit = 100_000
    first = start(origin.url)
    wait_for_bytes(checkpoints(tmp_path) / "m.pt.part", origin.limit)
    second = start(origin.url)
    assert second.stderr is not None
    line = second.stderr.readline()  # how far the other one is
    assert line.startswith("m.pt: "), line
    origin.release.set()
    for child in (first, second):
        child.communicate(timeout=WAIT_S)
        assert child.returncode == 0
    assert len(origin.asked) == 1
    assert [path.name for path in checkpoints(tmp_path).iterdir()] == ["m.pt"]


# Damage.


def test_a_damaged_file_is_reported_and_fetched_again(tmp_path: Path, origin: Origin, pull: Pull) -> None:
    path = checkpoints(tmp_path) / "m.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:1000])
    verified = pull(origin.url, "verify", "lama")
    assert verified.returncode == 1
    assert "lamagrid model pull lama fetches it anew" in verified.stdout
    done = pull(origin.url)
    assert done.returncode == 0, done.stderr
    assert f"{path} has MD5 " in done.stderr
    assert done.stdout == f"lama: {path} is here now, in place of a wrong one, 3.0 MiB\n"
    assert path.read_bytes() == CONTENT
    assert pull(origin.url).stdout == f"lama: {path} is right\n"
    assert len(origin.asked) == 1


def test_a_model_of_the_configuration_is_pulled_checked_and_replaced(
    tmp_path: Path, origin: Origin, pull: Pull
) -> None:
    file, sum_ = tmp_path / "models" / "mine.pt", hashlib.sha256(CONTENT).hexdigest()
    config = tmp_path / "lamagrid.toml"
    section = f'[models.mine]\nurl = "{origin.url}"\npath = "{file}"\n'
    config.write_text(f'{section}sha256 = "{sum_}"\n')
    env = {"LAMAGRID_CONFIG": str(config)}
    pulled = pull("", "pull", "mine", **env)
    assert pulled.returncode == 0, pulled.stderr
    assert file.read_bytes() == CONTENT
    assert f"{file} is here now" in pulled.stdout
    assert "is right" in pull("", "pull", "mine", **env).stdout
    file.write_bytes(b"other")
    replaced = pull("", "pull", "mine", **env)
    assert replaced.returncode == 0
    assert "fetching it anew" in replaced.stderr
    assert file.read_bytes() == CONTENT
    file.unlink()
    config.write_text(f'{section}sha256 = "{"0" * 64}"\n')
    wrong = pull("", "pull", "mine", **env)
    assert wrong.returncode == 1
    assert sum_ in wrong.stderr
    assert not file.exists()


def test_an_archive_without_a_known_sum_is_checked_by_its_own_sums(
    tmp_path: Path, origin: Origin, pull: Pull
) -> None:
    """As torch's files are: one that was cut off has no end of its directory."""
    path = checkpoints(tmp_path) / "m.pt"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", os.urandom(5_000))
    whole = path.read_bytes()
    assert "is whole; upstream names no sum" in pull(origin.url, "verify", "lama", md5=None).stdout
    changed = bytearray(whole)
    changed[2_000] ^= 1
    for damaged in (whole[:-30], whole[:2_000], bytes(changed), b""):
        path.write_bytes(damaged)
        assert pull(origin.url, "verify", "lama", md5=None).returncode == 1
        assert pull(origin.url, md5=None).returncode == 0
        assert path.read_bytes() == CONTENT
    assert pull(origin.url, md5=None).stdout == f"lama: {path} is here; upstream names no sum of it\n"


def test_a_damaged_file_that_its_variable_names_cannot_be_fetched(tmp_path: Path, pull: Pull) -> None:
    mine = tmp_path / "mine.pt"
    mine.write_bytes(b"wrong")
    done = pull(str(mine))
    assert done.returncode == 1
    assert "replace the file, or correct LAMA_MODEL_MD5" in done.stderr
    assert mine.read_bytes() == b"wrong"


# Proxies.


def test_proxy_variables_apply_to_their_scheme(
    tmp_path: Path, origin: Origin, secure: Origin, proxy: Proxy, pull: Pull
) -> None:
    lines = {
        "http_proxy": f"http://{proxy.address}/",
        "https_proxy": f"http://{proxy.address}/",
        "all_proxy": f"socks://{proxy.address}/",
        "no_proxy": "localhost",
        "SSL_CERT_FILE": str(AUTHORITY / "ca.pem"),
    }
    for server in (origin, secure):
        done = pull(server.url, **lines)
        assert done.returncode == 0, done.stderr
        (checkpoints(tmp_path) / "m.pt").unlink()
    assert proxy.asked == [
        f"GET {origin.url}",  # whole, as a proxy wants it
        f"CONNECT 127.0.0.1:{secure.server_port}",
    ]


@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h"])
def test_a_socks_proxy_is_used_without_another_one(
    origin: Origin, proxy: Proxy, pull: Pull, scheme: str
) -> None:
    done = pull(origin.url, ALL_PROXY=f"{scheme}://{proxy.address}")
    assert done.returncode == 0, done.stderr
    assert proxy.asked == [f"SOCKS 127.0.0.1:{origin.server_port}"]


def test_proxy_credentials_are_sent_and_not_printed(origin: Origin, proxy: Proxy, pull: Pull) -> None:
    done = pull(origin.url, http_proxy=f"http://me:s%40cret@{proxy.address}")
    assert done.returncode == 0, done.stderr
    assert "proxy-authorization: basic bwu6c0bjcmv0" in proxy.heads[0].lower()
    gone = pull("http://127.0.0.1:1/other.pt", http_proxy="http://me:s%40cret@127.0.0.1:1")
    assert gone.returncode == 1
    assert "through the proxy http://127.0.0.1:1 of http_proxy" in gone.stderr
    assert "cret" not in gone.stderr


def test_no_proxy_connects_directly(origin: Origin, proxy: Proxy, pull: Pull) -> None:
    for number, direct in enumerate(("*", f"127.0.0.1:{origin.server_port}", "x, .0.0.1"), 1):
        url = f"{origin.url}?{number}"
        done = pull(url, http_proxy=f"http://{proxy.address}", no_proxy=direct)
        assert done.returncode == 0, done.stderr
    assert proxy.asked == []


def test_an_invalid_proxy_is_refused_with_its_variable(origin: Origin, pull: Pull) -> None:
    done = pull(origin.url, HTTP_PROXY="gopher://127.0.0.1:70")
    assert done.returncode == 1
    assert "HTTP_PROXY names no proxy that can be used" in done.stderr


# Authorities.


def test_a_private_authority_is_trusted_by_a_variable(tmp_path: Path, secure: Origin, pull: Pull) -> None:
    unknown = pull(secure.url)
    assert unknown.returncode == 1
    assert "certificate" in unknown.stderr
    assert "let SSL_CERT_FILE name its file" in unknown.stderr
    directory = tmp_path / "authorities"
    directory.mkdir()
    wrong = pull(secure.url, SSL_CERT_DIR=str(directory))
    assert wrong.returncode == 1
    assert f"trusted are the authorities of SSL_CERT_DIR={directory}" in wrong.stderr
    (directory / "0a775a30.0").write_bytes((AUTHORITY / "ca.pem").read_bytes())
    assert pull(secure.url, SSL_CERT_DIR=str(directory)).returncode == 0
    (checkpoints(tmp_path) / "m.pt").unlink()
    assert pull(secure.url, SSL_CERT_FILE=str(AUTHORITY / "ca.pem")).returncode == 0
