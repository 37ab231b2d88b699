"""Which codec a write has: the one that was asked for, or one that was chosen by measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.codecs import AUTO_CODECS, array_kwargs, codec_syntax
from ctlab_dask_zarr.formats.zarr_array import CodecSpec, parse_array_document
from ctlab_dask_zarr.planning.layout import Layout
from ctlab_dask_zarr.planning.plan import array_document

#: What is written where nothing was measured.
DEFAULT_CODEC = "zstd"
#: What is measured; a shuffle does nothing to voxels of one byte, and is left out there.
_CANDIDATES = (
    *("zstd:1", DEFAULT_CODEC),
    *("blosc:zstd:1:shuffle", "blosc:zstd:3:shuffle", "blosc:zstd:5:shuffle"),
    *("blosc:zstd:1:bitshuffle", "blosc:zstd:3:bitshuffle", "blosc:zstd:5:bitshuffle"),
    *("blosc:lz4:5:shuffle", "blosc:lz4:5:bitshuffle"),
)
#: Arguments of zarr.create_array that say what the codecs are.
OF_CODECS = frozenset({"compressors", "filters", "serializer"})
#: Of codecs whose sizes differ by less than this the fastest is taken, and the default before all.
_SAME_SIZE = 0.01
#: Speeds are measured; one that is less than this below the pace still keeps it.
_SAME_SPEED = 0.1


class MeasuredCodec(NamedTuple):
    """What a codec makes of the sample.

    `ratio` is of the sizes before and after, `mb_per_s` the speed of encoding in MB (10^6 bytes of
    voxels) a second of one thread's processor time.
    """

    codec: str
    ratio: float
    mb_per_s: float


def refuse_wrong_codec(codec: Any, create_array_kwargs: Mapping[str, Any] | None) -> None:
    """Raise `InvalidArgumentError` where `codec` is not one as users write it, and not None."""
    if not isinstance(codec, str | None):
        raise InvalidArgumentError(
            f"codec={codec!r} is not text: write {codec_syntax()}; a codec of zarr goes into "
            "create_array_kwargs={'compressors': ...}"
        )
    if codec in AUTO_CODECS:
        given = sorted(OF_CODECS.intersection(create_array_kwargs or ()))
        if given:
            raise InvalidArgumentError(
                f"codec={codec!r} chooses the codecs, and create_array_kwargs says {given[0]!r}: "
                "pass one of them"
            )
    elif codec is not None:
        try:
            array_kwargs(codec)
        except ValueError as error:
            raise InvalidArgumentError(f"codec={error}") from None


def document_with_codec(
    make_document: Callable[..., str], given: Mapping[str, Any], codec: str | None
) -> str:
    """Make an array's document with a codec and the arguments of zarr that were given beside it."""
    if codec is None:
        return make_document(create_array_kwargs=given)
    document = make_document(create_array_kwargs={**given, **array_kwargs(codec)})
    if "compressors" in given and make_document(create_array_kwargs=given) != document:
        raise InvalidArgumentError(
            f"codec={codec!r} and create_array_kwargs={{'compressors': ...}} are different codecs: "
            "pass one of them"
        )
    return document


def candidate_chains(layout: Layout, dtype: np.dtype[Any]) -> dict[str, tuple[CodecSpec, ...]]:
    """Return the codecs worth measuring for an array, each with its chain."""
    chains = {}
    for codec in _CANDIDATES:
        if dtype.itemsize == 1 and codec.endswith(":shuffle"):
            continue
        document = array_document(
            layout,
            dtype,
            fill_value=dtype.type(0),
            dimension_names=tuple(map(str, range(len(layout.shape)))),
            attributes={},
            separator_threshold=None,
            create_array_kwargs=array_kwargs(codec),
        )
        chains[codec] = parse_array_document(document).codecs
    return chains


def choose_codec(
    asked: str, measured: Sequence[MeasuredCodec], source_mb_per_s: float | None
) -> dict[str, Any]:
    """Choose among codecs that were measured; return the choice as plain JSON, with its reason.

    `asked` is one of `AUTO_CODECS`; `source_mb_per_s` is the speed at which one thread makes the
    blocks of the source, None where that is not known. The default is among those measured.
    """
    default = next(m for m in measured if m.codec == DEFAULT_CODEC)
    smallest = max(measured, key=lambda m: m.ratio)
    pace = default.mb_per_s
    if asked == "auto:fast":
        # Bytes saved are 1 - 1 / ratio of all.
        saving = [m for m in measured if 1 - 1 / m.ratio >= (1 - 1 / smallest.ratio) / 2]
        best = max(saving, key=lambda m: m.mb_per_s)
        why = "the fastest of those that save at least half of the bytes that the best one saves"
    elif asked == "auto:small":
        best = _smallest(measured)
        why = "the smallest"
    else:
        as_fast = f"{DEFAULT_CODEC} does"
        if source_mb_per_s is not None and source_mb_per_s < pace:
            pace, as_fast = source_mb_per_s, "a thread makes blocks of the source"
        best = _smallest([m for m in measured if m.mb_per_s >= pace * (1 - _SAME_SPEED)])
        why = f"the smallest of those that encode as fast as {as_fast}, {pace:.0f} MB/s"
    less = 1 - default.ratio / best.ratio
    compared = f"{abs(less):.1%} {'smaller' if less > 0 else 'larger'} than {DEFAULT_CODEC}"
    return {
        "asked": asked,
        "codec": best.codec,
        "reason": why if best is default else f"{why}; {compared}",
        "source_mb_per_s": source_mb_per_s and round(source_mb_per_s, 1),
        "measured": [
            {"codec": m.codec, "ratio": round(m.ratio, 4), "mb_per_s": round(m.mb_per_s, 1)}
            for m in measured
        ],
    }


def default_choice(asked: str, reason: str) -> dict[str, Any]:
    """Return the choice of the default, where nothing could be measured."""
    return {"asked": asked, "codec": DEFAULT_CODEC, "reason": reason, "measured": []}


def _smallest(measured: Sequence[MeasuredCodec]) -> MeasuredCodec:
    """Return the codec with the largest ratio; of those as good the default, or the fastest."""
    largest = max(m.ratio for m in measured)
    good = [m for m in measured if m.ratio >= largest * (1 - _SAME_SIZE)]
    return max(good, key=lambda m: (m.codec == DEFAULT_CODEC, m.mb_per_s))
