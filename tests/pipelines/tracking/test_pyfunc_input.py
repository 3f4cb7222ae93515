"""What a registered model takes for files, and says to what holds none; through MLflow: tests/deploy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from pipelines.tracking.pyfunc_model import PolyViTModel, as_files


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame({"file": ["a.jpg"]}), "a table of 1 rows with the columns ['file']"),
        (pd.DataFrame(index=range(2)), "a table of 2 rows"),
        ({"file": ["a.jpg"]}, "a table of 1 rows with the columns ['file']"),
        ([], "list, empty"),
        ("a.jpg", "a bare str: put it into a list"),
        (b"abc", "a bare bytes: put it into a list"),
        (None, "NoneType"),
        ([3], "int as path"),
        ([["a.jpg"]], "list as path"),
        (np.zeros((3, 3), np.uint8), "ndarray as path"),
        ([{"file": "a.jpg"}], "a row with the keys ['file']"),
        ([{"path": "a.jpg"}, {}], "a row with the keys []"),
        (pd.DataFrame({"path": []}), "a table of 0 rows"),
        (pd.DataFrame({"path": [["a.jpg", "b.jpg"]]}), "list as path"),
        (pd.DataFrame({"content": ["not bytes"]}), "a text as content that is not base64"),
    ],
)
def test_what_is_no_table_of_files_is_refused(table: object, words: str) -> None:
    with pytest.raises(MlflowException, match="Send a list of paths") as refused:
        PolyViTModel().predict(None, table)
    assert words in str(refused.value)
    assert refused.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    "given",
    [
        ["a.jpg"],
        ("a.jpg",),
        np.array(["a.jpg"]),
        pd.Series(["a.jpg"], name="file"),
        [{"path": "a.jpg"}],
        {"path": "a.jpg"},
        {"path": ["a.jpg"]},
        {"path": np.array(["a.jpg"])},
        pd.DataFrame({"path": ["a.jpg"]}),
    ],
)
def test_paths_come_in_many_shapes(given: object) -> None:
    assert as_files(given) == [Path("a.jpg")]


def test_contents_are_bytes_or_base64_and_a_row_may_have_neither() -> None:
    table = pd.DataFrame({"path": [None, "a.jpg", None], "content": [b"abc", None, None]})
    assert as_files(table) == [b"abc", Path("a.jpg"), b""]
    assert as_files([b"abc", "a.jpg"]) == [b"abc", Path("a.jpg")]
    assert as_files([{"content": "YWJj"}]) == [b"abc"]
