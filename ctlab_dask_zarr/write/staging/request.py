"""What a write asks of its staging folder, and how the folder keeps it in ``plan.json``.

These are plain values: whoever goes on with a write, or commits it, needs nothing else.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.codec.shard import row_axis_of
from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.plan import Document, PlannedLevel, WriteContent, WritePlan
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.text import command_text
from ctlab_dask_zarr.write.staging.runner import Runner

#: What one run asks, and the next one may ask otherwise.
_NOT_KEPT = {"destination", "resume", "restart", "resumes", "runner"}


@dataclass(frozen=True, kw_only=True)
class StageRequest(WriteContent):
    """What a write stores, and how a run goes about it."""

    destination: Destination
    resume: bool = False
    restart: bool = False
    #: Tells this run from every other one, in the staging folder and in what is committed.
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    #: Number of jobs that share the write; None for a write by one.
    n_parts: int | None = None
    #: Thickness of the bands of which shards of level 0 are put together; None where tasks write
    #: whole shards. What is left of bands of another thickness is not used.
    band: int | None = None
    #: Id of the staging folder whose shards are not written again.
    resumes: str | None = None
    #: Hash of the root document of the store that gets further levels; None for a new store.
    extends: str | None = None
    #: Identity of the dataset that was there at the staging, and is to be replaced.
    replaces: str | None = None
    #: The process that runs it.
    runner: Runner | None = None

    @property
    def n_existing(self) -> int:
        """Number of levels that are at the destination already."""
        return 0 if self.extends is None else 1

    @property
    def how_to_remove(self) -> str:
        """How a user removes what is staged; no part removes what the others write."""
        if self.n_parts is None:
            return "restart=True (--restart)"
        return command_text("abort", self.destination.path)

    @classmethod
    def of(
        cls,
        plan: WritePlan,
        *,
        resume: bool = False,
        restart: bool = False,
        n_parts: int | None = None,
    ) -> StageRequest:
        """Take from `plan` what is needed."""
        content = {part.name: getattr(plan, part.name) for part in fields(WriteContent)}
        destination = Destination.at(plan.destination, plan.labels_of)
        return cls(
            destination=destination,
            resume=resume,
            restart=restart,
            n_parts=n_parts,
            band=plan.rechunk.band,
            **content,
        )

    def to_json(self, staging_id: str) -> str:
        """Return the text of ``plan.json``, with the time of the staging."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_KEPT}
        kept["levels"] = [
            {"path": level.path, "factors": level.factors, "document": level.document}
            for level in self.levels
        ]
        kept["documents"] = [asdict(document) for document in self.documents]
        kept |= {"staging_id": staging_id, "fingerprint": self.fingerprint}
        kept["runner"] = self.runner and asdict(self.runner)
        return json.dumps(kept | {"started_s": time.time(), "version": __version__})

    @classmethod
    def from_plan(cls, destination: Destination, plan: dict[str, Any]) -> StageRequest:
        """Return what a ``plan.json`` asks for; raise `MetadataError` where it is not complete."""
        kept = {f.name: plan[f.name] for f in fields(cls) if f.name in plan.keys() - _NOT_KEPT}
        try:
            kept |= {
                "levels": tuple(map(_level, plan["levels"])),
                "documents": tuple(Document(**document) for document in plan["documents"]),
                "image": plan.get("image") and tuple(plan["image"]),
                "datatype": plan["datatype"] and DataType.from_basename(plan["datatype"]),
                "run_id": plan["run_id"],
            }
            kept["band"] = _band(plan.get("band"), kept["levels"][0])
            return cls(destination=destination, resume=True, resumes=plan["staging_id"], **kept)
        except (KeyError, TypeError, ValueError) as error:
            raise MetadataError(
                f"{destination.staging} does not say what was being written ({error!r}): remove it "
                "by restart=True (--restart)"
            ) from error


def _band(kept: int | None, finest: PlannedLevel) -> int | None:
    """Return the thickness of bands; None if a shard of level 0 is not cut like that."""
    array = finest.array
    if kept is None or not array.is_sharded:
        return None
    axis = row_axis_of(array)
    step, length = array.inner_chunk_shape[axis], array.object_shape[axis]
    is_possible = kept > 0 and kept % step == 0 and length % kept == 0
    return kept if is_possible else None


def _level(kept: dict[str, Any]) -> PlannedLevel:
    path, document, factors = kept["path"], kept["document"], tuple(kept["factors"])
    shape = parse_array_document(document).shape
    return PlannedLevel(path, shape=shape, factors=factors, document=document)
