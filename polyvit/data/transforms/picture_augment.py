"""RandAugment and random erasing of a picture that has its final size.

In: image_HWC uint8, the example's own generator. Out: the same shape and type. Legend: H height, W width, C = 3
RGB. RandAugment is that of its paper (arXiv:1909.13719): `ops` of its 14 operations, drawn with replacement, all
at one magnitude. Ranges are timm's "increasing" ones: a larger magnitude never is the weaker change. Operations
are Pillow's. Random erasing: arXiv:1708.04896 with timm's ranges, filled with noise (timm's mode `pixel`).
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MOST = 10.0
"""The largest magnitude."""
FILL = (128, 128, 128)
"""Where a turned or moved picture leaves nothing."""
ERASED_AREA, ERASED_RATIO, ERASE_ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10
"""Share of the picture and height / width (evenly in the logarithm), as timm's RandomErasing."""


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda picture, m: kind(picture).enhance(1 + 0.9 * m)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda picture, m: picture,
    "auto_contrast": lambda picture, m: ImageOps.autocontrast(picture),
    "equalize": lambda picture, m: ImageOps.equalize(picture),
    "rotate": lambda picture, m: picture.rotate(30 * m, Image.Resampling.BILINEAR, fillcolor=FILL),
    "solarize": lambda picture, m: ImageOps.solarize(picture, 256 - int(256 * abs(m))),
    "colour": _enhanced(ImageEnhance.Color),
    "posterize": lambda picture, m: ImageOps.posterize(picture, 8 - int(4 * abs(m))),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda picture, m: _affine(picture, 1, 0.3 * m, 0, 0, 1, 0),
    "shear_y": lambda picture, m: _affine(picture, 1, 0, 0, 0.3 * m, 1, 0),
    "translate_x": lambda picture, m: _affine(picture, 1, 0, 0.45 * m * picture.width, 0, 1, 0),
    "translate_y": lambda picture, m: _affine(picture, 1, 0, 0, 0, 1, 0.45 * m * picture.height),
}
"""{name: (picture, signed magnitude in [-1, 1]) -> picture}; those that have no direction take its size."""


def rand_augment(image_HWC: np.ndarray, ops: int, magnitude: float, rng: np.random.Generator) -> np.ndarray:
    """`ops` operations one after the other, each with its direction drawn. magnitude: 0 to MOST."""
    picture, operations = Image.fromarray(image_HWC), list(OPERATIONS.values())
    for _ in range(ops):
        operation, sign = operations[int(rng.integers(len(operations)))], 1 - 2 * int(rng.integers(2))
        picture = operation(picture, sign * magnitude / MOST)
    return np.asarray(picture)


def random_erasing(image_HWC: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """With `probability` one rectangle is noise, each channel of each pixel drawn evenly from 0 to 255."""
    if rng.random() >= probability:
        return image_HWC
    height, width = image_HWC.shape[:2]
    for _ in range(ERASE_ATTEMPTS):
        area = rng.uniform(*ERASED_AREA) * height * width
        ratio = math.exp(rng.uniform(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            erased_HWC = image_HWC.copy()
            noise = rng.integers(0, 256, (rows, columns, image_HWC.shape[2]), np.uint8)
            erased_HWC[top : top + rows, left : left + columns] = noise
            return erased_HWC
    return image_HWC
