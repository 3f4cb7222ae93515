from .panels import drawn_input as drawn_input
from .panels import panel as panel
from .report import write_report as write_report
