"""Documents that several change at once: no change is lost, and nobody is held up by the dead."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from ctlab_dask_zarr import WriteFailedError
from ctlab_dask_zarr.store import documents
from ctlab_dask_zarr.store.documents import change_document, drop_consolidated
from ctlab_dask_zarr.store.files import LOCAL_FILES
from ctlab_dask_zarr.store.store import Store, files_at
from tests.reliability.fake_files import Died, FakeFiles


def adding(name: str) -> Callable[[dict[str, Any] | None], dict[str, Any]]:
    return lambda document: {"names": [*(document or {"names": []})["names"], name]}


def names_in(store: Store) -> list[str]:
    names: list[str] = json.loads(store.get("zarr.json"))["names"]
    return names


def fake_store(*, is_new: bool) -> tuple[Store, FakeFiles]:
    files = FakeFiles()
    files.make_folder("/scan.zarr")
    store = Store("/scan.zarr", files)
    if not is_new:
        change_document(store, adding("first"))
    files._settle()
    files.n_effects = 0
    return store, files


def meanwhile(files: FakeFiles, number: int, act: Callable[[], None]) -> None:
    """Let others act before the effect with this number, counted from now."""
    first, others = files.n_effects, files.before_effect

    def check(n: int) -> None:
        if n == first + number:
            files.before_effect = others
            act()
        else:
            others(n)

    files.before_effect = check


@pytest.mark.parametrize("is_new", [False, True])
def test_of_three_that_change_a_document_at_once_each_finds_its_change_there(is_new: bool) -> None:
    begun = [] if is_new else ["first"]
    n_together = 0
    for first in range(12):
        for second in range(12):
            store, files = fake_store(is_new=is_new)
            acted: list[str] = []

            def act(name: str, acted: list[str] = acted, store: Store = store) -> None:
                acted.append(name)
                change_document(store, adding(name))

            def second_and_third(n: int = second, act: Any = act, f: FakeFiles = files) -> None:
                meanwhile(f, n, lambda: act("third"))
                act("second")
                f.before_effect = lambda number: None

            meanwhile(files, first, second_and_third)
            act("own")
            assert sorted(names_in(store)) == sorted([*begun, *acted]), (first, second)
            assert files.entries("/scan.zarr") == [("zarr.json", "file")]
            n_together += len(acted) == 3
    assert n_together > 40


@pytest.mark.parametrize("is_new", [False, True])
def test_a_change_that_is_killed_is_made_or_not_and_holds_up_nobody(is_new: bool) -> None:
    number = 0
    seen = set()
    while True:
        store, files = fake_store(is_new=is_new)
        files.die_at(number)
        try:
            change_document(store, adding("killed"))
            break
        except Died:
            pass
        for lost, after in files.crashes(5):
            survived = Store("/scan.zarr", after)  # type: ignore[arg-type]
            change_document(survived, adding("next"))
            found = names_in(survived)
            begun = [] if is_new else ["first"]
            assert found in ([*begun, "next"], [*begun, "killed", "next"]), (number, lost)
            seen.add(len(found))
        number += 1
    assert number > 4
    assert len(seen) == 2


def test_a_change_that_was_made_outlasts_a_power_failure() -> None:
    store, files = fake_store(is_new=False)
    change_document(store, adding("made"))
    for lost, after in files.crashes(20):
        found = names_in(Store("/scan.zarr", after))  # type: ignore[arg-type]
        assert found == ["first", "made"], lost


def test_a_change_that_another_user_announced_and_cannot_make_ends_the_wait_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    change_document(store, adding("first"))
    rename = type(LOCAL_FILES).rename

    def refused(self: Any, source: str, target: str) -> None:
        if os.path.basename(target) == "zarr.json":
            raise PermissionError(13, "Permission denied", source)
        rename(self, source, target)

    def killed(self: Any, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(type(LOCAL_FILES), "rename", refused)
        patch.setattr(type(LOCAL_FILES), "remove_file", killed)
        with pytest.raises(PermissionError):
            change_document(store, adding("theirs"))
    (claim,) = tmp_path.glob(".zarr.json.*")
    with monkeypatch.context() as patch:
        patch.setattr(type(LOCAL_FILES), "rename", refused)
        patch.setattr(documents, "_LONGEST_WAIT_S", 0.05)
        with pytest.raises(WriteFailedError, match=claim.name):
            change_document(store, adding("mine"))
    # Where it may be taken up, it is.
    change_document(store, adding("mine"))
    assert names_in(store) == ["first", "theirs", "mine"]
    assert os.listdir(tmp_path) == ["zarr.json"]


def test_an_object_store_loses_no_change_of_many_at_once() -> None:
    pytest.importorskip("obstore")
    url = "memory://documents/scan.zarr"
    store = Store(url, files_at(url))

    def add(who: int) -> None:
        for number in range(12):
            change_document(store, adding(f"{who}-{number}"))

    threads = [threading.Thread(target=add, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {f"{who}-{number}" for who in range(4) for number in range(12)}
    assert len(names_in(store)) == 48
    assert set(names_in(store)) == wanted


def test_copies_of_what_changes_are_dropped_in_every_group_above(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "all.zarr", zarr_format=3, attributes={"mine": 7})
    image = group.create_group("a").create_group("image")
    image.create_array("0", shape=(4, 4), dtype="u1")
    for path in ("all.zarr", "all.zarr/a", "all.zarr/a/image"):
        with pytest.warns(zarr.errors.ZarrUserWarning, match="Consolidated"):
            zarr.consolidate_metadata(tmp_path / path)
    drop_consolidated(LOCAL_FILES, str(tmp_path / "all.zarr" / "a"))
    texts = {
        path: (tmp_path / path / "zarr.json").read_text()
        for path in ("all.zarr", "all.zarr/a", "all.zarr/a/image")
    }
    assert ["inline" in text for text in texts.values()] == [False, False, True]
    assert json.loads(texts["all.zarr"])["attributes"] == {"mine": 7}
    assert sorted(zarr.open_group(tmp_path / "all.zarr", mode="r")) == ["a"]
