"""Uploads to S3 that were cut off: they are not listed as objects, and cost as much."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from ctlab_dask_zarr.store.objects import endpoint_in_force

__all__ = ["EndedUploads", "abort_uploads"]


class EndedUploads(NamedTuple):
    """How many uploads were ended, and why others may be left; None where none are."""

    n_uploads: int
    problem: str | None = None


def abort_uploads(path: str, options: tuple[tuple[str, str], ...]) -> EndedUploads:
    """End every unfinished upload below an S3 URL; that this cannot be done is no error.

    obstore has no request for it, so botocore is used. Stores that are not S3 forget them by
    themselves.
    """
    parts = urlsplit(path)
    if parts.scheme != "s3":
        return EndedUploads(0)
    try:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return EndedUploads(0, "botocore is not installed")
    given = dict(options)
    n_uploads = 0
    try:
        # What obstore knows and botocore does not, by other names in the environment.
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=endpoint_in_force("s3", given),
            region_name=given.get("region") or os.environ.get("AWS_REGION"),
            config=Config(connect_timeout=10, retries={"total_max_attempts": 3}),
        )
        pages = client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=parts.netloc, Prefix=f"{parts.path.strip('/')}/"):
            for upload in page.get("Uploads", ()):
                # It may have been ended meanwhile.
                with suppress(client.exceptions.NoSuchUpload):
                    client.abort_multipart_upload(
                        Bucket=parts.netloc, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    n_uploads += 1
    # A ValueError is what a wrong endpoint is to botocore.
    except (BotoCoreError, ClientError, ValueError) as error:
        return EndedUploads(n_uploads, str(error))
    return EndedUploads(n_uploads)
