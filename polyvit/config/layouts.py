"""The table of layouts: a layout is one entry here and one file in `polyvit/data/layouts/`.

A config's `plugins.layouts` adds more (`modalities.py`).
"""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

LAYOUTS: dict[str, str] = {
    "imagenet": "polyvit.data.layouts.imagenet:LAYOUT",
    "cifar10": "polyvit.data.layouts.cifar:CIFAR10",
    "cifar100": "polyvit.data.layouts.cifar:CIFAR100",
    "pets": "polyvit.data.layouts.pets:LAYOUT",
    "resisc45": "polyvit.data.layouts.resisc45:LAYOUT",
    "kinetics": "polyvit.data.layouts.kinetics:LAYOUT",
    "moments": "polyvit.data.layouts.moments:LAYOUT",
    "audioset": "polyvit.data.layouts.audioset:LAYOUT",
    "vggsound": "polyvit.data.layouts.vggsound:LAYOUT",
    "ucf101": "polyvit.data.layouts.ucf101:LAYOUT",
    "esc50": "polyvit.data.layouts.esc50:LAYOUT",
    "kinetics_sounds": "polyvit.data.layouts.kinetics_sounds:LAYOUT",
    "charades": "polyvit.data.layouts.charades:LAYOUT",
    "imagefolder": "polyvit.data.layouts.imagefolder:LAYOUT",
    "csv": "polyvit.data.layouts.csvfile:LAYOUT",
    "tokens": "polyvit.data.layouts.tokens:LAYOUT",
    "webdataset": "polyvit.data.layouts.webdataset:LAYOUT",
    "parquet": "polyvit.data.layouts.parquet:LAYOUT",
}
"""{name: where its `Layout` is}."""


def _known(name: str) -> str:
    if name not in LAYOUTS:
        *first, last = LAYOUTS
        message = f"unknown layout {name!r}; give {', '.join(first)} or {last}"
        raise PydanticCustomError("choice", message)  # type: ignore[arg-type]
    return name


LayoutName = Annotated[str, AfterValidator(_known)]
"""A name in LAYOUTS."""
