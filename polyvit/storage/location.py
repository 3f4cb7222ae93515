"""The address of data or checkpoints: a folder, or a URL of an object store.

In: what a user wrote. Out: a `Location`, the same on every machine.
"""

from pathlib import Path
from urllib.parse import urlsplit

Location = Path | str
"""A folder as a path, or an object store's prefix as a URL (s3://, gs://, any URL of pyarrow or fsspec)."""


def is_url(location: Location) -> bool:
    """Whether it is a URL of an object store and not a folder."""
    return isinstance(location, str) and "://" in location


def as_location(text: str) -> Location:
    """What a user wrote, the same from every working directory: a URL as it is, a folder as an absolute path."""
    if text.startswith("file://"):
        return Path(urlsplit(text).path)
    return text if is_url(text) else Path(text).expanduser().absolute()


def under(address: str, name: str) -> str:
    """The address of `name` below a folder or URL; a URL's query (endpoint, region) stays at its end."""
    prefix, mark, query = address.partition("?") if is_url(address) else (address, "", "")
    return f"{prefix.rstrip('/')}/{name}{mark}{query}"
