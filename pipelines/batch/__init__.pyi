from .batch_predict import LabelJob as LabelJob
from .batch_predict import label as label
from .batch_predict import list_files as list_files
from .extract_features import cached_or_extracted as cached_or_extracted
from .extract_features import wanted_features as wanted_features
from .inspect_job import draw_sheets as draw_sheets
from .inspect_job import examine_all as examine_all
