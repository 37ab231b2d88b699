"""What stores and URLs say is shown, and neither acts on a terminal nor gives secrets away."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ctlab_dask_zarr import (
    CTLabError,
    InvalidArgumentError,
    dataset_from_zarr,
    dataset_to_zarr,
    verify,
)
from ctlab_dask_zarr import plan as plan_write
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.formats.problems import Problem, describe_problems
from ctlab_dask_zarr.store.connection import endpoint_in_force, validated_options
from ctlab_dask_zarr.store.paths import storage_path
from ctlab_dask_zarr.text import shown
from tests.builders import make_dataset

#: Clears the screen, sets the window's title, goes back a line, and turns text round.
HOSTILE = "a\x1b[2J\x1b]0;owned\x07\x9b1A\r\u202egpj.exe"
PACKAGE = Path(__file__).parents[1] / "ctlab_dask_zarr"


def is_harmless(text: str) -> bool:
    return text == shown(text) and "\x1b" not in text and "\r" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, µm, 2 x 3", "plain text, µm, 2 x 3"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("left \u202e right", "left \\u202e right"),
        ("https://h/a.zarr?sig=s3cr3t&x=1 failed", "https://h/a.zarr?... failed"),
        ("'https://h/b?X-Amz-Signature=s3cr3t'", "'https://h/b?...'"),
        ("az://user:s3cr3t@host/c", "az://...@host/c"),
        ("https://user:s3cr3t@more@host/d", "https://...@host/d"),
        ("GET b?c=1&X-Amz-Credential=s3cr3t&d=2", "GET b?c=1&X-Amz-Credential=...&d=2"),
        ("Signature=s3cr3t", "Signature=..."),
        ("chunks=(64, 64, 64), mail me@home", "chunks=(64, 64, 64), mail me@home"),
        ("/scans/what?.zarr is a name", "/scans/what?.zarr is a name"),
    ],
)
def test_text_is_shown_and_does_nothing(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(expected) == expected


def test_errors_and_problems_show_what_they_name() -> None:
    for error in (CTLabError(HOSTILE), InvalidArgumentError(f"https://h/a?sig=1 {HOSTILE}")):
        assert is_harmless(str(error))
    assert is_harmless(describe_problems([Problem("a", "gap", HOSTILE)]))


@pytest.fixture
def hostile_store(tmp_path: Path) -> Path:
    """A store of somebody else whose every name and text would act on a terminal."""
    path = tmp_path / "scan.zarr"
    data = make_dataset(np.arange(4**3, dtype="uint16").reshape(4, 4, 4))
    data.add_to_history(f"20200101_000000_{HOSTILE}", HOSTILE)
    dataset_to_zarr(data, path, dataset_id=f"20200101_000000_{HOSTILE}")
    (path / f"stray-{HOSTILE}").touch()
    return path


@pytest.mark.parametrize(
    "command",
    ["info", "history", "verify", "check", "preview", "set-id new", "convert", "plan", "pyramid"],
)
def test_no_command_passes_on_what_acts_on_a_terminal(hostile_store: Path, command: str) -> None:
    name, *more = command.split()
    arguments = [name, str(hostile_store), *more]
    target = str(hostile_store.parent / f"to-{HOSTILE}.zarr")
    arguments += {
        "convert": [target, "--quiet"],
        "plan": [target],
        "preview": ["-o", f"{hostile_store}-{HOSTILE}.png"],
        "set-id": ["--yes"],
    }.get(name, [])
    result = CliRunner().invoke(main, arguments)
    printed = result.stdout + result.stderr
    assert result.exit_code in (0, 1, 2, 3), printed
    assert printed.strip()
    assert is_harmless(printed), ascii(printed)


def test_notebooks_and_prompts_show_what_a_store_says(hostile_store: Path) -> None:
    dataset = dataset_from_zarr(hostile_store)
    plan = plan_write(dataset, hostile_store.parent / f"{HOSTILE}.zarr")
    for text in (repr(dataset), dataset._repr_html_(), repr(plan), plan.describe()):
        assert is_harmless(text)
    assert all(is_harmless(str(problem)) for problem in verify(hostile_store))


def test_axes_of_others_do_nothing_to_a_prompt(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(np.ones((4, 4, 4), "uint16")), tmp_path / "a.zarr")
    for document in (tmp_path / "a.zarr" / "zarr.json", tmp_path / "a.zarr" / "0" / "zarr.json"):
        text = document.read_text().replace('"z"', json.dumps(HOSTILE))
        document.write_text(text)
    assert is_harmless(repr(dataset_from_zarr(tmp_path / "a.zarr")))


def test_a_warning_of_a_store_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}.zarr"
    dataset_to_zarr(make_dataset(np.ones((4, 4, 4), "uint16")), path)
    document = json.loads((path / "zarr.json").read_text())
    for axis in document["attributes"]["ome"]["multiscales"][0]["axes"]:
        axis["unit"] = f"pixel{HOSTILE}"
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="are taken for voxels") as caught:
        dataset_from_zarr(path)
    assert all(is_harmless(str(warning.message)) for warning in caught)


def test_an_endpoint_with_a_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("https://h/?sig=s3cr3t", "https://h/#sig=s3cr3t", "https://user:s3cr3t@h"):
        with pytest.raises(InvalidArgumentError, match="leave them out") as caught:
            validated_options({"endpoint": url})
        assert "s3cr3t" not in str(caught.value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(InvalidArgumentError, match="leave them out"):
            endpoint_in_force("s3", {})


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda p: p.name)
def test_commands_print_by_one_function(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    called = {ast.unparse(call.func) for call in calls}
    places = {"output.py": {"click.echo", "click.confirm"}, "errors.py": {"print"}}
    showing = {"print", "click.echo", "click.secho", "click.confirm", "click.prompt"}
    assert called & {*showing, "sys.stdout.write"} == places.get(path.name, set())


def test_a_question_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}.zarr"
    dataset_to_zarr(make_dataset(np.ones((4, 4, 4), "uint16")), path)
    result = CliRunner().invoke(main, ["set-id", str(path), "new"], input="n\n", color=True)
    assert "Change " in result.stderr
    assert is_harmless(result.stdout + result.stderr), ascii(result.stderr)


def test_a_url_whose_characters_act_on_a_terminal_names_no_store() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot have these characters") as caught:
        storage_path(f"s3://bucket/{HOSTILE}.zarr")
    assert is_harmless(str(caught.value))


def test_of_many_problems_the_first_are_told_and_the_rest_are_counted() -> None:
    problems = [Problem(name, "gap", text) for name, text in (("a", "one"), ("b", "two"))]
    assert describe_problems(problems, limit=1) == "one\n... and 1 more"
    assert describe_problems(problems) == "one\ntwo"
