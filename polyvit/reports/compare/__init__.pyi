from .comparison import Comparison as Comparison
from .comparison import baselines_of as baselines_of
from .comparison import compare as compare
from .comparison import leaderboard as leaderboard
from .comparison import parameters_saved as parameters_saved
from .page import write_report as write_report
from .run_summary import read_run as read_run
from .run_summary import read_runs as read_runs
