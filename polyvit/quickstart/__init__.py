"""For notebooks and first steps: train in this process, see what a schedule does, start from one's own folders.

In: a config, or folders of data. Out: a run's folder and its model; a schedule; a config file.
Read: first_config, recognise, tables, local_training, notebook_config, task_order.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
