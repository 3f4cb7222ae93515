"""Image decoding by content and by rule, crops and sizes."""

import csv
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from polyvit.data.image import decode_image, eval_image, train_image
from polyvit.errors import BadMedia
from polyvit.task_config import ImageAugment
from tests.kit import DATA_DIR, needs_data

EITHER_WAY = {"images/bitrot_middle.jpg"}


@pytest.fixture
def photo_HWC() -> np.ndarray:
    """Smooth colours, so that JPEG changes little."""
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([x * 3, y * 4, 255 - x * 2], axis=-1).astype(np.uint8)


def encoded(image: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def damaged_rows(folder: str) -> list[dict[str, str]]:
    """Rows of the kit's manifest; none without the kit."""
    manifest = DATA_DIR / "broken" / "MANIFEST.csv"
    if not manifest.is_file():
        return []
    with manifest.open() as lines:
        return [row for row in csv.DictReader(lines) if row["file"].startswith(folder + "/")]


@needs_data
@pytest.mark.parametrize("row", damaged_rows("images"), ids=lambda row: row["file"])
def test_every_damaged_or_odd_image_of_the_kit(row: dict[str, str]) -> None:
    data = (DATA_DIR / "broken" / row["file"]).read_bytes()
    if row["status"] == "broken" and row["file"] not in EITHER_WAY:
        with pytest.raises(BadMedia) as caught:
            decode_image(data)
        assert "0x" not in caught.value.reason
        return
    image_HWC = decode_image(data)
    with Image.open(io.BytesIO(data)) as picture:
        assert image_HWC.shape == (picture.height, picture.width, 3)
    assert image_HWC.dtype == np.uint8
    for augment in (ImageAugment(), ImageAugment(eval_resize="crop"), ImageAugment(antialias=True)):
        assert train_image(image_HWC, (32, 48), augment, np.random.default_rng(0)).shape == (32, 48, 3)
        assert eval_image(image_HWC, (32, 48), augment).shape == (32, 48, 3)


@needs_data
def test_the_kits_cmyk_and_16_bit_pictures_have_their_colours() -> None:
    data = (DATA_DIR / "broken/images/cmyk.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        cmyk_HWC = np.asarray(picture).astype(float)
    plain_HWC = (255 - cmyk_HWC[..., :3]) * (255 - cmyk_HWC[..., 3:]) / 255
    assert np.abs(decode_image(data) - plain_HWC).max() <= 2
    data = (DATA_DIR / "broken/images/gray16.png").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        expected_HW = np.asarray(picture) / 65535 * 255
    assert np.abs(decode_image(data)[..., 0] - expected_HW).max() <= 0.5


def test_jpegs_equal_pillows_pixels(photo_HWC: np.ndarray) -> None:
    data = encoded(photo_HWC, "JPEG", quality=90, subsampling=0)
    assert np.abs(decode_image(data).astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 1


def test_cmyk_jpegs_become_rgb(photo_HWC: np.ndarray) -> None:
    data = encoded(photo_HWC, "JPEG", mode="CMYK", quality=98)
    assert np.abs(decode_image(data).astype(int) - photo_HWC).max() < 12


def test_16_bit_grey_is_scaled_and_rounded() -> None:
    grey_HW = np.array([[0, 128, 129, 257 * 7, 65535]], np.uint16)
    assert decode_image(encoded(grey_HW, "PNG"))[0, :, 1].tolist() == [0, 0, 1, 7, 255]


def test_alpha_is_dropped_and_palettes_are_looked_up(photo_HWC: np.ndarray) -> None:
    rgba_HWC = np.dstack([photo_HWC, np.full(photo_HWC.shape[:2], 7, np.uint8)])
    assert np.array_equal(decode_image(encoded(rgba_HWC, "PNG")), photo_HWC)
    two_HWC = np.zeros((4, 4, 3), np.uint8)
    two_HWC[:2] = (10, 200, 30)
    assert np.array_equal(decode_image(encoded(two_HWC, "GIF")), two_HWC)


def test_exif_orientation_is_not_applied(photo_HWC: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(photo_HWC, "JPEG", exif=exif)).shape == photo_HWC.shape


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_short_is_never_a_half_grey_picture(
    photo_HWC: np.ndarray, share: float, end: bytes, progressive: bool
) -> None:
    noisy_HWC = np.random.default_rng(0).integers(0, 256, photo_HWC.shape, dtype=np.uint8)
    data = encoded(noisy_HWC, "JPEG", quality=90, progressive=progressive)
    with pytest.raises(BadMedia):
        decode_image(data[: int(len(data) * share)] + end)


def test_cut_pngs_bombs_and_text_are_bad_media(photo_HWC: np.ndarray) -> None:
    png = encoded(photo_HWC, "PNG")
    for data in (png[: len(png) // 2], b"", b"<html></html>", b"\xff\xd8\xff"):
        with pytest.raises(BadMedia):
            decode_image(data)
    for data in (png, encoded(photo_HWC, "JPEG")):
        with pytest.raises(BadMedia, match="80 x 60 pixels; at most 4000"):
            decode_image(data, max_pixels=4000)


def test_the_same_generator_gives_the_same_pixels(photo_HWC: np.ndarray) -> None:
    first, again, other = (
        train_image(photo_HWC, (24, 24), ImageAugment(), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_a_crop_the_whole_picture_is_resized_with_half_pixel_centres() -> None:
    image_HWC = np.array([[0, 100]], np.uint8).repeat(2, 0)[..., None].repeat(3, 2)
    augment = ImageAugment(crop_area=None, flip=0)
    found = train_image(image_HWC, (2, 4), augment, np.random.default_rng(0))
    assert found[0, :, 0].tolist() == [0, 25, 75, 100]
    flipped = train_image(image_HWC, (2, 4), ImageAugment(crop_area=None, flip=1), np.random.default_rng(0))
    assert np.array_equal(flipped, found[:, ::-1])


def test_antialiasing_averages_what_plain_bilinear_skips() -> None:
    stripes_HWC = np.tile(np.array([0, 255, 0, 0], np.uint8), 64)[None, :, None].repeat(64, 0).repeat(3, 2)
    smooth = eval_image(stripes_HWC, (8, 8), ImageAugment(antialias=True))
    assert np.abs(smooth.astype(int) - 64).max() < 8
    assert np.abs(eval_image(stripes_HWC, (8, 8), ImageAugment()).astype(int) - 64).max() > 40


def test_the_centre_crop_is_the_centre_of_the_resized_picture(photo_HWC: np.ndarray) -> None:
    augment = ImageAugment(eval_resize="crop", eval_resize_size=30)
    expected = cv2.resize(photo_HWC, (40, 30), interpolation=cv2.INTER_AREA)[3:27, 8:32]
    assert np.array_equal(eval_image(photo_HWC, (24, 24), augment), expected)
    wide = eval_image(np.zeros((1, 60_000, 3), np.uint8), (224, 224), augment)
    assert wide.shape == (224, 224, 3)
