"""What is left of a write, and how jobs share it."""

from __future__ import annotations

import pytest

from ctlab_dask_zarr.planning.layout import resolve_layout
from ctlab_dask_zarr.write.staging.remaining import part_of


@pytest.mark.parametrize("n_parts", [1, 2, 4, 6, 9])
def test_parts_are_runs_of_shards_of_nearly_one_length(n_parts: int) -> None:
    layout = resolve_layout((1024, 512, 1536))
    parts = [part_of(coords, layout, n_parts) for coords in layout.task_coords()]
    assert parts == sorted(parts)
    assert set(parts) <= set(range(1, n_parts + 1))
    counts = [parts.count(part) for part in range(1, n_parts + 1)]
    assert max(counts) - min(counts) <= 1
    if n_parts == 4:
        assert counts == [2, 1, 2, 1]
