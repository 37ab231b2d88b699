"""Raw voxels with a header of NRRD beside them, which ParaView, Slicer, Avizo and Drishti open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctlab_dask_zarr.export.raw import RawKind
from ctlab_dask_zarr.formats.raw_headers import nrrd_header
from ctlab_dask_zarr.volume import Volume


@dataclass(frozen=True)
class NrrdKind(RawKind):
    """A file of raw voxels, with a header in a file of its own beside it."""

    header_name: str
    header: str
    name = "raw with a header"

    @classmethod
    def of(cls, volume: Volume, header_name: str, data_name: str) -> NrrdKind:
        """Return a volume as this kind, in files of these names; raises where it cannot be one."""
        facts = volume.shape, volume.dtype
        header = nrrd_header(*facts, volume.voxel_size, volume.voxel_unit, volume.origin, data_name)
        return cls(*facts, header_name=header_name, header=header)

    def settings(self) -> dict[str, Any]:
        """Return what the header says."""
        return {"header": self.header}

    def header_file(self) -> tuple[str, bytes]:
        """Return name and content of the header."""
        return self.header_name, self.header.encode()
