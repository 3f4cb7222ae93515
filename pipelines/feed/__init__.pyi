from .task_dataset import dataset as dataset
from .worker_feed import RayFeed as RayFeed
from .worker_feed import make_decoder as make_decoder
from .worker_feed import minibatches as minibatches
