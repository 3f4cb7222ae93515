"""Where bytes lie: a folder, or a prefix of an object store.

In: a path or URL. Out: a `Root` that lists, reads and writes there; requests to an object store are tried again.
Read: location, root, local, filesystems, remote, opening, resolving, records, places, lease.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
