from .batch_predict import LabelJob as LabelJob
from .batch_predict import label as label
from .batch_predict import list_files as list_files
from .evaluate_job import evaluate_checkpoint as evaluate_checkpoint
from .extract_features import feature_splits as feature_splits
from .extract_features import load_or_extract as load_or_extract
from .inspect_job import draw_sheets as draw_sheets
from .inspect_job import look_at_all as look_at_all
