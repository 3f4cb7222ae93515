from .trial import METRIC as METRIC
from .trial import PROGRESS as PROGRESS
from .trial import EarlyStopping as EarlyStopping
from .trial import Lines as Lines
from .trial import run_trial as run_trial
from .trial import trial_config as trial_config
from .trial import words as words
