"""Which place a path means, and what of it is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctlab_dask_zarr import InvalidArgumentError
from ctlab_dask_zarr.store.paths import storage_path


@pytest.mark.parametrize(
    "form", ["{}/link/../scan.zarr", "link/.././scan.zarr", "file://{}/link/../scan.zarr"]
)
def test_a_folder_above_a_link_is_that_above_what_it_leads_to(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "project").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "project")
    monkeypatch.chdir(tmp_path)
    assert storage_path(form.format(tmp_path)) == str(tmp_path / "disk" / "scan.zarr")


def test_a_link_without_dots_behind_it_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert storage_path(tmp_path / "link" / "scan.zarr") == str(tmp_path / "link" / "scan.zarr")
    assert storage_path(tmp_path / "link") == str(tmp_path / "link")
    assert storage_path(f"{tmp_path}//./link/") == str(tmp_path / "link")


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a.zarr?X-Amz-Signature=0123secret",
        "s3://bucket/a.zarr?versionId=0123secret",
        "az://container/a.zarr?sv=2024&sig=0123secret",
        "gs://bucket/a?sig=0123secret/b.zarr",
        "https://host/a.zarr#0123secret",
    ],
)
def test_a_query_is_no_part_of_a_place_and_is_refused_without_being_shown(url: str) -> None:
    for form in (url, Path(url)):
        with pytest.raises(InvalidArgumentError, match="a query, or a signature") as told:
            storage_path(form)
        assert "secret" not in str(told.value)


def test_keys_that_look_like_it_are_kept() -> None:
    assert storage_path("s3://bucket/sample#3.zarr") == "s3://bucket/sample#3.zarr"
    assert storage_path("/data/what?.zarr") == "/data/what?.zarr"


@pytest.mark.parametrize("path", ["/data/a\0b.zarr", "a\0", "file:///data/a%00b.zarr"])
def test_a_name_that_no_file_system_has_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="has a NUL in it"):
        storage_path(path)
