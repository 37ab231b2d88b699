"""What a write asks of its staging, and the plan of the staging folder, which says it to others.

Plain values: whoever goes on with a write, or commits it, needs nothing else.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from ctlab_dask_zarr._version import __version__
from ctlab_dask_zarr.errors import MetadataError
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.receipts import Number
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.levels import DownsampleMethod
from ctlab_dask_zarr.planning.plan import Document, PlannedLevel, WritePlan
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.write.staging.labels import ImageIdentity

__all__ = ["StageRequest", "plain_mask_value"]


@dataclass(frozen=True)
class StageRequest:
    """Everything of a plan that staging, writing and committing need; plain values.

    Attributes
    ----------
    destination
        Where it will be.
    levels, documents
        As of the plan.
    overwrite, resume, restart
        As the user asked.
    identity, fingerprint
        What has to be the same to go on with an interrupted write.
    requested
        What was asked for of the metadata: a write of the same voxels that is committed, or shared
        with other jobs, is the same one only where this is too. None where it is not known.
    run_id
        Tells this write from every other one, in staging and in what is committed.
    mask_value
        Of masked voxels; None where the data type has none.
    downsample
        How a level becomes the next one.
    is_grey
        Whether voxels are grey values, for which viewers need a contrast, and not classes.
    n_parts
        Of how many jobs each writes a part; None for a write by one.
    resumes
        Id of the staging folder with the shards that are not written again; None where there are
        none.
    extends
        Hash of the root document of the store that gets further levels; None for a new store.
    image
        Of labels, what tells their image from another one.
    replaces
        Identity of the dataset that was there when the write was staged and is to be replaced; what
        came later is not.
    """

    destination: Destination
    levels: tuple[PlannedLevel, ...]
    documents: tuple[Document, ...]
    overwrite: bool
    resume: bool
    restart: bool
    identity: str
    fingerprint: str
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
        """Take from `plan` what is needed.

        `dataset_id` is the identifier that was given; None where it was made from the time.
        """
        return cls(
            destination=Destination.at(plan.destination, plan.labels_of),
            levels=plan.levels,
            documents=plan.documents,
            overwrite=plan.overwrite,
            resume=resume,
            restart=restart,
            identity=plan.identity,
            fingerprint=plan.fingerprint,
            run_id=run_id,
            requested={"dataset_id": dataset_id} | plan.requested,
            mask_value=plain_mask_value(plan.datatype),
            downsample=plan.downsample,
            is_grey=not plan.is_discrete,
            n_parts=n_parts,
            image=plan.image,
        )

    def to_json(self, staging_id: str) -> str:
        """Return the text of the staging folder's plan, with the time at which it was staged."""
        content = {
            "staging_id": staging_id,
            "run_id": self.run_id,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "requested": self.requested,
            "overwrite": self.overwrite,
            "mask_value": self.mask_value,
            "downsample": self.downsample,
            "is_grey": self.is_grey,
            "n_parts": self.n_parts,
            "extends": self.extends,
            "image": self.image,
            "replaces": self.replaces,
            "started_s": time.time(),
            "version": __version__,
            "levels": [
                {"path": level.path, "factors": level.factors, "document": level.document}
                for level in self.levels
            ],
            "documents": [asdict(document) for document in self.documents],
        }
        return json.dumps(content)

    @classmethod
    def from_plan(cls, destination: Destination, plan: dict[str, Any]) -> StageRequest:
        """Return what the plan of a staging folder asks for."""
        try:
            levels = tuple(
                PlannedLevel(
                    level["path"],
                    factors=tuple(level["factors"]),
                    shape=parse_array_document(level["document"]).shape,
                    document=level["document"],
                )
                for level in plan["levels"]
            )
            return cls(
                destination=destination,
                levels=levels,
                documents=tuple(Document(**document) for document in plan["documents"]),
                overwrite=plan["overwrite"],
                resume=True,
                restart=False,
                identity=plan["identity"],
                fingerprint=plan["fingerprint"],
                run_id=plan["run_id"],
                requested=plan.get("requested"),
                mask_value=plan["mask_value"],
                downsample=plan["downsample"],
                is_grey=plan["is_grey"],
                n_parts=plan["n_parts"],
                resumes=plan["staging_id"],
                extends=plan["extends"],
                image=plan.get("image") and tuple(plan["image"]),
                replaces=plan.get("replaces"),
            )
        except (KeyError, TypeError) as error:
            raise MetadataError(
                f"{destination.staging} does not say what was being written ({error!r}): remove it "
                "by restart=True (--restart)"
            ) from error


def plain_mask_value(datatype: DataType | None) -> Number | None:
    """Return the mask value of a data type as a plain number."""
    mask_value = None if datatype is None else datatype.mask_value
    return None if mask_value is None else mask_value.item()
