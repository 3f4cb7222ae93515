"""The root at a location.

In: a folder, a URL, or a root as it is. Out: a `LocalRoot` or a `RemoteRoot`.
"""

from functools import lru_cache
from pathlib import Path

from polyvit.storage.local import LocalRoot
from polyvit.storage.location import Location, is_url
from polyvit.storage.remote import RemoteRoot
from polyvit.storage.root import Root


def open_root(location: Location | Root) -> Root:
    """The root at a location. Raises UserError for a URL that cannot be opened."""
    if isinstance(location, Path):
        return LocalRoot(location)
    if isinstance(location, str):
        return open_remote(location) if is_url(location) else LocalRoot(Path(location))
    return location


@lru_cache(maxsize=64)
def open_remote(url: str) -> RemoteRoot:
    """The root at a URL, one for all that use it. Raises UserError for a URL that cannot be opened."""
    return RemoteRoot(url)
