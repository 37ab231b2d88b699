"""Which codec a write has: one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ctlab_dask_zarr.errors import InvalidArgumentError
from ctlab_dask_zarr.formats.codecs import array_kwargs, codec_syntax


def refuse_wrong_codec(codec: Any) -> None:
    """Raise `InvalidArgumentError` where `codec` is not one as users write it, and not None."""
    if not isinstance(codec, str | None):
        raise InvalidArgumentError(
            f"codec={codec!r} is not text: write {codec_syntax()}; a codec of zarr goes into "
            "create_array_kwargs={'compressors': ...}"
        )
    if codec is not None:
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
