"""A URL as a file system of pyarrow: S3 and Google with time limits, every other one that pyarrow or fsspec opens.

In: s3://bucket/prefix, gs://bucket/prefix or another URL. Out: (file system, path in it).

Credentials come from the environment or the AWS / Google configuration, never from the URL (which MLflow shows).
In the query: `endpoint_override=host:port`, `scheme=http`, `anonymous=true` for a public bucket, S3's `region`;
S3's endpoint may be AWS_ENDPOINT_URL too.
"""

import contextlib
import os
from datetime import timedelta
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from fsspec.core import url_to_fs
from pyarrow import fs

from polyvit.errors import UserError

CONNECT_S, REQUEST_S = 5.0, 20.0
"""Limits of one S3 request; the second is the time without a byte."""


def open_filesystem(address: str) -> tuple[fs.FileSystem, str]:
    """A URL as (file system, path in it). Raises UserError where no library knows it, or it holds a password."""
    parts = urlsplit(address)
    if parts.password or (parts.username and parts.scheme in ("s3", "gs", "gcs")):
        raise UserError(
            f"{parts.scheme}://...@{parts.hostname}: a URL with credentials in it would be shown in logs and in"
            " MLflow; put them into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or the store's"
            " own configuration"
        )
    try:
        if parts.scheme == "s3":
            return _s3(address)
        if parts.scheme in ("gs", "gcs"):
            return _gcs(address)
        return fs.FileSystem.from_uri(address)
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as first:
        try:
            foreign, path = url_to_fs(address)
            return fs.PyFileSystem(fs.FSSpecHandler(foreign)), path.rstrip("/")
        except (ImportError, OSError, ValueError) as second:
            raise UserError(
                f"{address} cannot be opened: pyarrow says {first}; fsspec says {second}. Give a folder, s3://bucket/prefix,"
                " gs://bucket/prefix, or a URL whose fsspec package is installed"
            ) from None


def _of_a_bucket(address: str, keys: set[str]) -> tuple[str, dict[str, str]]:
    """Path with the bucket, and what the query says. Raises UserError for a query of other keys, or no bucket."""
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    if unknown := set(query) - keys:
        raise UserError(f"{address}: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(keys))}")
    if not parts.hostname:
        raise UserError(f"{address} names no bucket; give {parts.scheme}://bucket/prefix")
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/"), query


def _gcs(address: str) -> tuple[fs.FileSystem, str]:
    path, query = _of_a_bucket(address, {"scheme", "endpoint_override", "anonymous"})
    filesystem = fs.GcsFileSystem(
        anonymous=query.get("anonymous", "").lower() == "true",
        scheme=query.get("scheme", "https"),
        endpoint_override=query.get("endpoint_override"),
        retry_time_limit=timedelta(seconds=REQUEST_S),  # its own limit is 15 minutes
    )
    return filesystem, path


def _s3(address: str) -> tuple[fs.FileSystem, str]:
    path, query = _of_a_bucket(address, {"region", "scheme", "endpoint_override", "anonymous"})
    region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and "endpoint_override" not in query and "AWS_ENDPOINT_URL" not in os.environ:
        with contextlib.suppress(OSError):  # without an answer, pyarrow takes the one of the user's configuration
            region = fs.resolve_s3_region(path.partition("/")[0])
    filesystem = fs.S3FileSystem(
        anonymous=query.get("anonymous", "").lower() == "true",
        region=region,
        scheme=query.get("scheme"),
        endpoint_override=query.get("endpoint_override"),
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )
    return filesystem, path
