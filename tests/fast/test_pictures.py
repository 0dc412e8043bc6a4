"""Pictures: every common format is decoded upright, as RGB, in the requested size."""

import numpy as np
import pytest
from PIL import Image

from stages.images.pictures import read_picture

RED, GREEN, WHITE = (204, 0, 0), (0, 204, 0), (255, 255, 255)  # colours of the standard palette


def two_colours(left: tuple, right: tuple, size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Make a picture with two colours side by side; `size` is (width, height)."""
    picture = Image.new("RGB", size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


TWO = two_colours(RED, GREEN)
TRANSPARENT = TWO.convert("RGBA")
TRANSPARENT.paste((0, 0, 0, 0), (0, 0, 20, 20))
GREY16 = Image.fromarray(np.full((20, 40), 60_000, np.uint16))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by 90 degrees clockwise


@pytest.mark.parametrize(
    ("picture", "name", "options", "left", "right", "changes"),
    [
        (TWO, "a.png", {}, RED, GREEN, ()),
        (TWO, "a.JPEG", {"quality": 95}, RED, GREEN, ()),
        (TWO, "a.webp", {"lossless": True}, RED, GREEN, ()),
        (TWO.convert("CMYK"), "a.tiff", {}, RED, GREEN, ()),
        (TWO, "a.gif", {"save_all": True, "append_images": [two_colours(WHITE, WHITE)]}, RED, GREEN, ()),
        (TWO.convert("P"), "a.png", {}, RED, GREEN, ()),
        (Image.new("L", (40, 20), 77), "a.png", {}, (77,) * 3, (77,) * 3, ("greyscale",)),
        (GREY16, "a.png", {}, (233,) * 3, (233,) * 3, ("16 bit made 8", "greyscale")),
        (TRANSPARENT, "a.png", {}, WHITE, GREEN, ("transparent, put on white",)),
        (TWO.rotate(90, expand=True), "a.jpg", {"exif": EXIF}, RED, GREEN, ("turned as EXIF says",)),
    ],
)
def test_every_format_is_read_upright_as_rgb(tmp_path, picture, name, options, left, right, changes):
    picture.save(tmp_path / name, **options)
    pixels, _, made = read_picture(tmp_path / name, None)
    assert (pixels.shape, pixels.dtype, made) == ((20, 40, 3), np.uint8, changes)
    for column, colour in ((5, left), (35, right)):
        assert np.abs(pixels[10, column].astype(int) - colour).max() <= 12  # JPEG, palettes


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    picture = two_colours(RED, GREEN, (3000, 2000))
    picture.paste(WHITE, (0, 0, 400, 2000))  # left of the centre
    picture.save(tmp_path / "a.jpg")
    pixels = read_picture(tmp_path / "a.jpg", (32, 32)).pixels
    assert pixels.shape == (32, 32, 3)
    assert np.abs(pixels[:, :14].astype(int) - RED).max() <= 15
    assert np.abs(pixels[:, -14:].astype(int) - GREEN).max() <= 15
