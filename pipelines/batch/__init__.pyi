from .batch_predict import PredictJob as PredictJob
from .batch_predict import list_files as list_files
from .batch_predict import predict_files as predict_files
from .extract_features import cached_or_extracted as cached_or_extracted
from .extract_features import wanted_features as wanted_features
from .inspect_job import draw_sheets as draw_sheets
from .inspect_job import examine_all as examine_all
