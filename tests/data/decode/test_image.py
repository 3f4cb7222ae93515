"""Image decoding by content and by rule, crops and sizes."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import simplejpeg
from image_checks_kit import damaged_rows, psnr
from kit import DATA_DIR, in_kit, needs_data
from PIL import Image

from polyvit.config import ImageAugment
from polyvit.data.decode.image import decode_image, eval_image, train_image, train_jpeg
from polyvit.errors import BadMedia

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
    data = in_kit("broken/images/cmyk.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        cmyk_HWC = np.asarray(picture).astype(float)
    plain_HWC = (255 - cmyk_HWC[..., :3]) * (255 - cmyk_HWC[..., 3:]) / 255
    assert np.abs(decode_image(data) - plain_HWC).max() <= 2
    data = in_kit("broken/images/gray16.png").read_bytes()
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


@pytest.fixture(scope="module")
def large_HWC() -> np.ndarray:
    """1201 x 1603 pixels of waves that are 90 pixels long and more: even 64 pixels of the whole can show them."""
    y, x = np.mgrid[0:1201, 0:1603] / 1000
    waves = [np.sin(x * (5 + 10 * x) + 9 * y), np.cos(20 * y - 6 * x), np.sin(12 * (x + y) ** 2)]
    return (127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("flip", [0, 1])
def test_a_jpeg_that_is_not_far_too_large_gives_the_same_pixels(
    photo_HWC: np.ndarray, antialias: bool, flip: int
) -> None:
    data = encoded(photo_HWC, "JPEG", quality=90)
    augment = ImageAugment(antialias=antialias, flip=flip)
    for seed in range(20):
        found = train_jpeg(data, (40, 40), augment, np.random.default_rng(seed))
        expected = train_image(decode_image(data), (40, 40), augment, np.random.default_rng(seed))
        assert np.array_equal(found, expected)
        assert found.flags.c_contiguous


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_far_larger_jpeg_is_decoded_smaller_and_cut_at_the_same_place(
    large_HWC: np.ndarray, antialias: bool, subsampling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(large_HWC, "JPEG", quality=95, subsampling=subsampling)
    whole_HWC = decode_image(data)
    shrinks = []
    decode = simplejpeg.decode_jpeg

    def counted(*args: object, **options: object) -> np.ndarray:
        shrinks.append(options["min_factor"])
        return decode(*args, **options)

    monkeypatch.setattr("polyvit.data.decode.image.simplejpeg.decode_jpeg", counted)
    augment = ImageAugment(antialias=antialias, flip=0)
    for seed in range(12):
        found, again = (train_jpeg(data, (64, 64), augment, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(found, again)
        smooth = train_image(
            whole_HWC, (64, 64), ImageAugment(antialias=True, flip=0), np.random.default_rng(seed)
        )
        assert psnr(found, smooth) > (45 if antialias else 35)
        assert psnr(found, smooth) > psnr(np.roll(smooth, 1, axis=1), smooth) + 10
    assert set(shrinks) <= {2, 4, 8}
    assert len(set(shrinks)) > 1
    plain = ImageAugment(antialias=antialias, flip=0, scaled_decode=False)
    exact = train_image(whole_HWC, (64, 64), plain, np.random.default_rng(3))
    assert np.array_equal(train_jpeg(data, (64, 64), plain, np.random.default_rng(3)), exact)


def test_half_size_is_the_mean_of_four_pixels() -> None:
    """Where the crop is the whole picture and twice the output, scaled decoding and bilinear resizing agree."""
    blocks_HWC = np.random.default_rng(0).integers(40, 216, (8, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    data = encoded(blocks_HWC, "JPEG", quality=100, subsampling=0)
    augment = ImageAugment(crop_area=None, flip=0)
    found = train_jpeg(data, (64, 64), augment, np.random.default_rng(0))
    assert np.abs(found.astype(int) - blocks_HWC[::2, ::2]).max() <= 2


@needs_data
@pytest.mark.parametrize("row", damaged_rows("images"), ids=lambda row: row["file"])
@pytest.mark.parametrize("size", [(4, 4), (64, 64)])
def test_whether_a_file_is_bad_does_not_depend_on_the_crop(row: dict[str, str], size: tuple[int, int]) -> None:
    data = (DATA_DIR / "broken" / row["file"]).read_bytes()
    whole = outcome(lambda: decode_image(data))
    for seed in range(3):
        cut = outcome(lambda seed=seed: train_jpeg(data, size, ImageAugment(), np.random.default_rng(seed)))
        assert cut == (whole if isinstance(whole, str) else (*size, 3))


def outcome(decode: Callable[[], np.ndarray]) -> tuple[int, ...] | str:
    """The shape, or the reason."""
    try:
        return decode().shape
    except BadMedia as error:
        return error.reason
