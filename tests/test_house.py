"""House rules: pure rooms stay pure, functions are short, links lead somewhere."""

from __future__ import annotations

import ast
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ctlab_dask_zarr"
PURE = [
    *sorted((PACKAGE / "formats").glob("*.py")),
    *(PACKAGE / "planning" / name for name in ("layout.py", "levels.py", "plan.py", "rechunk.py")),
]
#: What would touch the world: schedulers, file formats, stores, clocks.
IMPURE = {"dask", "distributed", "h5py", "scipy", "shutil", "subprocess", "tempfile", "time"}
#: What touches it through modules that a pure room may import for their other parts.
IMPURE_CALLS = {
    *("exists", "isdir", "isfile", "listdir", "lstat", "makedirs", "mkdir", "realpath", "remove"),
    *("rename", "rmdir", "scandir", "stat", "unlink", "walk"),
    *("glob", "iterdir", "read_bytes", "read_text", "write_bytes", "write_text"),
    *("now", "today", "utcnow"),
}
#: zarr makes documents, in a dict, and describes codecs; nothing else is asked of it.
ZARR_ALLOWED = {"plan.py"}


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_a_pure_room_touches_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    forbidden = IMPURE if path.name in ZARR_ALLOWED else IMPURE | {"zarr"}
    assert imported & forbidden == set()
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "open" not in {call.id for call in called if isinstance(call, ast.Name)}
    assert {call.attr for call in called if isinstance(call, ast.Attribute)} & IMPURE_CALLS == set()


#: Folders of tests that run a room on real servers.
ROOMS = {"stores": "store", "clusters": "execution"}
#: What tests of any room may put something else in the place of.
SEAMS = {
    "ctlab_dask_zarr.store.files.LocalFiles": (
        "every effect on a file system is one of its methods: tests make one fail, wait or count"
    ),
    "ctlab_dask_zarr.store.opened.LocalObject": "the same of a file that is open to be read",
    "ctlab_dask_zarr.cluster_from_config": "a public name",
    "ctlab_dask_zarr._HOMES": "the list of public names, which a test compares with the package",
}


def names_in(tree: ast.AST) -> dict[str, str]:
    """What the imported names of a module stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module
            found |= {a.asname or a.name: f"{module}.{a.name}" for a in node.names}
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The whole name of an expression; empty where it has none."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return owner and f"{owner}.{node.attr}"
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_test_patches_what_is_private_to_another_room(path: Path) -> None:
    """What a room keeps to itself may change, and only its own tests with it."""
    tree = ast.parse(path.read_text())
    names = names_in(tree)
    folder = path.relative_to(ROOT / "tests").parts[0]
    own = f"ctlab_dask_zarr.{ROOMS.get(folder, folder.removesuffix('.py'))}."
    # As `setattr(owner, "name", ...)`, and as functions of tests that pass both on to it.
    pairs = [
        (dotted(owner, names), name.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for owner, name in itertools.pairwise(node.args)
        if isinstance(name, ast.Constant) and not isinstance(owner, ast.Constant)
    ]
    # An error and its message are no such pair.
    patched = {f"{owner}.{name}" for owner, name in pairs if not owner.endswith("Error")}
    texts = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    patched |= {text for text in texts if re.fullmatch(r"ctlab_dask_zarr(\.\w+){2,}", text)}
    private = {
        dotted(node, names)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)
    }
    private |= {name for name in names.values() if re.search(r"\._[^_.]+$", name)}
    others = {
        name
        for name in patched | private
        if name.startswith("ctlab_dask_zarr")
        and not name.startswith(own)
        and not any(name.startswith(seam) for seam in SEAMS)
    }
    assert others == set()


def n_lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    assert function.end_lineno is not None
    n_lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno is not None
        n_lines -= first.end_lineno - first.lineno + 1
    return n_lines


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_files_and_functions_are_short_or_say_why_not(path: Path) -> None:
    """A comment right above a function of more than 60 lines gives the reason."""
    lines = path.read_text().splitlines()
    functions = [
        node
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [function for function in functions if n_lines_of_code(function) > 60]
    starts = [min([f.lineno, *(d.lineno for d in f.decorator_list)]) for f in long]
    without_reason = [
        function.name
        for function, start in zip(long, starts, strict=True)
        if not lines[start - 2].lstrip().startswith("#")
    ]
    assert without_reason == []
    assert len(lines) <= 400


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster-configs/*.md")],
    ids=lambda path: path.name,
)
def test_every_link_between_documents_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_no_file_names_a_path_of_one_machine() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    pattern = re.compile(r"(?<![A-Za-z0-9_./])/(work|root|farm)/")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".yaml", ".sh", ""}:
            text = path.read_text(errors="replace")
            found += [f"{name}: {m.group(0)}" for m in pattern.finditer(text)]
    assert [entry for entry in found if not entry.startswith("tests/test_house.py")] == []
