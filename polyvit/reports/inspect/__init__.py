"""What is in a task's data, and what is wrong with it.

In: examples and their media. Out: reports, findings, contact sheets, and report.html.
Read: examine, examine_worker, display, displays/, task_report, finding, findings, charts, contact_sheet, page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
