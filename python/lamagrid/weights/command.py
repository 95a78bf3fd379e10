"""``lamagrid model list|pull|verify|check``: which files are on this host, which nodes serve what, and
whether a model works.

Does not: start or change nodes; a node finds a file that was pulled when it loads the model.
"""

from __future__ import annotations

import argparse
import enum
import hashlib
import importlib
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Union

from lamagrid import global_flags
from lamagrid.client import TaskClient
from lamagrid.errors import LamaGridError, ModelLoadError
from lamagrid.options import nearest
from lamagrid.upstream import catalog
from lamagrid.upstream.catalog import HubFolder, Source
from lamagrid.weights import configured, fetch, trial
from lamagrid.weights.configured import ConfiguredFile
from lamagrid.weights.fetch import Existing

AnySource = Union[Source, ConfiguredFile]

DONE = 0
EXIT_WRONG = 1
EXIT_WRONG_FLAGS = 2
EXIT_INTERRUPTED = 130
SURVEY_S = 2.0
REPORT_EVERY_S = 3.0
"""How often a download reports its progress, if the output is no terminal."""
REDRAW_EVERY_S = 0.2
CHUNK_BYTES = 1 << 20


def main(argv: Sequence[str]) -> int:
    """Run one command, without ``lamagrid model``. Returns the exit status."""
    options = global_flags.parse(_parser(), argv)
    verb: Callable[[argparse.Namespace], int] = options.verb
    return verb(options)


def _parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="lamagrid model",
        description="The files of Lama Cleaner's models and plugins.",
        epilog="Example: lamagrid model pull lama manga. Exit codes: 0 done, and everything is right; 1 a "
        "file cannot be had, is missing or is wrong; 2 the command line is wrong; 130 ended by Ctrl-C.",
    )
    verbs = whole.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = verbs.add_parser(
        "list",
        help="which models and plugins there are, what is on this host, and which nodes serve them",
        description="List models and plugins: their files on this host, and the nodes that serve them.",
        epilog="Example: lamagrid model list --output json",
    )
    listing.set_defaults(verb=_list)
    pull = verbs.add_parser(
        "pull",
        help="fetch the files of models to this host",
        description="Fetch missing or damaged files of models or plugins, and of models with a url in the "
        "configuration, to where the nodes of this host look for them: TORCH_HOME, XDG_CACHE_HOME and "
        "upstream's variables count, as they do for nodes. A download that was ended goes on where it was. "
        "http_proxy, https_proxy, all_proxy and no_proxy name proxies, SSL_CERT_FILE and SSL_CERT_DIR "
        "certificate authorities.",
        epilog="Example: lamagrid model pull lama plugin/RealESRGAN",
    )
    pull.add_argument("names", nargs="+", metavar="NAME", help="as `lamagrid model list` shows it")
    pull.add_argument(
        "--half",
        action="store_true",
        help="of diffusers' models, the half-precision files that a GPU's node loads",
    )
    pull.set_defaults(verb=_pull)
    verify = verbs.add_parser(
        "verify",
        help="check the files of models on this host",
        description="Compare the files on this host with upstream's MD5, or with the sums that the hub gave; "
        "without either, check the archive that a file of torch is. Exit status 1 if one differs, or one of "
        "a model that was named is missing.",
        epilog="Example: lamagrid model verify lama",
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="without one, whatever is on this host")
    verify.add_argument(
        "--run",
        action="store_true",
        help="load each named model, too, and run it once on a small picture, through the node program",
    )
    verify.set_defaults(verb=_verify)
    check = verbs.add_parser(
        "check",
        help="run a model on a picture, and show before, mask and after side by side",
        description="Run lama, manga or a model of the configuration once on a picture, through the node "
        "program, and write one picture: before, mask, after. No scheduler is needed.",
        epilog="Example: lamagrid model check mine --image photo.jpg --mask mask.png --out seen.png",
    )
    check.add_argument("name", metavar="NAME", help="as `lamagrid model list` shows it")
    check.add_argument("--image", type=Path, metavar="FILE", help="a picture (default: a sample)")
    check.add_argument("--mask", type=Path, metavar="FILE", help="its mask, white in the hole")
    check.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: NAME-check.png)")
    check.set_defaults(verb=_check)
    for each in (whole, listing, pull, verify, check):
        global_flags.add_to(each)
    return whole


def _sources() -> dict[str, tuple[AnySource, ...]]:
    """The entries of the catalog, and those of the configuration, which replace them."""
    return {**catalog.sources(), **{name: (file,) for name, file in configured.files().items()}}


def _chosen(names: Sequence[str]) -> dict[str, tuple[AnySource, ...]] | None:
    """The named entries; None, and a line on stderr, for an unknown name."""
    known = _sources()
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            print(f"lamagrid model: there is no {name}{hint}; there are {', '.join(known)}", file=sys.stderr)
            return None
    return {name: known[name] for name in dict.fromkeys(names)}


def _list(options: argparse.Namespace) -> int:
    served = _served(options.data_dir, options.join)
    rows: list[dict[str, Any]] = []
    for name, sources in _sources().items():
        files = [_described(source) for source in sources]
        # Nodes offer a plugin by its name; tasks choose its network.
        offered = None if served is None else served.get(name, [])
        rows.append({"model": name, "files": files, "nodes": offered})
    if options.output == "json":
        print(json.dumps(rows, indent=2))
        return DONE
    lines = [("MODEL", "ON THIS HOST", "NODES")]
    for row in rows:
        names = ", ".join(_of_node(node) for node in row["nodes"] or []) or "-"
        lines.append((row["model"], _of_files(row["files"]), names))
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for line in lines:
        print(f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}  {line[2]}")
    if served is None:
        print("no scheduler answers, so nodes are not shown (--data-dir DIR names another)", file=sys.stderr)
    return DONE


def _served(data_dir: Path | None, join: Path | None) -> dict[str, list[dict[str, Any]]] | None:
    """The nodes that offer each model; None if no scheduler answers."""
    try:
        survey = TaskClient(data_dir, join=join).survey(SURVEY_S)
    except LamaGridError:
        return None
    found: dict[str, list[dict[str, Any]]] = {}
    for node in survey["nodes"]:
        for offer in node["info"]["models"]:
            offered = {"name": node["info"]["name"], "loaded": offer["loaded"], "present": offer["present"]}
            found.setdefault(offer["model"], []).append({**offered, "state": node["state"]})
    return found


def _described(source: AnySource) -> dict[str, Any]:
    path, present = source.path(os.environ), source.is_present(os.environ)
    size = _size(path) if present else None
    if isinstance(source, HubFolder):
        return {"repo": source.repo, "path": str(path), "present": present, "bytes": size}
    if isinstance(source, ConfiguredFile):
        known = {"url": source.url, "sha256": source.sha256}
        return {**known, "path": str(path), "present": present, "bytes": size}
    url, md5 = source.source(os.environ)
    return {"url": url, "md5": md5, "path": str(path), "present": present, "bytes": size}


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    blobs = path / "blobs"  # snapshots only point there
    folder = blobs if blobs.is_dir() else path
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _of_files(files: Sequence[Mapping[str, Any]]) -> str:
    if not files:
        return "needs none"
    here = [file["bytes"] for file in files if file["present"]]
    if not here:
        return "-"
    part = "" if len(here) == len(files) else f"{len(here)} of {len(files)}, "
    return f"{part}{_amount(sum(here))}"


def _of_node(node: Mapping[str, Any]) -> str:
    how = "loaded" if node["loaded"] else "here" if node["present"] else "not fetched yet"
    return f"{node['name']} ({how})"


def _amount(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.1f} KiB"


class Precision(enum.Enum):
    """Which files of a diffusion model are fetched; the values are upstream's revisions."""

    FULL = "main"
    HALF = "fp16"


class _Report:
    """Reports one line per file at once, or JSON at the end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._rows: list[dict[str, Any]] | None = [] if options.output == "json" else None

    def add(self, model: str, text: str, **facts: Any) -> None:
        if self._rows is None:
            print(f"{model}: {text}", flush=True)
        else:
            self._rows.append({"model": model, **facts})

    def close(self, status: int) -> int:
        if self._rows is not None:
            print(json.dumps(self._rows, indent=2))
        return status


def _pull(options: argparse.Namespace) -> int:
    chosen = _chosen(options.names)
    if chosen is None:
        return EXIT_WRONG_FLAGS
    report = _Report(options)
    precision = Precision.HALF if options.half else Precision.FULL
    for name, sources in chosen.items():
        for source in sources:
            try:
                path, state, is_new = _pull_source(name, source, precision)
            except (LamaGridError, ImportError, OSError) as error:
                print(f"lamagrid model: {name}: {error}", file=sys.stderr)
                return report.close(EXIT_WRONG)
            except KeyboardInterrupt:
                print(
                    f"lamagrid model: {name}: ended; `lamagrid model pull {name}` resumes the download",
                    file=sys.stderr,
                )
                return report.close(EXIT_INTERRUPTED)
            size = _size(path)
            text = f"{path} {state}, {_amount(size)}" if is_new else f"{path} {state}"
            report.add(name, text, path=str(path), fetched=is_new, bytes=size)
        if not sources:
            report.add(name, "needs no file", path=None, fetched=False, bytes=0)
    return report.close(DONE)


class _Pulled(NamedTuple):
    """A file of a model: where it is, the line to print, and whether it was fetched."""

    path: Path
    text: str
    is_new: bool


def _pull_source(name: str, source: AnySource, precision: Precision) -> _Pulled:
    """Fetch a file that is missing or wrong.

    Raises:
        LamaGridError: It cannot be had.
        ImportError: As :func:`_fetch_folder`.
        OSError: As :func:`_fetch_folder`.
    """
    if not source.is_present(os.environ):
        return _Pulled(_fetch(name, source, precision, Existing.KEEP), "is here now", True)
    checked = list(_checked(source))
    wrong = [each for each in checked if not each.is_right]
    if not wrong:
        return _Pulled(source.path(os.environ), checked[-1].text, False)
    for each in wrong:
        print(f"lamagrid model: {name}: {each.path} {each.text}: fetching it anew", file=sys.stderr)
        if isinstance(source, HubFolder):
            each.path.unlink()  # the library downloads the missing file
    path = _fetch(name, source, precision, Existing.REPLACE)
    return _Pulled(path, "is here now, in place of a wrong one", True)


def _fetch(name: str, source: AnySource, precision: Precision, existing: Existing) -> Path:
    if isinstance(source, HubFolder):
        return _fetch_folder(source, precision)
    if isinstance(source, ConfiguredFile):
        if source.url is None:
            state = "is missing" if existing is Existing.KEEP else "is wrong"
            raise ModelLoadError(
                f"{source.path(os.environ)} {state}, and models.{name} of the configuration names no url: "
                "put the right file there, or set url"
            )
        with _Meter(name) as meter:
            return fetch.fetch_configured(source, meter.update, existing)
    url, _ = source.source(os.environ)
    if existing is Existing.REPLACE and "://" not in url:
        raise ModelLoadError(
            f"{url} is named by {source.variables}_URL itself, so it cannot be fetched: replace the file, or "
            f"correct {source.variables}_MD5 if it is right"
        )
    with _Meter(url.rsplit("/", 1)[-1]) as meter:
        return fetch.fetch(source, meter.update, existing)


def _fetch_folder(folder: HubFolder, precision: Precision) -> Path:
    """Fetch a folder with the call that upstream uses, which gives exactly the files that it needs.

    Raises:
        ImportError: diffusers is not installed here.
        OSError: The hub cannot be reached, or has no such repository.
    """
    fetch.name_authorities_for_hub()
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError(f"{folder.repo} is fetched by diffusers: pip install 'lamagrid[web]'") from error
    token = os.environ.get("HF_ACCESS_TOKEN") or None
    if folder.marker == "config.json":
        diffusers.ControlNetModel.from_pretrained(folder.repo)
    else:
        revision = precision.value if folder.has_half else Precision.FULL.value
        diffusers.DiffusionPipeline.download(folder.repo, revision=revision, use_auth_token=token)
    return folder.path(os.environ)


class _Meter:
    """Shows progress: a changing line on a terminal, otherwise a line every few seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_terminal = sys.stderr.isatty()
        self._began = self._drawn = time.monotonic()

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\033[K")

    def update(self, done: int, whole: int | None) -> None:
        now = time.monotonic()
        if now - self._drawn < (REDRAW_EVERY_S if self._is_terminal else REPORT_EVERY_S):
            return
        self._drawn = now
        part = f"{done * 100 // whole} % of {_amount(whole)}" if whole else _amount(done)
        line = f"{self._what}: {part}, {_amount(int(done / (now - self._began)))} per second"
        sys.stderr.write(f"\r\033[K{line}" if self._is_terminal else f"{line}\n")
        sys.stderr.flush()


def _verify(options: argparse.Namespace) -> int:
    chosen = _chosen(options.names)
    if chosen is None:
        return EXIT_WRONG_FLAGS
    if options.run and not options.names:
        print("lamagrid model: --run needs the names of models", file=sys.stderr)
        return EXIT_WRONG_FLAGS
    if options.run and not all(_is_run_by_torch(name) for name in options.names):
        return EXIT_WRONG_FLAGS
    report = _Report(options)
    verdict, seen = DONE, set[Path]()
    for name, sources in (chosen or _sources()).items():
        for source in sources:
            path = source.path(os.environ)
            if not source.is_present(os.environ):
                if options.names and options.run and name in configured.files():
                    continue  # fetched by the run, if it has a url
                if options.names:
                    text = f"{path} is missing: lamagrid model pull {name}"
                    report.add(name, text, path=str(path), right=False)
                    verdict = EXIT_WRONG
                continue
            if path in seen:  # of two plugins
                continue
            seen.add(path)
            for place, text, is_right in _checked(source):
                hint = "" if is_right else f": {_remedy(name, source)}"
                report.add(name, f"{place} {text}{hint}", path=str(place), right=is_right)
                verdict = verdict if is_right else EXIT_WRONG
        if options.run:
            try:
                run = _run(name, trial.SAMPLE_IMAGE, trial.SAMPLE_MASK)
            except LamaGridError as error:
                print(f"lamagrid model: {name}: {error}", file=sys.stderr)
                report.add(name, "did not run", right=False)
                verdict = EXIT_WRONG
            else:
                report.add(name, f"ran: {run}", right=True, **asdict(run))
    if not seen and not options.names and options.output == "table":
        print("no model's file is on this host")
    return report.close(verdict)


def _remedy(name: str, source: AnySource) -> str:
    if isinstance(source, ConfiguredFile):
        anew = "replace the file" if source.url is None else f"lamagrid model pull {name} fetches it anew"
        return f"{anew}, or correct models.{name}.sha256 if it is right"
    return f"lamagrid model pull {name} fetches it anew"


def _is_run_by_torch(name: str) -> bool:
    """Whether the node program runs a model; if not, a line on stderr says so."""
    if name in catalog.TORCH_MODELS or name in configured.files():
        return True
    print(
        f"lamagrid model: {name} runs on a Python node (lamagrid pynode --model {name}); the node program "
        f"runs {', '.join(catalog.TORCH_MODELS)} and models with a file in the configuration",
        file=sys.stderr,
    )
    return False


def _run(name: str, image: Path, mask: Path, out: Path | None = None) -> trial.Report:
    """Run a model once; without ``out`` the result is thrown away.

    Raises:
        ModelLoadError: It did not work.
    """
    with tempfile.TemporaryDirectory() as folder:
        return trial.run(name, image, mask, out or Path(folder) / "result.png")


def _check(options: argparse.Namespace) -> int:
    if _chosen([options.name]) is None or not _is_run_by_torch(options.name):
        return EXIT_WRONG_FLAGS
    if (options.image is None) != (options.mask is None):
        print("lamagrid model check: --image and --mask belong together: give both", file=sys.stderr)
        return EXIT_WRONG_FLAGS
    image, mask = options.image or trial.SAMPLE_IMAGE, options.mask or trial.SAMPLE_MASK
    out = options.out or Path(f"{options.name}-check.png")
    report = _Report(options)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.png"
            run = _run(options.name, image, mask, result)
            _write_side_by_side([image, mask, result], out)
    except (LamaGridError, ImportError, OSError) as error:
        print(f"lamagrid model: {options.name}: {error}", file=sys.stderr)
        return report.close(EXIT_WRONG)
    report.add(options.name, str(run), out=str(out), **asdict(run))
    if options.output == "table":
        print(f"{out}: before, mask, after")
    return report.close(DONE)


def _write_side_by_side(files: Sequence[Path], out: Path) -> None:
    """Write pictures of one size beside each other.

    Raises:
        ImportError: Pillow is not installed here.
        OSError: A picture cannot be read, or ``out`` cannot be written.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("pictures are put side by side by Pillow: pip install 'lamagrid[web]'") from error
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture) or picture
            pictures.append(upright.convert("RGB"))
    width = sum(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)))
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    whole.save(out, "PNG")


class _Verdict(NamedTuple):
    """The result of checking one file."""

    path: Path
    text: str
    is_right: bool


def _checked(source: AnySource) -> Iterator[_Verdict]:
    """Check each file of a source."""
    if isinstance(source, ConfiguredFile):
        yield _check_configured(source)
        return
    if isinstance(source, HubFolder):
        yield from _check_folder(source.path(os.environ))
        return
    path, (_, wanted) = source.path(os.environ), source.source(os.environ)
    if wanted is None:
        yield _check_archive(path)
        return
    found = _digest(path, hashlib.md5(usedforsecurity=False))
    if found == wanted.lower():
        yield _Verdict(path, "is right", True)
    else:
        yield _Verdict(path, f"has MD5 {found}, not {wanted}", False)


def _check_configured(source: ConfiguredFile) -> _Verdict:
    path = source.path(os.environ)
    if source.sha256 is None:
        verdict = _check_archive(path)
        return verdict._replace(text=verdict.text.replace("upstream", "the configuration"))
    found = _digest(path, hashlib.sha256())
    if found == source.sha256.lower():
        return _Verdict(path, "is right", True)
    return _Verdict(path, f"has SHA-256 {found}, not {source.sha256}", False)


def _check_archive(path: Path) -> _Verdict:
    """Check a file without a sum: torch's are archives, whose parts have sums."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    if not is_archive:
        return _Verdict(path, "is here; upstream names no sum of it", path.stat().st_size > 0)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        return _Verdict(path, f"is cut off or damaged ({error})", False)
    if broken is not None:
        return _Verdict(path, f"is damaged in {broken}", False)
    return _Verdict(path, "is whole; upstream names no sum of it", True)


def _check_folder(path: Path) -> Iterator[_Verdict]:
    """Check a folder of the hub's cache, which names files by SHA-256, small ones by git's sum."""
    blobs = sorted(each for each in (path / "blobs").glob("*") if each.is_file())
    wrong = 0
    for blob in blobs:
        if len(blob.name) == 64:
            found = _digest(blob, hashlib.sha256())
        else:
            found = _digest(
                blob, hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
            )
        if found != blob.name:
            wrong += 1
            yield _Verdict(blob, f"has the sum {found}", False)
    if not wrong:
        yield _Verdict(path, f"is right ({len(blobs)} files)" if blobs else "is here, without sums", True)


def _digest(path: Path, digest: Any) -> str:
    size, done = path.stat().st_size, 0
    with path.open("rb") as file, _Meter(path.name) as meter:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            meter.update(done, size)
    text: str = digest.hexdigest()
    return text
