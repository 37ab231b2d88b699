"""Uploads to S3 that were cut off: they are not listed as objects, and cost as much."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

__all__ = ["abort_uploads"]


def abort_uploads(path: str, options: tuple[tuple[str, str], ...]) -> int | None:
    """End every unfinished upload below an S3 URL; return how many there were.

    obstore has no request for it, so botocore is used: None where that is not installed. Zero for
    whatever is not on S3; other stores forget them by themselves.
    """
    parts = urlsplit(path)
    if parts.scheme != "s3":
        return 0
    try:
        import botocore.session
    except ImportError:
        return None
    given = dict(options)
    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=given.get("endpoint"), region_name=given.get("region")
    )
    n_uploads = 0
    prefix = parts.path.strip("/")
    pages = client.get_paginator("list_multipart_uploads")
    for page in pages.paginate(Bucket=parts.netloc, Prefix=f"{prefix}/"):
        for upload in page.get("Uploads", ()):
            # It may have been ended meanwhile.
            with suppress(client.exceptions.NoSuchUpload):
                client.abort_multipart_upload(
                    Bucket=parts.netloc, Key=upload["Key"], UploadId=upload["UploadId"]
                )
                n_uploads += 1
    return n_uploads
