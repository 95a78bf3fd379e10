"""The native module: private, see ``lamagrid.client`` for the public API."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, final

from lamagrid.types import GridStatus, TaskInfo

__all__ = [
    "Client",
    "Follow",
    "Job",
    "NodeSession",
    "__version__",
    "build_info",
    "bundle_name",
    "capability_offer",
    "config",
    "cuda_gpus",
    "failure_kinds",
    "fetch_weights",
    "log_error",
    "main",
    "probe",
    "protocol_version",
    "raise_failure",
    "running_scheduler",
    "start_logs",
]

__version__: str

_Dims = tuple[int, int, int]
_Blob = tuple[str, bytes, _Dims | None]

class _Outcome(TypedDict):
    task: TaskInfo
    dims: _Dims | None
    data: bytes | bytearray

class _Event(TypedDict):
    status: str
    activity: str
    step: int
    of: int

class _Config(TypedDict):
    data_dir: str
    runtime_dir: str
    log_dir: str
    join: str | None
    max_pixels: int
    timeout_s: float
    models: list[str]
    allowed_hosts: list[str]
    allowed_origins: list[str]
    trusted_proxies: list[str]
    queues: list[str]
    rows: list[dict[str, str]]

class _Header(TypedDict):
    format: str
    mode: str
    width: int
    height: int
    decodes: bool
    encodes: bool

def probe(data: bytes) -> _Header | None: ...
def start_logs(process: str, data_dir: str | os.PathLike[str] | None) -> None: ...
def log_error(message: str, error: str, stack: str) -> None: ...
def protocol_version() -> tuple[int, int]: ...
def build_info() -> dict[str, str]: ...
def config(
    file: str | os.PathLike[str] | None = None, flags: Sequence[tuple[str, str]] | None = None
) -> _Config: ...
def main(argv: Sequence[str]) -> int: ...
def running_scheduler(data_dir: str | os.PathLike[str]) -> str | None: ...
def bundle_name(path: str | os.PathLike[str]) -> str: ...
def failure_kinds() -> list[tuple[str, str]]: ...

class _WeightsFile(TypedDict):
    url: str
    md5: str | None
    checkpoints: str | os.PathLike[str]
    path: str | os.PathLike[str] | None
    sha256: str | None
    variables: tuple[str, str] | None

class _NodeOptions(TypedDict):
    data_dir: str | os.PathLike[str] | None
    name: str
    kind: str
    device: str
    models: Sequence[str]
    slots: int
    missing: Sequence[str]
    join: str | os.PathLike[str] | None
    capabilities: str | os.PathLike[str] | None
    cuda_visible_devices: str | None
    cuda_device_order: str | None

class _CapabilityOffer(TypedDict):
    gpus: list[str]
    leave_out: list[str]

def capability_offer(
    path: str | os.PathLike[str], visible_devices: str | None = None, device_order: str | None = None
) -> _CapabilityOffer: ...
def cuda_gpus(visible_devices: str | None = None, device_order: str | None = None) -> list[str]: ...
def fetch_weights(
    file: _WeightsFile,
    on_progress: Callable[[int, int | None], None],
    *,
    replace: bool = False,
) -> str: ...
def raise_failure(kind: str, message: str) -> None: ...

@final
class Client:
    def __new__(
        cls,
        data_dir: str | os.PathLike[str] | None = None,
        owner: str | None = None,
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
        join: str | os.PathLike[str] | None = None,
    ) -> Client: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def address(self) -> str: ...
    @property
    def owner(self) -> str: ...
    def submit(self, spec: dict[str, Any], blobs: Sequence[_Blob], timeout: float | None = None) -> str: ...
    def wait(self, id: str, timeout: float | None = None) -> _Outcome | None: ...
    def cancel(self, id: str, timeout: float | None = None) -> TaskInfo: ...
    def status(self, id: str, timeout: float | None = None) -> TaskInfo: ...
    def statuses(self, ids: list[str], timeout: float | None = None) -> list[TaskInfo | None]: ...
    def follow(self, id: str) -> Follow: ...
    def survey(self, timeout: float | None = None) -> GridStatus: ...
    def release(self, id: str, timeout: float | None = None) -> None: ...

@final
class Follow:
    def next_event(self, timeout: float | None = None) -> _Event | None: ...

@final
class NodeSession:
    def __new__(cls, options: _NodeOptions) -> NodeSession: ...
    def next_job(self, wait: float) -> Job | None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def lost(self) -> str | None: ...
    def set_loaded(self, models: Sequence[str]) -> None: ...
    def take_threads(self) -> int | None: ...
    def drain(self) -> None: ...
    def close(self) -> None: ...

@final
class Job:
    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def attempt(self) -> int: ...
    @property
    def cancelled(self) -> bool: ...
    def take(self, role: str) -> tuple[bytearray, _Dims] | None: ...
    def take_file(self, role: str) -> bytes | None: ...
    def loading(self, step: int = 0, of: int = 0) -> bool: ...
    def step(self, step: int, of: int) -> bool: ...
    def finish(
        self, data: bytes, shape: tuple[int, int], load_ms: float = 0.0, infer_ms: float = 0.0
    ) -> None: ...
    def finish_file(self, data: bytes, load_ms: float = 0.0, infer_ms: float = 0.0) -> None: ...
    def fail(self, kind: str, message: str) -> None: ...
