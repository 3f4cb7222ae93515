from .cluster_model import Hardware as Hardware
from .cluster_model import run_cost as run_cost
from .run_estimate import estimate as estimate
