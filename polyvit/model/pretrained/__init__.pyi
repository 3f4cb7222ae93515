from .convert import check_finite as check_finite
from .convert import nonfinite as nonfinite
from .from_avbert import avbert_values as avbert_values
from .from_avbert import initialise_avbert as initialise_avbert
from .from_vit import LoadReport as LoadReport
from .from_vit import fit_problems as fit_problems
from .from_vit import initialise as initialise
from .vit_files import load_vit as load_vit
