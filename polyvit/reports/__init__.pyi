from .explanation import check_explainable as check_explainable
from .explanation import draw_explanation as draw_explanation
from .interference import interference_proposals as interference_proposals
from .interference import write_interference as write_interference
from .neighbours import draw_neighbours as draw_neighbours
from .schedule_plot import draw_schedule as draw_schedule
from .style import amount as amount
