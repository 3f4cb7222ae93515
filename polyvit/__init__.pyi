from .config import RunConfig as RunConfig
from .config import load_config as load_config
from .deploy import Predictor as Predictor
from .deploy import TrainedModel as TrainedModel
from .deploy import from_pretrained as from_pretrained
from .deploy import load as load
from .deploy import save_pretrained as save_pretrained
from .errors import BadMedia as BadMedia
from .errors import UserError as UserError
from .model import PolyViT as PolyViT
from .quickstart import LocalRun as LocalRun
from .quickstart import init as init
from .quickstart import task_schedule as task_schedule
from .quickstart import train as train
from .training import Callback as Callback
from .training import RunInfo as RunInfo
from .training import StepReport as StepReport

__version__: str
