"""Which labels an image has, wherever they are asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ctlab_dask_zarr import MetadataError
from ctlab_dask_zarr.store.files import LOCAL_FILES
from ctlab_dask_zarr.store.hierarchy import label_names


def put_group(folder: Path, **ome: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    (folder / "zarr.json").write_text(json.dumps(document))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    labels = tmp_path / "scan.zarr" / "labels"
    put_group(labels, labels=["cells/0", "bare", "gone", "../outside"])
    for name in ("bare", "cells/0"):
        put_group(labels / name, multiscales=[])
    put_group(labels / "phases", **{"image-label": {}, "multiscales": []})
    put_group(labels / ".scan.staging", **{"image-label": {}})
    put_group(labels / "notes")
    put_group(tmp_path / "outside", multiscales=[])
    return tmp_path / "scan.zarr"


def test_labels_are_what_is_listed_and_there_and_then_what_says_that_it_is(image: Path) -> None:
    assert label_names(LOCAL_FILES, str(image)) == ["cells/0", "bare", "phases"]


@pytest.mark.parametrize("listed", [["../outside"], "phases", [7], None])
def test_a_list_that_has_to_be_right_is_refused_where_it_is_not(image: Path, listed: Any) -> None:
    put_group(image / "labels", **({} if listed is None else {"labels": listed}))
    with pytest.raises(MetadataError, match=r"labels/zarr\.json"):
        label_names(LOCAL_FILES, str(image), strict=True)
    assert label_names(LOCAL_FILES, str(image)) == ["phases"]


def test_a_list_that_has_to_be_right_names_what_is_missing_too(image: Path) -> None:
    put_group(image / "labels", labels=["gone"])
    assert label_names(LOCAL_FILES, str(image), strict=True) == ["gone", "phases"]
    os.remove(image / "labels" / "zarr.json")
    assert label_names(LOCAL_FILES, str(image), strict=True) == ["phases"]
