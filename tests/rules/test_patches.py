"""Upstream's code is replaced in `lamagrid.upstream.patches` and nowhere else, as far as the source shows it.

`tests/seam/test_patches.py` shows the same by running it.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamagrid.upstream.patches import PATCHES, Patch

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "lamagrid"

ASSIGNED: dict[tuple[str, str], str] = {
    ("global_flags.py", "os.environ"): "this process's own",
    ("launcher/cli.py", "os.environ"): "this process's own",
    ("launcher/cli.py", "args.port"): "flags of this process",
    ("launcher/upstream_arguments.py", "sys.argv"): "this process's own",
    ("launcher/upstream_arguments.py", "request.device"): "an object of LamaGrid",
    ("launcher/upstream_arguments.py", "config.device"): "flags that a file gives",
    ("launcher/wsgi.py", "os.environ"): "this process's own",
    ("pynode/failed_loads.py", "broken.seen"): "an object of LamaGrid",
    ("pynode/functional_tensor.py", "vars(module)"): "a module that was made there",
    ("pynode/main.py", "shutdown.session"): "an object of LamaGrid",
    ("pynode/plugins.py", "plugin.prev_img_md5"): "what a plugin keeps between two calls",
    ("pynode/plugins.py", "vars(predictor)"): "what a plugin keeps between two calls",
    ("web/bounded_server.py", "head.ends"): "an object of LamaGrid",
    ("web/bounded_server.py", "body.waited_s"): "an object of LamaGrid",
    ("web/browser_tasks.py", "watched"): "an object of LamaGrid",
    ("web/model_manager.py", "response.headers"): "of one response",
    ("web/routes/inpaint.py", "response.headers"): "of one response",
    ("web/routes/inpaint.py", "config.sd_seed"): "parameters of one request",
    ("web/routes/inpaint.py", "config.paint_by_example_seed"): "parameters of one request",
}
"""Assignments that are no replacements, besides those to a method's own object: file, target, reason."""


def assignments(source: str) -> Iterator[str]:
    """Each attribute, or entry of one, that a source assigns to, besides those of a method's own object."""
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, (ast.For, ast.withitem)):
            target = node.target if isinstance(node, ast.For) else node.optional_vars
            targets = [] if target is None else [target]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.endswith(("setattr", "delattr", "__setattr__", "setitem")):
                yield ast.unparse(node.args[0])
            elif name == "vars":
                yield ast.unparse(node)
        elif isinstance(node, ast.Attribute) and node.attr == "__dict__":
            yield ast.unparse(node)
        while targets:
            target = targets.pop()
            if isinstance(target, (ast.Tuple, ast.List)):
                targets += target.elts
                continue
            if isinstance(target, ast.Subscript):  # of a local variable: a collection made there
                if isinstance(target.value, ast.Name):
                    continue
                target = target.value
            text = ast.unparse(target)
            if isinstance(target, (ast.Attribute, ast.Call)) and not re.match(r"(self|cls)\.", text):
                yield text


def undeclared(path: str, source: str) -> list[str]:
    """The assignments of a file that `ASSIGNED` does not explain."""
    known = {target for file, target in ASSIGNED if file == path}
    return [
        found
        for found in assignments(source)
        if not any(found == target or found.startswith(f"{target}.") for target in known)
    ]


def test_no_other_module_assigns_to_upstream() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): wrong
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "upstream" / "patches.py"
        and (wrong := undeclared(path.relative_to(PACKAGE).as_posix(), path.read_text()))
    }
    assert found == {}, "replace upstream's code by a row of upstream/patches.py"


@pytest.mark.parametrize(
    "source",
    [
        "server.ModelManager = Ours",
        "server.app.view_functions['process'] = view",
        "app = server.app\napp.wsgi_app = Filter(app.wsgi_app)",
        "setattr(server, 'ModelManager', Ours)",
        "vars(server).update(ModelManager=Ours)",
        "server.__dict__['ModelManager'] = Ours",
        "run, server.run = server.run, None",
        "del server.app.wsgi_app",
        "sys.modules['torchvision.functional'] = module",
    ],
)
def test_an_assignment_elsewhere_is_found(source: str) -> None:
    assert undeclared("web/app.py", source) != []


def test_no_explanation_is_stale() -> None:
    used = set()
    for file, target in ASSIGNED:
        found = assignments((PACKAGE / file).read_text())
        if any(each == target or each.startswith(f"{target}.") for each in found):
            used.add((file, target))
    assert set(ASSIGNED) - used == set()


def test_each_target_has_one_row_per_stage() -> None:
    rows = [(patch.stage, patch.target) for patch in PATCHES]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.stage.name} {patch.target}")
def test_a_row_names_its_replacement_its_reason_and_its_test(patch: Patch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of upstream's imports
        make = pkgutil.resolve_name(patch.replacement)
    assert len(inspect.signature(make).parameters) == 2
    assert patch.reason.endswith(".")
    file, _, name = patch.test.partition("::")
    assert (
        f"def {name}(" in (ROOT / "tests" / file).read_text() if name else (ROOT / "tests" / file).is_file()
    )
