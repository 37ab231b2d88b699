"""The protocol of an export, proven on a file system in memory.

Exports of a folder and of a file, new ones and replacements, are stopped before every single
effect, with losses of every kind that a crash may bring, and two are interleaved. After each such
history a reader sees the old files whole, the new ones whole, or none, and the next call gets
through.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from ctlab_dask_zarr import DestinationExistsError, IncompleteDatasetError, StagingExistsError
from ctlab_dask_zarr.export.kind import File
from ctlab_dask_zarr.export.staged import ExportRequest, StagedExport, commit, stage
from ctlab_dask_zarr.store.destination import Destination
from tests.reliability.fake_files import Died, FakeFiles, Interleaved

PATH = "/data/out"
N_SAMPLED = 4
#: What the files of an export hold, by the text that its dataset has.
Content = dict[str, bytes] | None


@dataclass(frozen=True)
class Texts:
    """Two files, or one, that say which dataset they are of."""

    is_folder: bool
    text: str
    name = "texts"

    def files(self) -> list[File]:
        n_files = 2 if self.is_folder else 1
        return [File(f"f{n}", n, n + 1) for n in range(n_files)]

    def settings(self) -> dict[str, Any]:
        return {}

    def is_own(self, name: str) -> bool:
        return name.startswith("f")

    def content(self, file: File) -> bytes:
        return f"{self.text} {file.name}".encode()

    def whole(self) -> Content:
        names = {file.name: self.content(file) for file in self.files()}
        return names if self.is_folder else {"": names["f0"]}


def export(files: FakeFiles, kind: Texts, **options: bool) -> None:
    """Stage, write what is missing, and commit, as the tasks of one run do."""
    request = ExportRequest(
        Destination(PATH, files),  # type: ignore[arg-type]
        kind,
        {"kind": "text", "text": kind.text},
        {},
        uuid.uuid4().hex,
        **options,
    )
    request.refuse()
    staged = stage(request)
    for file in kind.files():
        write(staged, kind, file)
    commit(staged, [])


def write(staged: StagedExport, kind: Texts, file: File) -> None:
    if staged.has(file.name):
        return
    with staged.new_file(file.name) as path:
        new = staged.request.destination.files.open_new(path)
        new.write(kind.content(file))
        new.close()


def seen(files: FakeFiles) -> Content:
    """What a reader finds at the destination."""
    kind = files.kind(PATH)
    if kind is None:
        return None
    if kind == "file":
        return {"": files.read(PATH)}
    return {name: files.read(f"{PATH}/{name}") for name, _ in files.entries(PATH)}


def begun(old: Texts | None) -> FakeFiles:
    files = FakeFiles()
    files.make_folder("/data")
    if old is not None:
        export(files, old)
    files._settle()
    files.n_effects = 0
    return files


def histories(old: Texts | None, new: Texts) -> Iterator[tuple[str, FakeFiles]]:
    """Yield every state that an export which dies can leave, and what led to it."""
    for number in range(1000):
        files = begun(old)
        files.die_at(number)
        try:
            export(files, new, overwrite=old is not None)
        except Died:
            for lost, after in files.crashes(N_SAMPLED):
                yield f"effect {number}, lost {lost}", after
        else:
            assert number > 20
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaced"])
def test_an_export_that_dies_at_any_moment_is_there_whole_or_not_at_all(
    is_folder: bool, replaces: bool
) -> None:
    old, new = Texts(is_folder, "old") if replaces else None, Texts(is_folder, "new")
    allowed = [None if old is None else old.whole(), new.whole()]
    between = [None] if replaces and is_folder else []
    for history, files in histories(old, new):
        found = seen(files)
        assert found in allowed + between, history
        with suppress(DestinationExistsError):
            # Complete already: there is no more to do.
            export(files, new, resume=True, overwrite=replaces)
        assert seen(files) == new.whole(), history
        export(files, new, restart=True, overwrite=True)
        assert [name for name, _ in files.entries("/data")] == ["out"], history


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
def test_an_old_folder_is_never_lost_though_nobody_goes_on(is_folder: bool) -> None:
    """Another export, of another dataset, begins anew after the one that died."""
    old, new, third = (Texts(is_folder, text) for text in ("old", "new", "third"))
    for history, files in histories(old, new):
        with pytest.raises(DestinationExistsError):
            export(files, third, restart=True)
        assert seen(files) in (old.whole(), new.whole()), history
        export(files, third, restart=True, overwrite=True)
        assert seen(files) == third.whole(), history
        assert [name for name, _ in files.entries("/data")] == ["out"], history


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("switches", [(n, m) for n in range(1, 20, 3) for m in (n + 1, n + 6)])
def test_of_two_exports_at_once_one_is_there_whole(
    is_folder: bool, switches: tuple[int, int]
) -> None:
    files = begun(None)
    kinds = [Texts(is_folder, "a"), Texts(is_folder, "b")]
    errors = Interleaved(files, switches).run(
        tuple(lambda files, kind=kind: export(files, kind) for kind in kinds)
    )
    assert seen(files) in [kind.whole() for kind in kinds]
    assert errors.count(None) == 1
    assert isinstance(
        next(error for error in errors if error is not None),
        DestinationExistsError | StagingExistsError | IncompleteDatasetError | OSError,
    )
