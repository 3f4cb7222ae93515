from .first_config import FirstConfig as FirstConfig
from .first_config import init as init
from .first_config import summary as summary
from .local_training import LocalRun as LocalRun
from .local_training import train as train
from .task_order import TaskOrder as TaskOrder
from .task_order import task_schedule as task_schedule
