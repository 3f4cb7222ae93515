"""What tests of several decoders share: the damaged files of the kit, and how alike two pictures are."""

import csv

import numpy as np
from kit import DATA_DIR


def damaged_rows(folder: str) -> list[dict[str, str]]:
    """Rows of the kit's manifest; none without the kit."""
    manifest = DATA_DIR / "broken" / "MANIFEST.csv"
    if not manifest.is_file():
        return []
    with manifest.open() as lines:
        return [row for row in csv.DictReader(lines) if row["file"].startswith(folder + "/")]


def psnr(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a_HWC.astype(float) - b_HWC) ** 2))))
