"""The index of a task: one row an example, in columns, in one Parquet file.

In: what a layout's scan gives. Out: a `Scan`, its `Examples`, and the file that keeps them.
Read: examples, io, validation, report.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
