"""Jobs over many files or examples, on Ray Data.

In: files or indexes, and a model or a config. Out: Parquet files, reports.
Read: inspect_job, evaluate_job, extract_features, batch_predict, embed_job, file_jobs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
