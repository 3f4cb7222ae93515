from .batch_predict import PredictJob as PredictJob
from .batch_predict import list_files as list_files
from .batch_predict import predict_files as predict_files
from .evaluate_job import evaluate_checkpoint as evaluate_checkpoint
from .extract_features import feature_splits as feature_splits
from .extract_features import load_or_extract as load_or_extract
from .inspect_job import draw_sheets as draw_sheets
from .inspect_job import examine_all as examine_all
