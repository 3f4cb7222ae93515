from .plan import SPARES as SPARES
from .plan import Plan as Plan
from .plan import PlannedBatch as PlannedBatch
from .plan import mixes as mixes
from .plan import rank_slice as rank_slice
from .schedule import Schedule as Schedule
from .schedule import build_schedule as build_schedule
