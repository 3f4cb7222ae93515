"""What a registered model says to a table that has no files in it; through MLflow: tests/deploy."""

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from pipelines.tracking.pyfunc_model import PolyViTModel


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame({"file": ["a.jpg"]}), "a table of 1 rows without `path`"),
        (pd.DataFrame(index=range(2)), "a table of 2 rows"),
        (pd.DataFrame({"path": []}), "a table of 0 rows"),
        (pd.DataFrame({"path": [["a.jpg", "b.jpg"]]}), "list as path"),
        (pd.DataFrame({"content": ["not bytes"]}), "str as content"),
    ],
)
def test_what_is_no_table_of_files_is_refused(table: pd.DataFrame, words: str) -> None:
    with pytest.raises(MlflowException, match="Send a table with a row a file") as refused:
        PolyViTModel().predict(None, table)
    assert words in str(refused.value)
    assert refused.value.get_http_status_code() == 400
