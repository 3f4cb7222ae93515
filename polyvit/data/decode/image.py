"""Image bytes to pixels, and pixels to the model's size.

In: the bytes of a JPEG, PNG or whatever else Pillow knows, judged by content, never by name.
Out: image_HWC, uint8 RGB; after `train_jpeg`, `train_image` or `eval_image` H, W = `size`.

Of a JPEG, training draws the crop from the header's size and decodes at 1/2, 1/4 or 1/8 where the crop stays at
least as large as the output; the crop then keeps its fractions of scaled pixels. (No wheel decodes a crop alone;
four fifths of a decoder's time go into the entropy code, which no crop avoids.) Evaluation always decodes whole.
"""

import io
import math

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from polyvit.config import ImageAugment
from polyvit.data.decode.containers import bad_media
from polyvit.data.transforms import Box, centre_cut, inception_box
from polyvit.errors import BadMedia

MAX_PIXELS = 2**26
"""67 million: above it a picture is refused unread, for a few kB can unpack to gigabytes. Pillow's own
warning begins at 89 million."""
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What Pillow may read: of its other formats some run programs (PostScript), and few are ever read by anyone."""
EVAL_RESIZE_RATIO = 448 / 384
"""Smaller side over input size when `eval_resize_size` is null: scenic's hres 448 for lres 384."""

# Decoding is parallel over processes; OpenCV's own threads would fight with them for the cores.
cv2.setNumThreads(0)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture as image_HWC, uint8 RGB.

    JPEGs are read by simplejpeg (libjpeg-turbo), everything else and CMYK JPEGs by Pillow. Rules:
    - A JPEG cut short, without its end marker, or with a broken bit stream is BadMedia: libjpeg would fill
      the rest with grey in silence. Stray bytes between segments, which real data sets hold, are borne.
    - 16-bit grey is scaled to 8 bits (v * 255 / 65535, rounded); palettes are looked up; alpha is dropped;
      of an animation the first frame counts.
    - EXIF orientation is NOT applied, as in the reference (tf.image.decode_jpeg ignores it).
    Raises BadMedia, also for more than `max_pixels` pixels.
    """
    if not data:
        raise BadMedia("image: the file is empty")
    with bad_media("image"):
        if data[:3] == b"\xff\xd8\xff":
            return _decode_jpeg(data, max_pixels)
        return _decode_with_pillow(data, max_pixels)


def _jpeg_sides(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) as a JPEG's header says; None where there is no such header."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(height, width, max_pixels)
    return height, width


def _decode_jpeg(data: bytes, max_pixels: int, shrink: int = 1) -> np.ndarray:
    """At 1 / `shrink` of its size, sides rounded up; whole where Pillow must read it."""
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(height, width, max_pixels)
        if colourspace in ("CMYK", "YCCK"):
            return _decode_with_pillow(data, max_pixels)
        least = (-(-height // shrink), -(-width // shrink)) if shrink > 1 else (0, 0)
        return simplejpeg.decode_jpeg(
            data, colorspace="RGB", strict=True, min_height=least[0], min_width=least[1], min_factor=shrink
        )
    except ValueError as error:
        if any(damage in str(error).lower() for damage in ("premature end", "bad huffman code")):
            raise
        # Lesser warnings and rare layouts: Pillow bears those, and still refuses a file that ends early.
        return _decode_with_pillow(data, max_pixels)


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        return picture_pixels(picture, max_pixels)


def picture_pixels(picture: Image.Image, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A Pillow picture as image_HWC, uint8 RGB, by the rules of `decode_image`. Raises BadMedia."""
    _check_pixels(picture.height, picture.width, max_pixels)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _grey16_to_rgb(np.asarray(picture))
    if picture.mode == "F":
        raise BadMedia("image: floating-point pixels have no known range")
    with bad_media("image"):  # a picture that was opened, and is read now
        return np.asarray(picture.convert("RGB"))


def _grey16_to_rgb(grey_HW: np.ndarray) -> np.ndarray:
    grey8_HW = (np.clip(grey_HW, 0, 65535).astype(np.uint32) + 128) // 257
    return np.repeat(grey8_HW.astype(np.uint8)[..., None], 3, axis=-1)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if not 0 < height * width <= max_pixels:
        raise BadMedia(f"image: {width} x {height} pixels; at most {max_pixels} are read")


def train_jpeg(
    data: bytes,
    size: tuple[int, int],
    augment: ImageAugment,
    rng: np.random.Generator,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """`train_image(decode_image(data))` for the same draws, with no larger a decoding than the crop needs.

    The same pixels, unless the crop is at least twice the output in both sides (with `augment.antialias` four
    times) and `augment.scaled_decode` is on: then the decoder's own filter takes the place of skipped pixels.
    Pictures that are no JPEG are decoded whole. Raises BadMedia as `decode_image`, whatever the draws: all of
    the entropy code is read.
    """
    sides = _jpeg_sides(data, max_pixels) if augment.scaled_decode else None
    if sides is None:
        return train_image(decode_image(data, max_pixels), size, augment, rng)
    box = _train_box(*sides, augment, rng)
    shrink = _shrink(box, size, augment.antialias)
    with bad_media("image"):
        image_HWC = _decode_jpeg(data, max_pixels, shrink)
    if image_HWC.shape[:2] == sides:
        image_HWC = resize(box.cut(image_HWC), size, augment.antialias)
    else:
        image_HWC = _resize_part(image_HWC, box, shrink, size, augment.antialias)
    return _flipped(image_HWC, augment, rng)


def train_image(
    image_HWC: np.ndarray, size: tuple[int, int], augment: ImageAugment, rng: np.random.Generator
) -> np.ndarray:
    """Inception crop (the whole picture where `crop_area` is null), resize to `size`, random flip.

    Bilinear with half-pixel centres as TF2's resize, rounded where big_vision truncates; with
    `augment.antialias` a filter as wide as the shrinking asks for. Any input size from 1 x 1 works.
    """
    height, width = image_HWC.shape[:2]
    box = _train_box(height, width, augment, rng)
    return _flipped(resize(box.cut(image_HWC), size, augment.antialias), augment, rng)


def _train_box(height: int, width: int, augment: ImageAugment, rng: np.random.Generator) -> Box:
    if augment.crop_area is None:
        return Box(0, 0, height, width)
    return inception_box(height, width, augment.crop_area, augment.crop_ratio, rng)


def _shrink(box: Box, size: tuple[int, int], antialias: bool) -> int:
    """How many times smaller the picture may be decoded: 1, 2, 4 or 8."""
    # The antialiasing filter needs finer pixels than its output's, or it blurs what the decoder has filtered.
    room = min(box.height / size[0], box.width / size[1]) / (2 if antialias else 1)
    return next(factor for factor in (8, 4, 2, 1) if room >= factor or factor == 1)


def _resize_part(
    scaled_HWC: np.ndarray, box: Box, shrink: int, size: tuple[int, int], antialias: bool
) -> np.ndarray:
    """`box`, in pixels of the whole picture, out of one decoded at 1 / `shrink`, resized to `size`."""
    top, left, height, width = (side / shrink for side in box)
    if antialias:
        part = (left, top, min(left + width, scaled_HWC.shape[1]), min(top + height, scaled_HWC.shape[0]))
        return np.asarray(Image.fromarray(scaled_HWC).resize(size[::-1], Image.Resampling.BILINEAR, box=part))
    step_y, step_x = height / size[0], width / size[1]
    # Output pixel i has its centre at (i + 0.5) * step in the box; OpenCV counts from pixel centres.
    matrix = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(scaled_HWC, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _flipped(image_HWC: np.ndarray, augment: ImageAugment, rng: np.random.Generator) -> np.ndarray:
    # A real copy: cutting patches out of a mirrored view costs eight times as much.
    return cv2.flip(image_HWC, 1) if rng.random() < augment.flip else image_HWC


def eval_image(image_HWC: np.ndarray, size: tuple[int, int], augment: ImageAugment) -> np.ndarray:
    """The evaluation picture of `size`.

    `eval_resize` "square": resized to `size`, whatever its shape. "crop": smaller side to
    `eval_resize_size` (null: 7/6 of the input's longer side), by area averaging when it shrinks as
    scenic's resize_small, then the centre.
    """
    if augment.eval_resize == "square":
        return resize(image_HWC, size, augment.antialias)
    side = image_eval_side(size, augment)
    image_HWC = centre_cut(image_HWC, longest=4 * max(size) / min(size))
    height, width = smaller_side_size(image_HWC.shape[:2], side, size)
    area = not augment.antialias and height < image_HWC.shape[0]
    image_HWC = resize(image_HWC, (height, width), augment.antialias, cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return image_HWC[top : top + size[0], left : left + size[1]]


def image_eval_side(size: tuple[int, int], augment: ImageAugment) -> int:
    """Pixels of the smaller side before the centre crop of an evaluation."""
    return augment.eval_resize_size or round(max(size) * EVAL_RESIZE_RATIO)


def smaller_side_size(sides: tuple[int, ...], side: int, at_least: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after scaling the smaller of `sides` to `side` pixels, none below `at_least`.

    The longer side is truncated, as in dmvr's and big_vision's resize_small.
    """
    scale = max(side / min(sides), *(least / s for least, s in zip(at_least, sides, strict=True)))
    height, width = (max(least, math.floor(s * scale + 1e-6)) for least, s in zip(at_least, sides, strict=True))
    return height, width


def resize(
    image_HWC: np.ndarray, size: tuple[int, int], antialias: bool, interpolation: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """`image_HWC` at `size` (H, W), uint8: OpenCV without a filter, or torch's filtered bilinear.

    Torch's filter is Pillow's, to a grey level, in a third of its time.
    """
    if image_HWC.shape[:2] == size:
        return image_HWC
    if antialias:
        return _antialiased(image_HWC, size)
    return cv2.resize(image_HWC, size[::-1], interpolation=interpolation)


def _antialiased(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import torch  # here, for it takes seconds and 200 MB, and most decoding processes of images do without

    with torch.inference_mode():
        # Strides as of channels-last, without which its fast kernel is not taken; it warns of read-only arrays.
        image_1CHW = torch.from_numpy(np.require(image_HWC, requirements=("C", "W"))).permute(2, 0, 1)[None]
        resized_1CHW = torch.nn.functional.interpolate(image_1CHW, size=size, mode="bilinear", antialias=True)
        return resized_1CHW[0].permute(1, 2, 0).contiguous().numpy()
