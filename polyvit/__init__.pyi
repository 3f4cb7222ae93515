from .config import RunConfig as RunConfig
from .config import load_config as load_config
from .deploy import Predictor as Predictor
from .deploy import load as load
from .errors import BadMedia as BadMedia
from .errors import UserError as UserError
from .model import PolyViT as PolyViT

__version__: str
