"""The real test kit: nine small datasets in their true layouts, in POLYVIT_DATA_DIR, by default ../shared/data.

Tests that need it are marked `needs_data` and skip where it is absent. Another kit of the same layouts may be put
there: derive what you expect from its own lists.
"""

import os
from pathlib import Path

import pytest

DATA_DIR = Path(os.environ.get("POLYVIT_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA_DIR / "imagenet").is_dir(), reason=f"no test kit in {DATA_DIR}")
