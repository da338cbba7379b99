"""What a picture file can hold: read as it is meant, or refused by name."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples
from PIL import Image

from diffusion_course.data.decode import picture

rng = np.random.default_rng(12)


def stored(image: Image.Image, file="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file, **options)
    return buffer.getvalue()


def pixels(*shape, dtype=np.uint8, most=256):
    values = rng.integers(0, most, shape, dtype=dtype)
    values.flat[0], values.flat[-1] = 0, most - 1
    return values


def luma(rgb):
    """ITU-R 601-2, which Pillow rounds."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def test_eight_bits_of_grey_or_colour_come_back_as_they_were_stored():
    grey, colour = pixels(5, 7), pixels(5, 7, 3)
    np.testing.assert_array_equal(picture(stored(Image.fromarray(grey)), "L")[..., 0], grey)
    np.testing.assert_array_equal(picture(stored(Image.fromarray(colour)), "RGB"), colour)
    np.testing.assert_array_equal(
        picture(stored(Image.fromarray(grey)), "RGB"), np.repeat(grey[..., None], 3, -1)
    )
    got = picture(stored(Image.fromarray(colour)), "L")[..., 0]
    np.testing.assert_allclose(got, luma(colour), atol=1)


def test_sixteen_bits_of_grey_are_rounded_to_eight_not_cut():
    grey = pixels(5, 7, dtype=np.uint16, most=65536)
    for mode in ("L", "RGB"):
        got = picture(stored(Image.fromarray(grey)), mode)
        np.testing.assert_array_equal(got[..., 0], np.rint(grey / 257).astype(np.uint8))
    got = picture(stored(Image.fromarray(grey), "TIFF"), "L")
    np.testing.assert_array_equal(got[..., 0], np.rint(grey / 257).astype(np.uint8))


def test_black_and_white_becomes_0_and_255():
    mask = pixels(5, 7, most=2).astype(bool)
    got = picture(stored(Image.fromarray(mask)), "L")
    np.testing.assert_array_equal(got[..., 0], np.where(mask, 255, 0))


def test_a_palette_s_numbers_are_looked_up():
    index, colours = pixels(5, 7, most=4), pixels(4, 3)
    image = Image.frombytes("P", (7, 5), index.tobytes())
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(picture(stored(image), "RGB"), colours[index])
    np.testing.assert_allclose(picture(stored(image), "L")[..., 0], luma(colours[index]), atol=1)
    transparent = stored(image, transparency=int(index[0, 0]))
    with pytest.raises(ValueError, match="a picture must be opaque, got transparent pixels"):
        picture(transparent, "RGB")


@pytest.mark.parametrize("channels", [2, 4])
def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(channels):
    image = pixels(5, 7, channels)
    image[..., -1] = 255
    mode = "L" if channels == 2 else "RGB"
    got = picture(stored(Image.fromarray(image)), mode)
    np.testing.assert_array_equal(got, image[..., :-1])
    image[2, 3, -1] = 254
    with pytest.raises(
        ValueError, match="must be opaque, got transparent pixels: lay it on a backg"
    ):
        picture(stored(Image.fromarray(image)), mode)


def test_numbers_that_eight_bits_cannot_hold_are_refused():
    real = Image.fromarray(rng.random((5, 7), np.float32))
    whole = Image.fromarray(rng.integers(0, 2**30, (5, 7), dtype=np.int32))
    for image, mode in ((real, "F"), (whole, "I")):
        with pytest.raises(ValueError, match=f"got mode {mode}; save it with 8 bits"):
            picture(stored(image, "TIFF"), "L")


def test_a_film_is_refused_and_something_else_named():
    frames = [Image.fromarray(pixels(5, 7)) for _ in range(3)]
    film = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="must be one picture, got a film of 3"):
        picture(film, "L")
    with pytest.raises(ValueError, match="a picture must be the bytes of a file, got NoneType"):
        picture(None, "L")
    with pytest.raises(ValueError, match="mode must be one of L, RGB, got 'HSV'"):
        picture(film, "HSV")


def test_a_camera_held_upright_gives_an_upright_picture():
    grey = pixels(5, 7)
    note = Image.Exif()
    note[274] = 6  # "turn by 90 degrees clockwise to see it as it was"
    got = picture(stored(Image.fromarray(grey), exif=note), "L")
    np.testing.assert_array_equal(got[..., 0], np.rot90(grey, -1))


@examples
@given(
    st.sampled_from(["1", "L", "P", "RGB", "LA", "RGBA", "I;16"]),
    st.sampled_from(["L", "RGB"]),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_whatever_is_read_has_the_size_of_the_picture_and_eight_bits(kind, mode, height, width):
    image = Image.new(kind, (width, height), 1 if kind in ("1", "L", "P", "I;16") else None)
    if kind in ("LA", "RGBA"):
        image.putalpha(255)
    got = picture(stored(image), mode)
    assert got.shape == (height, width, 1 if mode == "L" else 3) and got.dtype == np.uint8
