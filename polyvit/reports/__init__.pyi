from .neighbours import draw_neighbours as draw_neighbours
from .schedule_plot import draw_schedule as draw_schedule
from .style import amount as amount
