"""What a staging folder holds, and whether its plan may be believed.

Whoever can write beside a destination can put a folder there that looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.formats.receipts import RECEIPTS_OBJECT
from ctlab_dask_zarr.formats.zarr_array import is_key, parse_array_document
from ctlab_dask_zarr.store.files import Files, walk
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.store import is_temporary

#: In the staging folder: whose write it is, and of what.
STAGED_PLAN = "plan.json"
#: Digits of the ids of staging folders, and of those that are being made or removed.
N_DIGITS, N_DIGITS_BESIDE = 16, 32
#: What else a staging folder holds.
STAGED = re.compile(rf"(?:store|receipts|pieces)-[0-9a-f]{{{N_DIGITS}}}")


def foreign_in(files: Files, staging: str) -> str | None:
    """Return what lies in a staging folder, or the rest of one, and is not part of it."""
    _, folders, names = next(walk(files, staging), ("", [], []))
    foreign = [name for name in folders if not STAGED.fullmatch(name)]
    foreign += [n for n in names if n != STAGED_PLAN and not is_temporary(n, STAGED_PLAN)]
    return min(foreign, default=None)


def plan_problem(plan: dict[str, Any]) -> str | None:
    """Return why a plan is not believed, or None: files at its paths are moved and removed."""
    problem = next(_plan_problems(plan), None)
    return problem and f"its {STAGED_PLAN} {problem}"


def _plan_problems(plan: dict[str, Any]) -> Iterator[str]:
    levels, documents = plan.get("levels", []), plan.get("documents", [])
    is_copy = "copy_of" in plan or "export" in plan
    for entries in (levels, documents):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            yield "does not describe its levels and documents"
            return
    if not levels and not is_copy:
        yield "has no levels"
    for number, level in enumerate(levels):
        path = level.get("path")
        # An array without a group is at ''; levels that are added have numbers.
        is_right = is_key(path) or path == "" if number == 0 or is_copy else path == str(number)
        if not is_right or not isinstance(level.get("document"), str):
            yield f"has a level at {path!r}"
    for document in documents:
        if not is_key(document.get("key")):
            yield f"has a document {document.get('key')!r}"
    for name, kind in (
        ("n_parts", int | None), ("band", int | None), ("started_s", int | float | None)
    ):  # fmt: skip
        if not isinstance(plan.get(name), kind):
            yield f"has {name} {plan[name]!r}"
    extends, staging_id = plan.get("extends"), plan.get("staging_id")
    if extends is not None and not re.fullmatch("[0-9a-f]{64}", str(extends)):
        yield f"adds levels to {extends!r}"
    if not is_copy and not re.fullmatch(f"[0-9a-f]{{{N_DIGITS}}}", str(staging_id)):
        yield f"has the id {staging_id!r}"
    if not is_copy and not json_object_or_empty(plan.get("identity", "")):
        yield "does not say what was being written"


def is_object_of(document: str, key: str) -> bool:
    """Whether a key is that of an object of an array, by what its document says."""
    array = parse_array_document(document)
    coords = array.coords(key)
    is_chunk = coords is not None and array.is_inside(coords)
    return is_chunk or key in (ROOT_DOCUMENT, RECEIPTS_OBJECT)
