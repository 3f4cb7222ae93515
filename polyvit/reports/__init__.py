"""Pictures, tables and pages that people look at; the only package that draws.

In: data about runs and data sets. Out: PNG files and HTML pages.
Read: style, html, schedule_plot, explanation, neighbours, interference, compare/, inspect/, evaluation/.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
