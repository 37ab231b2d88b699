"""What a write asks of its staging folder, and how the folder keeps it in ``plan.json``.

These are plain values: whoever goes on with a write, or commits it, needs nothing else.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.levels import DownsampleMethod
from ctlab_dask_zarr.planning.plan import Document, PlannedLevel, WritePlan, plan_fingerprint
from ctlab_dask_zarr.store.destination import Destination

__all__ = ["ImageIdentity", "StageRequest", "plain_mask_value"]

#: Hashes of an image's voxels, and of their place and size.
ImageIdentity = tuple[str, str]
#: What one run asks, and the next one may ask otherwise.
_NOT_KEPT = {"destination", "resume", "restart", "resumes"}


@dataclass(frozen=True)
class StageRequest:
    """Everything that staging, writing and committing need of a plan.

    Attributes
    ----------
    identity
        Must be the same for an interrupted write to go on.
    run_id
        Tells this run from every other one, in the staging folder and in what is committed.
    mask_value
        None where the data type has none.
    requested
        What the user asked of the metadata. A write of the same voxels that is committed, or is
        shared with other jobs, is the same write only if this is the same too. None: not known.
    is_grey
        Whether voxels are grey values, for which viewers need a contrast.
    n_parts
        Number of jobs that share the write; None for a write by one.
    resumes
        Id of the staging folder whose shards are not written again.
    extends
        Hash of the root document of the store that gets further levels; None for a new store.
    image
        Tells the image of labels from any other one.
    replaces
        Identity of the dataset that this one replaces: the one that was there at the staging.
    """

    destination: Destination
    levels: tuple[PlannedLevel, ...]
    documents: tuple[Document, ...]
    overwrite: bool
    resume: bool
    restart: bool
    identity: str
    run_id: str
    mask_value: Number | None
    requested: dict[str, Any] | None = None
    downsample: DownsampleMethod = "mean"
    is_grey: bool = True
    n_parts: int | None = None
    resumes: str | None = None
    extends: str | None = None
    image: ImageIdentity | None = None
    replaces: str | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of `identity`."""
        return plan_fingerprint(self.identity)

    @property
    def n_existing(self) -> int:
        """Number of levels that are at the destination already."""
        return 0 if self.extends is None else 1

    @classmethod
    def of(
        cls,
        plan: WritePlan,
        run_id: str,
        *,
        resume: bool = False,
        restart: bool = False,
        n_parts: int | None = None,
        dataset_id: str | None = None,
    ) -> StageRequest:
        """Take from `plan` what is needed; `dataset_id` is the one that the user gave."""
        return cls(
            destination=Destination.at(plan.destination, plan.labels_of),
            levels=plan.levels,
            documents=plan.documents,
            overwrite=plan.overwrite,
            resume=resume,
            restart=restart,
            identity=plan.identity,
            run_id=run_id,
            requested={"dataset_id": dataset_id} | plan.requested,
            mask_value=plain_mask_value(plan.datatype),
            downsample=plan.downsample,
            is_grey=not plan.is_discrete,
            n_parts=n_parts,
            image=plan.image,
        )

    def to_json(self, staging_id: str) -> str:
        """Return the text of ``plan.json``, with the time of the staging."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_KEPT}
        return json.dumps(
            kept
            | {
                "staging_id": staging_id,
                "fingerprint": self.fingerprint,
                "started_s": time.time(),
                "version": __version__,
                "levels": [
                    {"path": level.path, "factors": level.factors, "document": level.document}
                    for level in self.levels
                ],
                "documents": [asdict(document) for document in self.documents],
            }
        )

    @classmethod
    def from_plan(cls, destination: Destination, plan: dict[str, Any]) -> StageRequest:
        """Return what a ``plan.json`` asks for.

        Raises
        ------
        MetadataError
            It is not complete.
        """
        kept = {f.name: plan[f.name] for f in fields(cls) if f.name in plan.keys() - _NOT_KEPT}
        try:
            kept |= {
                "levels": tuple(map(_level, plan["levels"])),
                "documents": tuple(Document(**document) for document in plan["documents"]),
                "image": plan.get("image") and tuple(plan["image"]),
            }
            resumes = plan["staging_id"]
            return cls(destination=destination, resume=True, restart=False, resumes=resumes, **kept)
        except (KeyError, TypeError) as error:
            raise MetadataError(
                f"{destination.staging} does not say what was being written ({error!r}): remove it "
                "by restart=True (--restart)"
            ) from error


def _level(fields: dict[str, Any]) -> PlannedLevel:
    return PlannedLevel(
        fields["path"],
        factors=tuple(fields["factors"]),
        shape=parse_array_document(fields["document"]).shape,
        document=fields["document"],
    )


def plain_mask_value(datatype: DataType | None) -> Number | None:
    """Return the mask value of a data type as a plain number."""
    mask_value = None if datatype is None else datatype.mask_value
    return None if mask_value is None else mask_value.item()
