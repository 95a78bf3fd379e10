"""A folder in, a folder out: structure, formats, metadata, masks, failures. X9"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batch.conftest import ARTIST, ICC, MANIFEST, ORIENTATION, SIZE, Folders, completed, fill, mask, picture
from faults.grid import FaultGrid
from grids.server import BIN
from lamagrid.options import MODEL_OPTIONS


def opened(data: bytes | Path) -> Image.Image:
    """A picture as its file says, without turning it."""
    image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    image.load()
    return image


def test_a_folder_keeps_structure_formats_and_metadata(grid: FaultGrid, folders: Folders) -> None:
    names = fill(folders.pictures, 40)
    (folders.pictures / "notes.txt").write_text("no picture")
    before = completed(grid)
    ran = folders.run()
    assert (ran.code, ran.counts()) == (0, {"done": 40}), ran.err
    assert {key: ran.summary[key] for key in ("total", "done", "failed", "skipped", "cancelled")} == {
        "total": 40,
        "done": 40,
        "failed": 0,
        "skipped": 0,
        "cancelled": 0,
    }
    assert folders.results() == names
    for name in names:
        number = int(Path(name).stem)
        given, result = opened(folders.pictures / name), opened(folders.out / name)
        assert (result.format, result.size) == (given.format, SIZE)
        assert result.info.get("icc_profile") == (None if number % 5 else ICC)
        if given.format == "PNG":
            assert np.array_equal(np.array(result), np.array(given))
        else:
            assert result.getexif()[ARTIST] == f"artist {number}"
            assert result.getexif().get(ORIENTATION, 1) == 1
    assert completed(grid) == before + 40

    # The second run has nothing to do, and the third one nothing to ask.
    ran = folders.run()
    assert (ran.code, ran.counts(), completed(grid)) == (0, {"skipped": 40}, before + 40)
    assert folders.states() == {"done": 40}


def test_results_get_another_format_and_quality(folders: Folders) -> None:
    (folders.pictures / "a.jpg").write_bytes(picture(1, "JPEG"))
    (folders.pictures / "b.png").write_bytes(picture(2))
    (folders.pictures / "c.tif").write_bytes(picture(5, "TIFF"))
    ran = folders.run("--format", "webp", "--quality", "30")
    assert (ran.code, folders.results()) == (0, ["a.webp", "b.webp", "c.webp"])
    assert opened(folders.out / "c.webp").info["icc_profile"] == ICC
    small = (folders.out / "b.webp").stat().st_size
    assert opened(folders.out / "a.webp").format == "WEBP"
    # Another quality is another result; the old one is replaced.
    assert folders.run("--format", "webp", "--quality", "90").counts() == {"done": 3}
    assert (folders.out / "b.webp").stat().st_size > small
    # The same name with the same content is done.
    assert folders.run("--format", "webp", "--quality", "90").counts() == {"skipped": 3}


def test_masks_are_found_beside_the_pictures_and_in_a_folder(folders: Folders, tmp_path: Path) -> None:
    names = fill(folders.pictures, 6)
    masks = tmp_path / "masks"
    for name in names:
        path = masks / Path(name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mask())
    ran = folders.run(folders.pictures, "--mask", masks)
    assert (ran.code, ran.counts()) == (0, {"done": 6}), ran.out
    for name in names:
        path = folders.pictures / name
        path.with_name(f"{path.stem}_mask.png").write_bytes(mask())
    # The same masks in another place are the same work.
    ran = folders.run(folders.pictures, "--mask", folders.pictures)
    assert (ran.code, ran.counts()) == (0, {"skipped": 6}), ran.out


def test_a_colour_marks_the_area_in_the_picture(folders: Folders) -> None:
    pixels = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    pixels[5:9, 5:9] = (250, 3, 252)
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG")):
        Image.fromarray(pixels).save(folders.pictures / name, form, quality=95, subsampling=0)
    (folders.pictures / "plain.png").write_bytes(picture(1, size=(2, 2)))
    ran = folders.run(folders.pictures, "--mask-color", "#ff00ff")
    assert (ran.code, ran.counts()) == (1, {"done": 2, "failed": 1}), ran.out
    text = ran.pictures["plain.png"]["failure"]["message"]
    assert text.startswith("no pixel is within 16 of the colour #ff00ff; check --mask-color")
    # A smaller tolerance is another mask.
    ran = folders.run(folders.pictures / "a.png", "--mask-color", "#ff00ff", "--mask-tolerance", "1")
    assert (ran.code, ran.counts()) == (1, {"failed": 1})


def test_each_failure_has_its_reason_and_the_others_go_on(folders: Folders, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name, data in {
        "good.png": picture(1),
        "large.png": picture(2, size=(50, 32)),
        "unmasked.png": picture(3),
        "broken.png": b"no picture at all",
        "moving.gif": picture(4, "GIF"),
        "cut.jpg": picture(6, "JPEG")[:400],
    }.items():
        (folders.pictures / name).write_bytes(data)
        if name != "unmasked.png":
            (masks / name).with_suffix(".png").write_bytes(mask())
    ran = folders.run(folders.pictures, "--mask", masks)
    assert ran.code == 1, ran.out
    texts = {name: line["failure"] and line["failure"]["message"] for name, line in ran.pictures.items()}
    assert texts["good.png"] is None
    assert texts["large.png"] == (
        f"the picture has 50 x 32 pixels, its mask `{masks}/large.png` 48 x 32; both must have the same size"
    )
    assert texts["unmasked.png"].startswith(f"it has no mask: `{masks}` has neither unmasked.png nor")
    assert texts["broken.png"].endswith("cannot be inpainted: it is no picture file of a known format")
    assert "choose one by --format png" in texts["moving.gif"]
    assert "jpeg" in texts["cut.jpg"], texts["cut.jpg"]
    failures = Path(ran.summary["failures"])
    assert {json.loads(line)["input"] for line in failures.read_text().splitlines()} == set(texts) - {
        "good.png"
    }
    # Failed pictures are tried again, and its report is of that run.
    (masks / "unmasked.png").write_bytes(mask())
    for name in ("large.png", "broken.png", "moving.gif", "cut.jpg"):
        (folders.pictures / name).unlink()
    ran = folders.run(folders.pictures, "--mask", masks)
    assert (ran.code, ran.counts()) == (0, {"done": 1, "skipped": 1})
    assert not failures.exists()


def test_people_read_a_summary_with_the_first_failures(folders: Folders) -> None:
    (folders.pictures / "good.png").write_bytes(picture(1))
    (folders.pictures / "bad\n.png").write_bytes(b"x")
    command = folders.command()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=folders.env(), check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert lines[0].startswith("2 pictures in ")
    assert lines[0].endswith(": 1 done, 0 done before, 1 failed")
    assert lines[1].startswith("batch ")
    assert lines[2].startswith(r"  bad\n.png: ")
    assert lines[3] == f"all failures are listed in {folders.out}/.lamagrid-failures.jsonl"


def test_files_of_others_are_not_overwritten(folders: Folders) -> None:
    (folders.pictures / "a.png").write_bytes(picture(1))
    folders.out.mkdir()
    (folders.out / "a.png").write_bytes(b"precious")
    ran = folders.run()
    assert (ran.code, ran.counts()) == (1, {"failed": 1})
    assert "replace it by --overwrite" in ran.pictures["a.png"]["failure"]["message"]
    assert (folders.out / "a.png").read_bytes() == b"precious"
    assert folders.run("--overwrite").counts() == {"done": 1}
    # A result that was edited is the user's; one that was removed is made again.
    (folders.out / "a.png").write_bytes(b"edited")
    (folders.pictures / "a.png").write_bytes(picture(2))
    ran = folders.run()
    assert "was changed after it was written" in ran.pictures["a.png"]["failure"]["message"]
    (folders.out / "a.png").unlink()
    assert folders.run().counts() == {"done": 1}


def test_two_pictures_cannot_have_one_result(folders: Folders) -> None:
    (folders.pictures / "a.png").write_bytes(picture(1))
    (folders.pictures / "a.jpg").write_bytes(picture(2, "JPEG"))
    ran = folders.run("--format", "png")
    assert (ran.code, ran.counts()) == (1, {"done": 1, "failed": 1})
    failed = next(line for line in ran.pictures.values() if line["failure"])
    assert "another picture of this run has the result a.png" in failed["failure"]["message"]


def test_a_picture_that_several_paths_name_is_done_once(grid: FaultGrid, folders: Folders) -> None:
    names = fill(folders.pictures, 6)
    before = completed(grid)
    words = [folders.pictures, folders.pictures / "**/*.png", folders.pictures / "000.jpg"]
    ran = folders.run(*words, "--mask", folders.mask)
    assert (ran.code, ran.counts(), ran.summary["total"]) == (0, {"done": 6}, 6), ran.out
    assert (folders.results(), completed(grid)) == (names, before + 6)


def test_only_what_changed_is_done_again(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, 6)
    assert folders.run().counts() == {"done": 6}
    before = completed(grid)
    (folders.pictures / "000.jpg").write_bytes(picture(77, "JPEG"))
    assert folders.run().counts() == {"done": 1, "skipped": 5}
    # Options that change no result change nothing; others do.
    assert folders.run("--priority", "5", "--wait-for-node", "2h").counts() == {"skipped": 6}
    assert folders.run("--hd-strategy", "Original").counts() == {"done": 6}
    folders.mask.write_bytes(mask((48, 32)) + b" ")
    assert folders.run("--hd-strategy", "Original").counts() == {"done": 6}
    assert completed(grid) == before + 1 + 6 + 6


def test_patterns_and_files_are_inputs(folders: Folders) -> None:
    fill(folders.pictures, 12)
    pattern = folders.pictures / "**" / "*.jpg"
    ran = folders.run(pattern, folders.pictures / "001.png", "--mask", folders.mask)
    assert ran.code == 65, "001.png is in a folder below"
    (folders.pictures / "001.png").write_bytes(picture(1))
    ran = folders.run(pattern, folders.pictures / "001.png", "--mask", folders.mask)
    assert (ran.code, ran.counts()) == (0, {"done": 7}), ran.err
    assert sorted({Path(name).suffix for name in folders.results()}) == [".jpg", ".png"]


def test_a_dry_run_changes_nothing(grid: FaultGrid, folders: Folders) -> None:
    names = fill(folders.pictures, 4)
    before = completed(grid)
    (folders.pictures / "bad.png").write_bytes(b"x")
    ran = folders.run("--dry-run")
    assert not folders.out.exists()
    plans = {name: line["plan"] for name, line in ran.pictures.items()}
    assert plans == {**dict.fromkeys(names, "run"), "bad.png": "fail"}
    assert (ran.code, ran.summary["run"], ran.summary["fail"]) == (1, 4, 1)
    folders.run()
    done = (folders.out / MANIFEST).read_bytes()
    ran = folders.run("--dry-run", "--quality", "50")
    assert (ran.summary["run"], ran.summary["skip"]) == (4, 0)
    assert folders.run("--dry-run").summary["skip"] == 4
    assert (folders.out / MANIFEST).read_bytes() == done
    assert completed(grid) == before + 4


def test_runs_that_cannot_begin_say_why(folders: Folders, tmp_path: Path) -> None:
    (folders.pictures / "a.png").write_bytes(picture(1))
    for words, code, text in [
        ((tmp_path / "nothing", "--mask", folders.mask), 65, "nothing`: No such file"),
        ((tmp_path / "out*", "--mask", folders.mask), 65, "there is no picture in"),
        ((folders.pictures, "--mask", tmp_path / "no.png"), 65, "no.png` cannot be used: No such file"),
        ((folders.pictures, "--mask-color", "magenta"), 2, "six hexadecimal digits"),
        ((folders.pictures, "--mask", folders.mask, "--sd-steps", "many"), 2, "write a whole number"),
        ((folders.pictures, "--mask", folders.mask, "--data-dir", tmp_path / "empty"), 69, "no scheduler"),
    ]:
        ran = folders.run(*words)
        assert ran.code == code, (words, ran.err)
        assert text in ran.err, ran.err


def test_options_of_tasks_have_their_names(folders: Folders) -> None:
    shown = subprocess.run(
        [BIN / "lamagrid", "inpaint", "--help"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    hidden = {"echo_ms", "echo_abort"}
    flags = {name: f"--{name.replace('_', '-')}" for name in MODEL_OPTIONS if name not in hidden}
    missing = [flag for flag in flags.values() if f"{flag} " not in shown.replace("[", " ")]
    assert missing == []
    listed = shown.partition("Options of the model:")[2].partition("Options of every command:")[0]
    named = {word for word in listed.split() if word.startswith("--")}
    assert named - set(flags.values()) - {"--seed]"} == set()


@pytest.mark.parametrize("link", [False, True])
def test_results_inside_the_pictures_folder_are_no_pictures(folders: Folders, link: bool) -> None:
    fill(folders.pictures, 3)
    folders.out = folders.pictures / "clean"
    if link:
        folders.out.mkdir()
        real, folders.out = folders.out, folders.pictures.parent / "link"
        folders.out.symlink_to(real)
    assert folders.run().counts() == {"done": 3}
    assert folders.run().counts() == {"skipped": 3}


def test_a_terminal_shows_a_bar_and_other_readers_lines(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, 8)
    terminal, end = pty.openpty()
    try:
        words = folders.command("--echo-ms", "300", "--in-flight", "2")
        run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=end, env=folders.env())
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's end, once no process has it open
            while data := os.read(terminal, 4096):
                shown += data
        assert run.wait(60) == 0
    finally:
        os.close(terminal)
    steps = re.findall(
        rb"\r\x1b\[K\[(#*)\.*\] (\d) done, 0 failed of 8, [\d.]+ per second, [\d.]+ m?s left", shown
    )
    assert len(steps) > 2, shown
    assert steps == sorted(steps)
    assert shown.endswith(b"\r\x1b[K"), "the bar is gone before the summary"
