"""Every route of the contract's tables, on three servers in the same order: status, headers, text, pixels.

R3.1, R8.1, R8.4. Only the differences in docs/compatibility.md are allowed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from contract.conftest import MAX_PIXELS, PHOTO, RNG, Servers
from contract.differences import differences
from grids import procfs
from grids.pictures import encoded, hole
from grids.server import ORIGINAL, Server, is_one_line
from stock.forms import stock_form

pytestmark = pytest.mark.timeout(300)

ROWS = differences()
EXCEPTION = "`/inpaint`, `/run_plugin`, `/save_image`, ...: an exception"
MISSING = "the same: a field is missing"
PARAMETER = "`/run_plugin`: a parameter or file that the plugin cannot use"
FOLDER = "`/save_image`: a file name with a folder"
THUMBNAIL = "`/media_thumbnail/*`: a width or height that is no number from 1 to 4,096"
LARGE = "a picture above `limits.max_pixels`"
PAGE = "`/`"
OURS = "`task_status`, `subscribe_task`, `unsubscribe_task`, `/grid`, `/grid/tasks`"
TASK = "all answers of a task"
BYTES = "bytes of PNG and WebP answers"
RESIZE = "strategy Resize, OpenCV with Intel's IPP"
PLACE = "`/model_downloaded/NAME`"
HEADERS = "all answers"
TEXT = "all answers of text alone"
ORIGIN = "a request of another site's page (`Origin`)"
HOST = "a name of the internet that is not configured (`Host`)"
BODY = "a form, file or field that is too large"
JSONP = "JSONP of Socket.IO"
CONNECTIONS = "slow requests, and very many at once"
PROXY = "`X-Forwarded-For`, `-Proto`, `-Host`, `-Prefix`"

ROUND = RNG.integers(0, 256, (64, 64, 3), np.uint8)
MASK = encoded(hole(48, 64, 10, 12, 14))
CLEAN = RNG.integers(0, 256, (48, 64, 3), np.uint8)
TOO_LARGE = encoded(np.zeros((1_000, MAX_PIXELS // 1_000 + 1, 3), np.uint8))
MANY_FIELDS = {f"sent{number}": "x" for number in range(120)}
FIXED = {**ORIGINAL, "sdSeed": 42, "paintByExampleSeed": 42}
Answer = requests.Response
Send = Callable[[Server], Answer]


@dataclass(frozen=True)
class Case:
    """A request, and the row of docs/compatibility.md that says how its answer differs."""

    name: str
    send: Send
    differs: str | None = None
    holds: Callable[[Answer, Answer], bool] | None = None
    """Of stock's answer and the grid's: whether the difference is the one that the row names."""


def get(path: str) -> Send:
    return lambda server: server.get(path)


def post(path: str, form: Mapping[str, str] | None = None, **files: bytes) -> Send:
    parts = {name: (f"{name}.png", content) for name, content in files.items()}
    return lambda server: server.post(path, data=form, files=parts or None)


def inpaint(image: bytes | None = None, mask: bytes | None = MASK, **fields: object) -> Send:
    image = encoded(PHOTO) if image is None else image
    return lambda server: server.inpaint(image or None, mask, **{**FIXED, **fields})


def plugin(name: str | None, *, form: Mapping[str, str] | None = None, **files: bytes) -> Send:
    data = {**({} if name is None else {"name": name}), **(form or {})}
    return post("/run_plugin", data, **(files or {"image": encoded(PHOTO)}))


def options(path: str) -> Send:
    asked = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    return lambda server: requests.options(server.base + path, headers=asked, timeout=30)


def asking(path: str, **headers: str) -> Send:
    return lambda server: requests.get(server.base + path, headers=headers, timeout=30)


def is_refused(status: int, text: str) -> Callable[[Answer, Answer], bool]:
    return lambda stock, grid: (
        (stock.status_code, grid.status_code) == (200, status)
        and is_one_line(grid.content)
        and text in grid.text
    )


def is_too_large(stock: Answer, grid: Answer) -> bool:
    return stock.status_code != 413 and grid.status_code == 413 and is_one_line(grid.content)


def one_line_for_a_page(stock: Answer, grid: Answer) -> bool:
    return (
        stock.text.startswith("<!doctype")
        and grid.status_code == stock.status_code
        and is_one_line(grid.content)
    )


def names(field: str) -> Callable[[Answer, Answer], bool]:
    return lambda stock, grid: one_line_for_a_page(stock, grid) and field in grid.text


def is_413(stock: Answer, grid: Answer) -> bool:
    return stock.status_code == 200 and grid.status_code == 413 and "limits.max_pixels" in grid.text


def is_400(stock: Answer, grid: Answer) -> bool:
    return stock.status_code in (200, 500) and grid.status_code == 400 and is_one_line(grid.content)


def saves_nothing(stock: Answer, grid: Answer) -> bool:
    return (stock.status_code, grid.status_code) == (200, 400) and is_one_line(grid.content)


def sets_our_cookie(stock: Answer, grid: Answer) -> bool:
    return stock.content == grid.content and "lamagrid=" in grid.headers["Set-Cookie"]


def is_new(stock: Answer, grid: Answer) -> bool:
    return (stock.status_code, grid.status_code) == (404, 200)


def differs_by_one(stock: Answer, grid: Answer) -> bool:
    pixels = [np.array(Image.open(io.BytesIO(each.content))).astype(int) for each in (stock, grid)]
    apart = np.abs(pixels[0] - pixels[1])
    # None where the processor is one that IPP has nothing for.
    return (apart > 0).mean() < 0.06 and int(apart.max()) <= 1


def alpha(photo: Any) -> Any:
    return np.dstack([photo, photo[:, :, 0]])


CASES = [
    # Requests of the page at its start.
    Case("page", get("/"), PAGE, sets_our_cookie),
    Case("config", get("/server_config")),
    Case("desktop", get("/is_desktop")),
    Case("model", get("/model")),
    Case("no input image", get("/inputimage")),
    Case("static file", get("/static/css/nothing.css")),
    Case("no such page", get("/nothing")),
    Case("wrong method", get("/inpaint")),
    Case("wrong method on a text", post("/server_config")),
    Case("preflight", options("/inpaint"), ORIGIN, is_refused(403, "web.allowed_origins")),
    Case(
        "another site's page",
        asking("/model", Origin="http://elsewhere.example"),
        ORIGIN,
        is_refused(403, "web.allowed_origins"),
    ),
    Case("another name", asking("/", Host="elsewhere.example"), HOST, is_refused(403, "web.allowed_hosts")),
    Case("a name of this network", asking("/model", Host="mybox.local:8080")),
    Case("our page", get("/grid"), OURS, is_new),
    Case("our tasks", get("/grid/tasks"), OURS, is_new),
    # Cleaning.
    *(
        Case(f"clean {kind}", inpaint(encoded(photo, kind)))
        for kind, photo in [
            ("PNG", PHOTO),
            ("PNG", alpha(PHOTO)),
            ("JPEG", PHOTO),
            ("BMP", PHOTO),
            ("TIFF", PHOTO),
        ]
    ),
    Case("clean with another radius", inpaint(cv2Flag="INPAINT_TELEA", cv2Radius=9)),
    Case("clean in crops", inpaint(hdStrategy="Crop", hdStrategyCropTrigerSize=32, hdStrategyCropMargin=8)),
    Case("an unknown strategy", inpaint(hdStrategy="crop")),
    Case("nothing to clean", inpaint(mask=encoded(np.zeros((48, 64), np.uint8)))),
    Case("a mask of another size", inpaint(mask=encoded(hole(20, 30, 0, 0, 5)))),
    Case("no image", inpaint(b""), MISSING, names("image")),
    Case("no mask", inpaint(mask=None), MISSING, names("mask")),
    *(
        Case(f"without {field}", inpaint(**{field: None}), MISSING, names(field))
        for field in sorted(stock_form())
    ),
    Case("no picture", inpaint(b"no picture"), EXCEPTION, one_line_for_a_page),
    Case("half a picture", inpaint(encoded(PHOTO)[:200]), EXCEPTION, one_line_for_a_page),
    Case("no mask in it", inpaint(mask=b"no picture"), EXCEPTION, one_line_for_a_page),
    Case("a broken number", inpaint(croperX="1.5"), EXCEPTION, one_line_for_a_page),
    Case("a broken truth", inpaint(useCroper="perhaps"), EXCEPTION, one_line_for_a_page),
    Case("an unknown flag", inpaint(cv2Flag="INPAINT_MAGIC"), EXCEPTION, one_line_for_a_page),
    Case(
        "too large", inpaint(TOO_LARGE, encoded(hole(1_000, MAX_PIXELS // 1_000 + 1, 1, 1, 9))), LARGE, is_413
    ),
    Case("a long prompt", inpaint(prompt="x" * 2_000_000), BODY, is_too_large),
    Case("a large form elsewhere", post("/model", {"name": "x" * 70_000}), BODY, is_too_large),
    Case(
        "many fields",
        post("/inpaint", {**stock_form(), **MANY_FIELDS}, image=encoded(PHOTO), mask=MASK),
        BODY,
        is_too_large,
    ),
    Case("a large file", inpaint(bytes(4 * MAX_PIXELS + 2_000_000)), BODY, is_too_large),
    # Models.
    Case("the same model", post("/model", {"name": "cv2"})),
    Case("an unknown model", post("/model", {"name": "nonsense"})),
    Case("no model", post("/model", {})),
    Case("still the same model", get("/model")),
    Case("is lama there", get("/model_downloaded/lama"), PLACE, lambda stock, grid: grid.text == "True"),
    Case("is cv2 there", get("/model_downloaded/cv2")),
    Case("is sd1.5 there", get("/model_downloaded/sd1.5")),
    Case("is nonsense there", get("/model_downloaded/nonsense"), EXCEPTION, one_line_for_a_page),
    Case("switch to lama", post("/model", {"name": "lama"})),
    Case("it is lama", get("/model")),
    Case("clean with lama", inpaint()),
    Case(
        "clean with lama in crops",
        inpaint(hdStrategy="Crop", hdStrategyCropTrigerSize=32, hdStrategyCropMargin=8),
    ),
    Case(
        "clean at half the size",
        inpaint(hdStrategy="Resize", hdStrategyResizeLimit=32),
        RESIZE,
        differs_by_one,
    ),
    Case("switch to sd1.5", post("/model", {"name": "sd1.5"})),
    Case("switch back", post("/model", {"name": "cv2"})),
    Case("the page's model after it all", get("/server_config")),
    # Plugins.
    Case("cut out", plugin("RemoveBG")),
    Case("cut out of a JPEG", plugin("RemoveBG", image=encoded(PHOTO, "JPEG"))),
    Case(
        "before and after",
        plugin("MakeGIF", form={"filename": "x.gif"}, image=encoded(PHOTO), clean_img=encoded(CLEAN)),
    ),
    Case("an unknown plugin", plugin("Nonsense")),
    Case("a plugin that is off", plugin("AnimeSeg")),
    Case("no plugin", plugin(None), MISSING, names("name")),
    Case("a plugin without image", plugin("RemoveBG", other=b"x"), MISSING, names("image")),
    Case("a plugin with no picture", plugin("RemoveBG", image=b"no picture"), PARAMETER, one_line_for_a_page),
    Case("a GIF of one picture", plugin("MakeGIF", form={"filename": "x"}), MISSING, names("clean_img")),
    Case("a plugin with a large picture", plugin("RemoveBG", image=TOO_LARGE), LARGE, is_413),
    # Files.
    Case("save", post("/save_image", {"filename": "saved.png"}, image=encoded(PHOTO))),
    Case("save with alpha", post("/save_image", {"filename": "alpha.png"}, image=encoded(alpha(PHOTO)))),
    Case(
        "save elsewhere",
        post("/save_image", {"filename": "../x.png"}, image=encoded(PHOTO)),
        FOLDER,
        saves_nothing,
    ),
    Case("save nothing", post("/save_image", {"filename": "x.png"}), MISSING, names("image")),
    Case("save without name", post("/save_image", {}, image=encoded(PHOTO)), MISSING, names("filename")),
    Case(
        "save no picture",
        post("/save_image", {"filename": "x.png"}, image=b"?"),
        EXCEPTION,
        one_line_for_a_page,
    ),
    Case("pictures", get("/medias/image")),
    Case("saved pictures", get("/medias/output")),
    Case("a picture", get("/media/image/photo.png")),
    Case("a saved picture", get("/media/output/alpha.png")),
    Case("no such picture", get("/media/image/nothing.png")),
    Case("a thumbnail", get("/media_thumbnail/image/other.jpg?width=32&height=20")),
    *(
        Case(f"a thumbnail of {size}", get(f"/media_thumbnail/image/photo.png?{size}"), THUMBNAIL, is_400)
        for size in ("width=nan", "height=inf", "width=wide")
    ),
    Case("out of the folder", get("/media/image/..%2f..%2fetc%2fpasswd")),
    Case("a thumbnail out of it", get("/media_thumbnail/image/..%2f..%2fetc%2fpasswd")),
    Case("a thumbnail of the usual size", get("/media_thumbnail/output/saved.png")),
]
PLAIN = [
    Case("config", get("/server_config")),
    Case("the input image", get("/inputimage")),
    Case("no switch", post("/model", {"name": "lama"})),
    Case("nowhere to save", post("/save_image", {"filename": "x.png"}, image=encoded(PHOTO))),
    Case("no file manager", get("/medias/image"), EXCEPTION, one_line_for_a_page),
    Case("no plugins", plugin("MakeGIF")),
]
ELSEWHERE = {
    "`/run_plugin`: the plugin failed": (
        "seam/test_plugins.py::test_a_failure_of_the_grid_is_reported_unless_strict"
    ),
    "`diffusion_progress`, `diffusion_finish`": (
        "contract/test_socket.py::test_with_our_cookie_a_browser_receives_only_events_of_its_own_requests"
    ),
    "the queue is full": (
        "seam/test_inpaint_route.py::test_failures_have_upstreams_answers_and_a_full_queue_has_retry_after"
    ),
    "a browser that goes away while it waits": (
        "e2e/test_callers.py::test_a_browser_that_goes_away_cancels_its_task"
    ),
    "an answer that takes longer than `client.timeout_ms`": (
        "e2e/test_bad_input.py::test_a_timeout_is_a_short_text_and_frees_the_node"
    ),
    HEADERS: "contract/test_front_door.py::test_each_answer_says_what_browsers_may_do_with_it",
    TEXT: "contract/test_front_door.py::test_a_name_that_is_a_script_is_text",
    JSONP: "contract/test_front_door.py::test_jsonp_is_not_served",
    CONNECTIONS: "hostile/test_web_door.py::test_slow_bodies_give_way_to_honest_ones",
    PROXY: "seam/test_proxy.py::test_clients_behind_a_trusted_proxy_are_distinguished",
    TASK: "contract/test_http.py::test_each_answer_of_a_task_names_it",
    BYTES: "parity/test_requests.py::test_requests",
    "`POST /model` of a model that no node can serve": (
        "e2e/test_bad_input.py::test_a_model_that_no_node_serves_is_refused_and_the_current_one_stays"
    ),
    "`POST /model` of an unknown model, with CUDA": (
        "e2e/test_bad_input.py::test_an_unknown_model_is_403_and_the_current_one_stays"
    ),
    "`X-Seed` after a request to manga": "contract/test_http.py::test_manga_leaves_the_seeds_of_others_alone",
    "the same picture to GFPGAN twice": "seam/test_plugins.py::test_a_face_is_restored_the_same_way_twice",
    "two people click with InteractiveSeg": (
        "seam/test_plugins.py::test_embeddings_are_cached_for_alternating_users"
    ),
    "`--device cuda` without a GPU on this host": (
        "seam/test_launcher.py::test_cuda_is_refused_without_a_gpu"
    ),
    "plugins": (
        "e2e/test_plugins.py::test_a_plugin_gives_what_the_unchanged_server_gives_and_outlives_its_node"
    ),
}
"""Rows that other tests show: what takes a failure, a limit or a real network."""
OURS_ALONE = (
    "X-Lamagrid-Task",
    "X-Lamagrid-Fallback",
    "X-Content-Type-Options",
    "Content-Security-Policy",
    # Stock's to all; test_front_door.py has those of the grid.
    "Access-Control-Allow-Origin",
    "Access-Control-Expose-Headers",
    "Access-Control-Allow-Methods",
)
VOLATILE = ("Date", "Last-Modified", "ETag")


def compared(answer: Answer) -> tuple[dict[str, str], Any]:
    """The headers that are compared, and the content: the pixels of PNG and WebP, else the bytes (X18)."""
    headers = {name: value for name, value in answer.headers.items() if name not in (*OURS_ALONE, *VOLATILE)}
    if "Allow" in headers:  # in the order of a set
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    kind = headers.get("Content-Type", "")
    if kind.startswith("text/html") and not answer.content.startswith(b"<!doctype"):
        headers["Content-Type"] = "text/plain; charset=utf-8"  # the row TEXT
    if answer.status_code == 200 and kind in ("image/png", "image/webp"):
        del headers["Content-Length"]  # other encoders, the same pixels
        with Image.open(io.BytesIO(answer.content)) as picture:
            return headers, (picture.format, picture.mode, np.array(picture).tolist())
    if kind == "application/json" and answer.content.startswith(b"[{"):
        del headers["Content-Length"]
        return headers, [{**each, "ctime": 0, "mtime": 0} for each in answer.json()]
    return headers, answer.content


def same(one: Answer, other: Answer) -> None:
    assert (one.status_code, *compared(one)) == (other.status_code, *compared(other))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_grid_answers_as_the_unchanged_server(servers: Servers, case: Case) -> None:
    stock, grid, strict = map(case.send, servers.all())
    if case.differs is None:
        same(stock, grid)
        same(stock, strict)
        return
    row = ROWS[case.differs]
    assert case.holds is not None
    assert case.holds(stock, grid), (stock.status_code, stock.text[:300], grid.status_code, grid.text[:300])
    same(stock if row.is_upstreams_when_strict else grid, strict)


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_a_server_without_folders_and_plugins(plain_servers: tuple[Server, Server], case: Case) -> None:
    stock, grid = map(case.send, plain_servers)
    if case.holds is None:
        same(stock, grid)
    else:
        assert case.holds(stock, grid), (
            stock.status_code,
            stock.text[:300],
            grid.status_code,
            grid.text[:300],
        )


def test_what_was_saved_is_the_same_and_nothing_lies_elsewhere(servers: Servers) -> None:
    """After the cases above."""
    saved = {
        name: {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        for name, folder in servers.outputs.items()
    }
    assert set(saved["stock"]) == {"saved.png", "alpha.png"}
    assert saved["grid"] == saved["strict"] == saved["stock"]
    beside = {name: (folder.parent / "x.png").exists() for name, folder in servers.outputs.items()}
    assert beside == {"stock": True, "grid": False, "strict": False}


def test_each_answer_of_a_task_names_it(servers: Servers) -> None:
    stock, grid, strict = map(inpaint(), servers.all())
    assert "X-Lamagrid-Task" not in stock.headers
    for answer in (grid, strict):
        assert len(answer.headers["X-Lamagrid-Task"]) == 32
    assert servers.grid.task(grid)["state"] == "completed"
    fallback = inpaint(encoded(PHOTO, "TIFF"))(servers.grid)
    assert fallback.headers["X-Lamagrid-Fallback"] == "tiff RGB"


def test_a_seed_is_drawn_where_none_is_given(servers: Servers) -> None:
    for server in servers.all():
        drawn = {inpaint(sdSeed=-1)(server).headers["X-Seed"] for _ in range(3)}
        assert len(drawn) > 1
        assert all(1 <= int(seed) <= 999_999_999 for seed in drawn)


def test_manga_leaves_the_seeds_of_others_alone(servers: Servers) -> None:
    """Upstream's seeds the generator that draws them, so that all draw the same from then on."""
    for server, frozen in zip(servers.all(), (True, False, False)):
        assert post("/model", {"name": "manga"})(server).text == "ok, switch to manga"
        drawn = [inpaint(sdSeed=-1)(server).headers["X-Seed"] for _ in range(3)]
        assert (drawn[1] == drawn[2]) is frozen
        assert post("/model", {"name": "cv2"})(server).status_code == 200


def test_the_web_process_holds_no_model(servers: Servers, environment: dict[str, str], capsys: Any) -> None:
    """After it served them all: no model file is mapped or open, and no device of a GPU."""
    web = servers.grid.process.pid
    held = Path(f"/proc/{web}/maps").read_text()
    for descriptor in Path(f"/proc/{web}/fd").iterdir():
        with contextlib.suppress(OSError):
            held += f"\n{descriptor.readlink()}"
    assert "libtorch_cpu" in held, "upstream's server imports torch, so this would see it"
    files = [value for name, value in environment.items() if name.endswith("_MODEL_URL")]
    assert len(files) == 3
    for file in (*files, "u2net.onnx"):
        assert file not in held
    assert "/dev/nvidia" not in held
    sizes = {name: procfs.rss_bytes(getattr(servers, name).process.pid) / 1e6 for name in ("stock", "grid")}
    with capsys.disabled():
        print(f"\nresident memory after all this: stock {sizes['stock']:.0f} MB, grid {sizes['grid']:.0f} MB")
    assert sizes["grid"] < sizes["stock"]


def test_every_row_of_the_table_is_shown_here_or_by_a_named_test() -> None:
    here = {case.differs for case in (*CASES, *PLAIN)} - {None}
    assert here <= set(ROWS), "a row has another name"
    assert here.isdisjoint(ELSEWHERE)
    assert here | set(ELSEWHERE) == set(ROWS), "a row that nothing shows, or that is not there any more"
    tests = Path(__file__).parents[1]
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (tests / file).read_text("utf-8"), place
