"""Finished runs side by side.

In: run folders. Out: a `Comparison`, pictures, and report.html.
Read: run_summary, settings, spread, comparison, run_styles, heat_maps, curves, tradeoffs, sizes,
paper, page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
