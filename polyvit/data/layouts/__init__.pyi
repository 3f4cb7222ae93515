from .cifar import pixels_NHWC as pixels_NHWC
from .index_cache import index_settings as index_settings
from .index_cache import scan_task as scan_task
from .scanner import load_layout as load_layout
from .scanner import scan as scan
from .scanning import Layout as Layout
from .tokens import TOKENS_METADATA as TOKENS_METADATA
from .webdataset import INDEX as INDEX
