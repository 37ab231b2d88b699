"""Plan a write whose codec is chosen by measuring."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ctlab_dask_zarr.errors import CTLabError
from ctlab_dask_zarr.execution.graphs import SourceGraph
from ctlab_dask_zarr.formats.codecs import AUTO_CODECS, codec_text
from ctlab_dask_zarr.formats.receipts import stored_codec_choice
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.codec import DEFAULT_CODEC
from ctlab_dask_zarr.planning.plan import WritePlan
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.store.destination import Destination

#: Choices of this process, by the identity of the write and what was asked, so that a write has the
#: codec that its plan has said; the latest of them.
latest_choices: dict[tuple[str, str], dict[str, Any]] = {}
_MAX_CHOICES = 64


def plan_with_codec(
    make_plan: Callable[[WriteOptions], WritePlan],
    options: WriteOptions,
    source: SourceGraph,
    *,
    goes_on: bool,
) -> WritePlan:
    """Return the plan that `make_plan` makes of options whose codec may have to be chosen.

    Where the write may go on with one that was interrupted, or is shared with other jobs
    (`goes_on`), it has the codec of that one.
    """
    asked = options.codec
    if asked not in AUTO_CODECS:
        return make_plan(options)
    draft = make_plan(replace(options, codec=DEFAULT_CODEC))
    choice = _earlier_choice(draft, asked) if goes_on else None
    key = (draft.identity, asked)
    if choice is None:
        choice = latest_choices.pop(key, None)
        if choice is None:
            # Slow to import, and workers and other writes do without it.
            from ctlab_dask_zarr.write.codec_sample import choose_by_measuring

            choice = choose_by_measuring(draft, source, asked)
    latest_choices[key] = choice
    while len(latest_choices) > _MAX_CHOICES:
        del latest_choices[next(iter(latest_choices))]
    return replace(make_plan(replace(options, codec=choice["codec"])), codec_choice=choice)


def _earlier_choice(draft: WritePlan, asked: str) -> dict[str, Any] | None:
    """Return the codec of the write that is staged, or complete, at the destination of a plan."""
    place = Destination.at(draft.destination, draft.labels_of)
    staged = place.staged_plan()
    found = stored_codec_choice(staged or place.committed())
    if found is not None:
        return found
    try:
        array = parse_array_document(staged["levels"][0]["document"])
    except (KeyError, IndexError, TypeError, CTLabError, json.JSONDecodeError):
        return None
    codec = codec_text((spec.name, spec.options) for spec in array.codecs)
    if not array.is_direct or codec is None:
        return None
    reason = "the codec of the interrupted write, which goes on"
    return {"asked": asked, "codec": codec, "reason": reason, "measured": []}
