from .cifar import pixels_NHWC as pixels_NHWC
from .index_cache import scan_task as scan_task
from .scanner import scan as scan
from .webdataset import INDEX as INDEX
