"""The HTTP service's deployments on Ray Serve.

In: requests with media files. Out: their classes as JSON.
Read: deployments, http_requests, front_page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
