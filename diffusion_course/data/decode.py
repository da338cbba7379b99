"""From a table of compressed pictures to one array."""

import io
from typing import NamedTuple

import numpy as np

from diffusion_course.checks import one_of


class Decoded(NamedTuple):
    """images uint8 [N, H, W, C], labels int32 [N], and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]


def decode(table, column: str, mode: str, names: tuple[str, ...], progress: bool) -> Decoded:
    """Decode a ``datasets.Dataset`` whose pictures all have the same size.

    Args:
      table: has the pictures (as the bytes of PNG or JPEG files) and a column "label".
      column: where the pictures are.
      mode: Pillow's name of the colour space, "L" (one channel) or "RGB".
      names: names of the classes, for a table whose column "label" does not carry them.
      progress: show a bar.

    Raises:
      ValueError: a column is missing, the pictures differ in size, one cannot be read as it is
        meant (see `picture`), or a label is no whole number or names no class.
    """
    from tqdm.auto import tqdm

    missing = {column, "label"} - set(table.column_names)
    if missing:
        raise ValueError(f"no column {sorted(missing)}, only {sorted(table.column_names)}")
    images, labels = [], []
    # "arrow" hands out the bytes as they are; the pictures' own format would make a Python object
    # of every row, which takes several times as long.
    rows = table.with_format("arrow")
    with tqdm(total=len(table), desc="decoding", unit=" images", disable=not progress) as bar:
        for chunk in rows.iter(batch_size=1000):
            for cell in chunk[column].to_pylist():
                images.append(_numbered(len(images), cell, mode))
            labels += chunk["label"].to_pylist()
            bar.update(len(chunk))
    stored_names = getattr(table.features["label"], "names", None)
    names = tuple(stored_names or names)
    return Decoded(_stack(images), _whole(labels, len(names)), names)


def _whole(labels: list, classes: int) -> np.ndarray:
    """Labels int32 [N]. Raises: ValueError if one is no whole number or names no class."""
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool):
            raise ValueError(f"labels must be whole numbers, got {label!r}")
    array = np.array(labels, object)  # of any size, before they become int32
    wrong = array[(array < 0) | (array >= classes)]
    if wrong.size:
        raise ValueError(f"labels must lie in [0, {classes}), got {wrong[0]}")
    return array.astype(np.int32)


def _numbered(number: int, cell, mode: str) -> np.ndarray:
    try:
        return picture(cell["bytes"] if cell else None, mode)
    except ValueError as error:
        raise ValueError(f"picture {number}: {error}") from error


# Pillow's names: black and white, grey, palette, colour, and JPEG's two ways to store colour.
_PLAIN = ("1", "L", "P", "RGB", "YCbCr", "CMYK")
_WITH_ALPHA = ("LA", "PA", "RGBA")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def picture(data: bytes, mode: str) -> np.ndarray:
    """The pixels of a PNG or JPEG file (or any other that Pillow reads): uint8 [H, W, C].

    Grey in 16 bits is rounded to 8. A camera's note on how it was held is followed.

    Args:
      data: the content of the file.
      mode: "L" for one channel, "RGB" for three.

    Raises:
      ValueError: the file holds what 8 bits per channel cannot say: transparent pixels, whole
        numbers of 32 bits, floating-point numbers, colours without a rule, or several pictures.
    """
    from PIL import Image, ImageOps

    one_of("mode", mode, ("L", "RGB"))
    if not isinstance(data, bytes):
        raise ValueError(f"a picture must be the bytes of a file, got {type(data).__name__}")
    image = Image.open(io.BytesIO(data))
    if getattr(image, "is_animated", False):
        raise ValueError(f"a picture must be one picture, got a film of {image.n_frames}")
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    pixels = np.asarray(_opaque(_sixteen_bits(image)).convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _sixteen_bits(image):
    """Grey of 16 bits as grey of 8; Pillow's own conversion would cut at 255."""
    from PIL import Image

    # Old versions of Pillow open a PNG of 16 bits as whole numbers of 32.
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):
        if "transparency" in image.info:
            raise ValueError("a picture of 16-bit grey must have no transparent level, got one")
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    return image


def _opaque(image):
    """The picture without its alpha channel, if every pixel is opaque."""
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[-1][0] < 255:
            raise ValueError(
                "a picture must be opaque, got transparent pixels: lay it on a background first"
            )
        return image.convert("RGB")
    if image.mode not in _PLAIN:
        raise ValueError(
            f"a picture must be one of {', '.join(_PLAIN)} or 16-bit grey, got mode {image.mode}; "
            "save it with 8 bits per channel"
        )
    return image


def _stack(images: list[np.ndarray]) -> np.ndarray:
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images must all have one size, got {sorted(sizes)[:5]}")
    return np.stack(images)
