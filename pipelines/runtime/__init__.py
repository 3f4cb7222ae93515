"""What every command shares: the Ray cluster, the terminal, signals.

In: a config and a command line. Out: a running cluster, progress, exit statuses.
Read: command_line, examples, ray_cluster, workers, placement, progress, signals, slow_notice, ray_private.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
