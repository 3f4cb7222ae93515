"""What an evaluation shows beyond a number: `polyvit evaluate --report`.

In: `TaskDetail`s. Out: report.html, and its tables and pictures as files.
Read: charts, panels, worst_sheet, report.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
