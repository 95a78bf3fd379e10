"""The shape of the code base: which crate may name what, and which words are not used (P1)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
CRATES = ROOT / "src"

DOORS = {
    "zeromq": ["src/transport/src/"],
    "rustls": ["src/gate/"],
    "tokio_rustls": ["src/gate/src/"],
    "webpki": ["src/gate/src/"],
    "x509_parser": ["src/gate/src/validity.rs"],
    "rusqlite": ["src/scheduler/src/store", "src/api/src/keys/store.rs", "src/api/src/idempotency.rs"],
    "utoipa": ["src/api/src/"],
    "subtle": ["src/api/src/keys/token.rs"],
    "tch": ["src/node/src/backend/torch/"],
    "pyo3": ["src/bridge/src/"],
    "pythonize": ["src/bridge/src/"],
    "clap": [
        "src/cli/src/",
        "src/node/src/flags.rs",
        "src/node/src/settings.rs",
        "src/node/src/main.rs",
        "src/node/src/backend/torch/main.rs",
    ],
    "axum": ["src/api/src/"],
    "hyper": ["src/api/src/"],
    "prometheus_client": ["src/scheduler/src/metrics.rs"],
    "toml": [
        "src/config/src/",
        "src/hardware/src/capability_file.rs",
        "src/hardware/src/file_content.rs",
    ],
    "nvml_wrapper": ["src/hardware/src/nvidia.rs"],
    "strsim": ["src/config/src/"],
    "tracing_subscriber": ["src/logs/src/"],
    "tracing_appender": ["src/logs/src/"],
    "turbojpeg_sys": ["src/imaging/src/codec/jpeg/libjpeg.rs"],
    "libwebp_sys": ["src/imaging/src/codec/webp/libwebp.rs"],
    "reqwest": ["src/weights/src/"],
    "comfy_table": ["src/cli/src/"],
    "rcgen": ["src/gate/"],
    "crossbeam_channel": ["src/session/src/pipeline/"],
}
"""Foreign crate, and the only places that may name it."""

ARROWS = {
    "domain": set(),
    "imaging": {"domain"},
    "config": {"domain"},
    "logs": {"config"},
    "process": {"domain"},
    "hardware": {"domain"},
    "protocol": {"domain"},
    "transport": {"domain", "process", "protocol"},
    "blobs": {"domain", "process", "protocol"},
    "gate": {"domain", "process", "protocol", "transport", "blobs"},
    "session": {
        "domain",
        "imaging",
        "config",
        "process",
        "hardware",
        "protocol",
        "transport",
        "blobs",
        "gate",
    },
    "weights": set(),
    "client": {"domain", "config", "process", "protocol", "transport", "blobs", "gate"},
    "scheduler": {"domain", "config", "process", "protocol", "transport", "blobs", "gate"},
    "api": {"domain", "imaging", "config", "process", "protocol", "gate", "client"},
    "node": {
        "domain",
        "imaging",
        "config",
        "logs",
        "process",
        "hardware",
        "transport",
        "gate",
        "session",
        "weights",
    },
    "cli": {
        "domain",
        "config",
        "logs",
        "process",
        "protocol",
        "transport",
        "gate",
        "client",
        "scheduler",
        "api",
    },
    "bridge": {
        "domain",
        "imaging",
        "config",
        "logs",
        "process",
        "hardware",
        "client",
        "session",
        "weights",
        "cli",
    },
}
"""The crates that each crate may depend on: down only, siblings never."""


def rust_files() -> list[Path]:
    """Every Rust source of the workspace."""
    return sorted(path for path in CRATES.rglob("*.rs") if "tests" not in path.relative_to(ROOT).parts)


@pytest.mark.parametrize("crate", sorted(DOORS))
def test_one_door_per_foreign_crate(crate: str) -> None:
    uses = re.compile(rf"(?<![\w:.]){crate}::|\buse {crate}\b")
    named_in = [path.relative_to(ROOT).as_posix() for path in rust_files() if uses.search(path.read_text())]
    outside = [path for path in named_in if not any(path.startswith(door) for door in DOORS[crate])]
    assert outside == []


def test_dependencies_point_down() -> None:
    found = {}
    for manifest in sorted(CRATES.glob("*/Cargo.toml")):
        dependencies = tomllib.loads(manifest.read_text()).get("dependencies", {})
        ours = {name.removeprefix("lamagrid-") for name in dependencies if name.startswith("lamagrid-")}
        found[manifest.parent.name] = ours
    assert set(found) == set(ARROWS)
    assert {crate: ours - ARROWS[crate] for crate, ours in found.items() if ours - ARROWS[crate]} == {}


def test_no_module_is_a_drawer() -> None:
    drawers = {"common", "utils", "util", "helpers", "helper", "misc"}
    places = [
        *CRATES.rglob("*.rs"),
        *(ROOT / "python").rglob("*.py"),
        *(ROOT / "lama_cleaner_patch").rglob("*.py"),
    ]
    assert [str(p) for p in places if p.stem in drawers or drawers & set(p.relative_to(ROOT).parts)] == []


def test_the_patch_has_no_logic_of_its_own() -> None:
    source = (ROOT / "lama_cleaner_patch" / "__init__.py").read_text()
    assert not re.search(r"^\s*(def|class|if|for|while) ", source, re.MULTILINE)


def test_unwrap_and_todo_stay_out_of_the_product() -> None:
    """Clippy says the same where it looks; this holds for every file, whatever its lints."""
    wrong = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in rust_files()
        if not path.stem.endswith("tests") and "simulation" not in path.as_posix()
        for word in ("todo!(", "unimplemented!(", "#[allow(")
        if word in path.read_text()
    ]
    assert wrong == []


def test_durations_are_measured_by_a_monotonic_clock() -> None:
    """A wall clock may be set at any time: these files read it, for people, ids and certificates."""
    readers = {
        "src/api/src/idempotency.rs",
        "src/api/src/keys/live.rs",
        "src/api/src/keys/store.rs",
        "src/api/src/routes/submit.rs",
        "src/blobs/src/serve.rs",
        "src/bridge/src/arguments.rs",
        "src/cli/src/admin.rs",
        "src/cli/src/certs.rs",
        "src/cli/src/doctor.rs",
        "src/cli/src/keys.rs",
        "src/cli/src/node_admin.rs",
        "src/gate/src/accept.rs",
        "src/gate/src/authority.rs",
        "src/gate/src/dial_error.rs",
        "src/gate/src/preamble.rs",
        "src/gate/src/probe.rs",
        "src/gate/src/validity.rs",
        "src/logs/src/rotate.rs",
        "src/process/src/random.rs",
        "src/process/src/wall_clock.rs",
        "src/scheduler/src/runtime/clock.rs",
        "src/scheduler/src/runtime/gatekeeper.rs",
        "src/scheduler/src/store.rs",
        "src/scheduler/src/store/rows.rs",
    }
    reads = re.compile(r"SystemTime::now|\b(?:lamagrid_process|crate)::wall_clock::")
    in_rust = {path.relative_to(ROOT).as_posix() for path in rust_files() if reads.search(path.read_text())}
    assert in_rust <= readers
    in_python = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "python").rglob("*.py")
        if re.search(r"\btime\.time\(|datetime\.(now|utcnow|today)\(", path.read_text())
    }
    assert in_python <= {"python/lamagrid/web/task_ledger.py"}


def test_the_environment_is_read_where_a_call_begins() -> None:
    """These files read it once, on the thread of their caller.

    A Python program may change its environment at any time, and the C library moves it then: a read on
    another thread at that moment crashes the program.
    """
    readers = {
        "src/config/src/dirs.rs",
        "src/config/src/load.rs",
        "src/config/src/socket_dir.rs",
        "src/logs/src/lib.rs",
        "src/weights/src/lib.rs",
    }
    programs = ("src/cli/", "src/node/", "src/scheduler/", "src/imaging/build.rs")
    reads = re.compile(r"\benv::(?:var|vars|temp_dir|home_dir)")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in rust_files()
        if reads.search(path.read_text()) and not path.stem.endswith("tests")
    }
    assert {path for path in found if not path.startswith(programs)} <= readers
    # Connecting again asks for the directory of sockets on a thread of the client.
    finder = (ROOT / "src/config/src/socket_dir.rs").read_text().partition("pub fn socket_finder")[2]
    assert "find_sockets_in(&data_dir, &around)" in finder.partition("Ok(move ||")[2].partition("\n")[0]
