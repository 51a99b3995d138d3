"""Reading pictures that nobody vouches for, Janus' layout against transformers' processor."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zifio import pictures
from zifio.config import ConfigError
from zifio.pictures import cropped, from_url, grid, padded, picture_of, pixels_of, read_picture, to_url, write_png


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of random levels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG file whose header says this, whatever its data are."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_whole_files_come_back_as_they_were(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    picture = noise(13, 29)
    path = tmp_path / "picture"
    path.write_bytes(saved(Image.fromarray(picture), kind, **options))
    assert np.array_equal(read_picture(path), picture)
    assert np.array_equal(read_picture(path.read_bytes(), "here"), picture)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_the_thinnest_pictures_are_laid_out(size: tuple[int, int]) -> None:
    picture = read_picture(saved(Image.new("RGB", size, (200, 10, 90)), "PNG"), "thin")
    for laid_out in (padded(picture, 32), cropped(picture, 32)):
        assert laid_out.shape == (32, 32, 3) and tuple(laid_out[16, 16]) == (200, 10, 90)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA", "I;16"])
def test_every_kind_of_colour_becomes_rgb(mode: str) -> None:
    """Grey of half the light in every mode; the file of a printer (CMYK) has its inks turned into light."""
    levels = {"1": 1, "L": 128, "LA": (128, 255), "P": 128, "CMYK": (127, 127, 127, 0), "RGBA": (128, 128, 128, 255)}
    image = Image.new(mode, (6, 4), levels.get(mode, 128 << 8))
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    picture = read_picture(saved(image, "JPEG" if mode == "CMYK" else "PNG"), mode)
    assert picture.shape == (4, 6, 3) and (picture == (255 if mode == "1" else 128)).all()


def test_white_shines_through() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 200, 0))
    image.putpixel((1, 0), (0, 0, 200, 255))
    assert read_picture(saved(image, "PNG"), "clear").tolist() == [[[255, 255, 255], [0, 0, 200]]]


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(read_picture(data, kind).astype(int) - (255, 0, 0)).max() < 4


def test_a_camera_held_upright_is_heard() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = Image.new("RGB", (16, 8), "blue")
    assert read_picture(saved(image, "JPEG", exif=exif), "turned").shape == (16, 8, 3)


BOMB = png(40_000, 40_000, b"\0" * 1000)
LARGE = png(9_000, 9_000, b"\0" * 1000)
WHOLE = saved(Image.fromarray(noise(40, 40)), "PNG")
JPEG = saved(Image.fromarray(noise(40, 40)), "JPEG")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "came an empty file"),
        (b"<html>no such page</html>", "came other bytes"),
        (b"%PDF-1.7 ....", "came other bytes"),
        (saved(Image.new("RGB", (4, 4)), "TIFF"), "came other bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "came other bytes"),
        (WHOLE[: len(WHOLE) // 2], "torn"),
        (JPEG[: len(JPEG) // 2], "torn"),
        (WHOLE[:30], "came other bytes"),
        (png(40, 40, b"\0" * 10), "torn"),
        (BOMB, "at most 50,000,000 pixels"),
        (LARGE, "at most 50,000,000 pixels, came 9,000 x 9,000"),
        (b"\x89PNG" + b"\0" * pictures.MOST_BYTES, "at most 50,000,000 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_whole_picture_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        read_picture(data, "pairs.jsonl: row 7")
    assert str(error.value).startswith("pairs.jsonl: row 7: wanted")


def test_a_bomb_takes_no_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    for data in (BOMB, LARGE):
        with pytest.raises(ConfigError):
            read_picture(data, "bomb")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_damage_anywhere_is_an_error_or_a_picture(kind: str) -> None:
    """Bytes exchanged and cut at random: never another exception."""
    data = saved(Image.fromarray(noise(20, 20)), kind)
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(150):
        torn = bytearray(data)
        for place in rng.integers(0, len(torn), 3):
            torn[place] = rng.integers(0, 256)
        torn = torn[: rng.integers(1, len(torn) + 1)] if rng.random() < 0.3 else torn
        try:
            outcomes.add(read_picture(bytes(torn), "torn").ndim)
        except ConfigError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_files_that_are_none_or_too_long_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="came no file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ConfigError, match="came an error"):
        read_picture(tmp_path)
    with (tmp_path / "long.png").open("wb") as file:
        os.truncate(file.fileno(), pictures.MOST_BYTES + 1)
    with pytest.raises(ConfigError, match=r"long\.png: wanted a picture of at most"):
        read_picture(tmp_path / "long.png")


@pytest.mark.parametrize("size", [(40, 40), (37, 91), (300, 200), (10, 777), (3, 2), (384, 384), (1, 1)])
def test_the_layout_is_that_of_janus_processor(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers.models.janus.image_processing_pil_janus")
    half = [0.5, 0.5, 0.5]
    processor = transformers.JanusImageProcessorPil(image_mean=half, image_std=half)
    picture = noise(*size)
    expected = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    ours = pixels_of(padded(picture, 384))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    back = processor.postprocess([expected], input_data_format="channels_first")["pixel_values"][0].transpose(1, 2, 0)
    difference = np.abs(picture_of(ours).astype(int) - back.astype(int))
    assert difference.max() <= 1, "a level may fall on either side of a whole number"


def test_the_middle_is_cut_out() -> None:
    picture = np.zeros((4, 10, 3), np.uint8)
    picture[:, 3:7] = 200
    assert (cropped(picture, 4) == 200).all() and (cropped(picture, 9) > 190).all()
    assert (cropped(picture.transpose(1, 0, 2), 4) == 200).all()


def test_pixels_and_pictures_are_inverse(tmp_path: Path) -> None:
    picture = noise(8, 8)
    pixels = pixels_of(picture)
    assert pixels.dtype == np.float32 and pixels.min() >= -1 and pixels.max() <= 1
    assert np.abs(picture_of(pixels).astype(int) - picture).max() <= 1
    assert picture_of(np.full((3, 1, 1), 7.0)).tolist() == [[[255, 255, 255]]]
    write_png(grid([picture] * 3, 2), tmp_path / "grid.png")
    together = read_picture(tmp_path / "grid.png")
    assert together.shape == (18, 18, 3) and np.array_equal(together[10:, :8], picture)


def test_pictures_pass_through_text() -> None:
    picture = noise(9, 5)
    assert np.array_equal(from_url(to_url(picture)), picture)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/a.png", "wanted a picture as data:image/png;base64"),
        ("data:text/html;base64,AAAA", "came 'data:text/html;base64,AAAA'"),
        ("data:image/png;base64,A*A", "wanted base64 behind the comma"),
        ("data:image/png;base64,AAAA", "came other bytes"),
        ("", "wanted a picture as data"),
    ],
)
def test_text_that_is_no_picture_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_url(url)
