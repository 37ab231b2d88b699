"""Which place a path means, and what of it is never shown."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ctlab_dask_zarr import (
    CTLabError,
    InvalidArgumentError,
    dataset_from_zarr,
    dataset_to_zarr,
)
from ctlab_dask_zarr.store import connection
from ctlab_dask_zarr.store.paths import storage_path
from tests.builders import make_dataset, random_voxels


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


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/a.zarr", "ftp://host/a.zarr", "simplecache::s3://a/b", "https:/host/a.zarr"],
)
def test_a_url_is_never_made_a_local_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Nobody answers there.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(connection, "RETRY_TIMEOUT", timedelta(0))
    with pytest.raises(CTLabError, match="://"):
        dataset_to_zarr(make_dataset(random_voxels((4, 4, 4))), url)
    if not url.startswith("https"):
        with pytest.raises(CTLabError, match="://"):
            dataset_from_zarr(url)
    assert list(tmp_path.iterdir()) == []
