from .schedule_plot import draw_schedule as draw_schedule
from .schedule_plot import label_shares as label_shares
from .schedule_plot import result_rows as result_rows
