"""What a staging folder holds, and whether its plan may be believed.

Whoever can write beside a destination can put a folder there that looks like one.
"""

from __future__ import annotations

import re
from typing import Any

from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.formats.receipts import RECEIPTS_OBJECT
from ctlab_dask_zarr.formats.zarr_array import is_key, parse_array_document
from ctlab_dask_zarr.store.files import Files, walk
from ctlab_dask_zarr.store.hierarchy import ROOT_DOCUMENT
from ctlab_dask_zarr.store.store import is_temporary

__all__ = [
    *("N_DIGITS", "N_DIGITS_BESIDE", "PIECES_PREFIX", "RECEIPTS_PREFIX", "STAGED", "STAGED_PLAN"),
    *("STORE_PREFIX", "foreign_in", "is_object_of", "plan_problem"),
]

#: In the staging folder: whose write it is, and of what.
STAGED_PLAN = "plan.json"
STORE_PREFIX = "store-"
RECEIPTS_PREFIX = "receipts-"
PIECES_PREFIX = "pieces-"
#: Of the ids of staging folders, and of those that are made or removed.
N_DIGITS, N_DIGITS_BESIDE = 16, 32
#: What a staging folder holds; anything else is somebody else's.
STAGED = re.compile(rf"(?:{STORE_PREFIX}|{RECEIPTS_PREFIX}|{PIECES_PREFIX})[0-9a-f]{{{N_DIGITS}}}")


def foreign_in(files: Files, staging: str) -> str | None:
    """Return what lies in a staging folder, or the rest of one, and is no part of it."""
    _, folders, names = next(walk(files, staging), ("", [], []))
    foreign = [name for name in folders if not STAGED.fullmatch(name)]
    foreign += [n for n in names if n != STAGED_PLAN and not is_temporary(n, STAGED_PLAN)]
    return min(foreign, default=None)


def plan_problem(plan: dict[str, Any]) -> str | None:
    """Return why the plan of a staging folder is not believed, or None.

    Its paths become those of files that are written, moved and removed.
    """
    levels, documents = plan.get("levels", []), plan.get("documents", [])
    if not all(isinstance(part, list) for part in (levels, documents)):
        return f"the levels or documents of its {STAGED_PLAN} are no lists"
    if not all(isinstance(part, dict) for part in (*levels, *documents)):
        return f"the levels or documents of its {STAGED_PLAN} are not described"
    is_copy = "copy_of" in plan
    if not levels and not is_copy:
        return f"its {STAGED_PLAN} has no levels"
    for number, level in enumerate(levels):
        path = level.get("path")
        # An array without a group is at ''; those that are added have numbers.
        is_named = is_key(path) or path == "" if number == 0 or is_copy else path == str(number)
        if not is_named or not isinstance(level.get("document"), str):
            return f"its {STAGED_PLAN} has a level at {path!r}"
    for document in documents:
        if not is_key(document.get("key")):
            return f"its {STAGED_PLAN} has a document {document.get('key')!r}"
    if not (isinstance(plan.get("n_parts"), int | None)):
        return f"its {STAGED_PLAN} has the parts {plan['n_parts']!r}"
    if not isinstance(plan.get("started_s"), int | float | None):
        return f"its {STAGED_PLAN} has the time {plan['started_s']!r}"
    extends = plan.get("extends")
    if extends is not None and not re.fullmatch("[0-9a-f]{64}", str(extends)):
        return f"its {STAGED_PLAN} adds levels to {extends!r}"
    if not is_copy and not json_object_or_empty(plan.get("identity", "")):
        return f"its {STAGED_PLAN} does not say what was being written"
    staging_id = plan.get("staging_id")
    if not is_copy and not re.fullmatch(f"[0-9a-f]{{{N_DIGITS}}}", str(staging_id)):
        return f"its {STAGED_PLAN} has the id {staging_id!r}"
    return None


def is_object_of(document: str, key: str) -> bool:
    """Whether a key is that of an object of an array, by what its document says."""
    array = parse_array_document(document)
    coords = array.coords(key)
    is_chunk = coords is not None and array.is_inside(coords)
    return is_chunk or key in (ROOT_DOCUMENT, RECEIPTS_OBJECT)
