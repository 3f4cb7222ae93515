"""The faults of `tests/benchmarks/mutations.py` fit the code as it is now."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAULTS = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "mutations.py"))["FAULTS"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_text_is_there_once_and_its_tests_too(fault: object) -> None:
    assert (ROOT / fault.file).read_text().count(fault.old) == 1  # type: ignore[attr-defined]
    assert all((ROOT / folder).exists() for folder in fault.tests)  # type: ignore[attr-defined]
