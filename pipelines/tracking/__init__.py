"""MLflow: runs, curves, artifacts, the model registry. The only package that imports mlflow.

In: configs, metrics, files. Out: MLflow runs and registered models.
Read: runs, side_runs, registry, pyfunc_model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
