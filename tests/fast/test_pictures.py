"""Pictures: every common format is decoded upright, as RGB, in the requested size, within memory."""

import base64
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from stages.images import pictures
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
TURNED = TWO.rotate(90, expand=True)
GREY12 = Image.fromarray(np.full((20, 40), 4095, np.uint16))
DARK = "16 bit made 8, nearly black: no value above 4095 of 65535, expected the full range"
DAMAGED = b"\0\x08\0\x02\x01\x12\0\x03"  # EXIF


@pytest.mark.parametrize(
    ("picture", "name", "options", "left", "right", "changes"),
    [
        (TWO, "a.JPEG", {"quality": 95}, RED, GREEN, ()),
        (TWO.convert("CMYK"), "a.tiff", {}, RED, GREEN, ()),
        (TWO, "a.gif", {"save_all": True, "append_images": [two_colours(WHITE, WHITE)]}, RED, GREEN, ()),
        (TWO.convert("P"), "a.png", {}, RED, GREEN, ()),
        (Image.new("L", (40, 20), 77), "a.png", {}, (77,) * 3, (77,) * 3, ("greyscale",)),
        (GREY16, "a.png", {}, (233,) * 3, (233,) * 3, ("16 bit made 8", "greyscale")),
        (TRANSPARENT, "a.png", {}, WHITE, GREEN, ("transparent, put on white",)),
        (GREY12, "a.png", {}, (15,) * 3, (15,) * 3, (DARK, "greyscale")),
        (TURNED, "a.jpg", {"exif": EXIF}, RED, GREEN, ("turned as EXIF says",)),
        (TURNED, "a.tif", {"exif": EXIF}, RED, GREEN, ("turned as EXIF says",)),
        (TURNED, "a.avif", {"exif": EXIF}, RED, GREEN, ("turned as EXIF says",)),
        (TWO, "a.png", {"exif": DAMAGED}, RED, GREEN, ("damaged EXIF data ignored",)),
        (TWO, "a.webp", {"exif": DAMAGED, "lossless": True}, RED, GREEN, ("damaged EXIF data ignored",)),
    ],
)
def test_every_format_is_read_upright_as_rgb(tmp_path, picture, name, options, left, right, changes):
    picture.save(tmp_path / name, **options)
    pixels, _, made = read_picture(tmp_path / name, None)
    assert (pixels.shape, pixels.dtype, made) == ((20, 40, 3), np.uint8, changes)
    for column, colour in ((5, left), (35, right)):
        assert np.abs(pixels[10, column].astype(int) - colour).max() <= 12  # JPEG, palettes


# `TURNED` with `EXIF`, as pillow-heif 1.8 writes it, which is no dependency: it encodes with the GPL's x265.
HEIC = (
    "c-muNV30{GsVvAy%}izhg51nBLl8SRGck>Uf$?~5YDppk1Sn>t<P<^K3<a6VB@Af5Br_);Y>0~k0}}%yh{gCCLIXhnPz(r|tl=UmKx~njnU@CU"
    "fn-I2oK&zfpqh-bWJ3ldK}L`g*NRNAa=wDhl3WI;N=CNKf}#Q-`)OuDaz2nQ1?qKXWCjUM04tLF!0_kqj~@&S{LBeJ9TE<VJdFSUgA_1>R4{{("
    "+%6`EM4+Um6C)#<%mRf*)@iTS&3g7galwHG1_qu6kZ?;9P&Jzi<H6#Coj^N;lk;<m@{)5ZfTFw%Y(OOpBALYnsZifKK(R)0P9n%*A`rJTXn^Sd"
    "|NmbBg#nO$0Sya*g3O9ckVa+>4h|s2nOT%y0(1_8WM)AwEKV4Kes5%AW^HK$a-=egQq!Oke90-r$>3N3*-?|5k_d_}9}UL!!iuTK4*U@Kp8h|-"
    "zy6&p^S}FVs){!WUiih}UAmX~dg0W=99yS3{to#Ub<=cK*Nm7Z4}MjLbj3X>zjW`YTsr=@Zsvm7>(Bq*-3~O54H6x`z6@GG9tQ&>qYx;>K*0iW"
    "1_0UogGT"
)


def test_heic_as_phones_write_it_is_read_upright(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(zlib.decompress(base64.b85decode(HEIC)))
    pixels = read_picture(tmp_path / "IMG_1.HEIC", None).pixels
    assert pixels.shape == (20, 40, 3)
    assert np.abs(pixels[10, [5, 35]].astype(int) - [RED, GREEN]).max() <= 12


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_picture_that_is_not_square_is_cropped_padded_or_stretched(tmp_path, fit):
    picture = two_colours(RED, GREEN, (400, 200))
    picture.paste(WHITE, (0, 0, 99, 200))  # left of the centre
    picture.save(tmp_path / "a.jpg", quality=95)
    pixels = read_picture(tmp_path / "a.jpg", (20, 20), fit).pixels.astype(int)
    assert pixels.shape == (20, 20, 3)
    assert (np.abs(pixels[0]).max() <= 8) == (fit == "pad")
    assert np.abs(pixels[10, [1, 16]] - [RED if fit == "crop" else WHITE, GREEN]).max() <= 12


def test_picture_too_large_for_memory_is_refused_by_its_header_without_a_warning(tmp_path, monkeypatch):
    Image.new("1", (9_500, 9_500)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "a.png", (8, 8)).pixels.shape == (8, 8, 3)
        monkeypatch.setattr(pictures, "memory_limit", lambda: 10**8)
        with pytest.raises(ValueError, match=r"90,250,000 pixels, expected fewer"):
            read_picture(tmp_path / "a.png", (8, 8))
