from .driver import cotrain as cotrain
from .reporting import METRIC as METRIC
from .reporting import PROGRESS as PROGRESS
from .run_dir import RunDir as RunDir
from .run_dir import find_run as find_run
from .run_dir import new_run as new_run
from .run_dir import resumed_config as resumed_config
