from .from_vit import LoadReport as LoadReport
from .from_vit import check_init as check_init
from .from_vit import init_problems as init_problems
from .from_vit import initialise as initialise
