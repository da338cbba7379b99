"""From a table of compressed pictures to one array."""

import io
from typing import NamedTuple

import numpy as np


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
      ValueError: a column is missing, or the pictures differ in size.
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
            images += [_picture(cell["bytes"], mode) for cell in chunk[column].to_pylist()]
            labels += chunk["label"].to_pylist()
            bar.update(len(chunk))
    stored_names = getattr(table.features["label"], "names", None)
    return Decoded(_stack(images), np.array(labels, np.int32), tuple(stored_names or names))


def _picture(data: bytes, mode: str) -> np.ndarray:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _stack(images: list[np.ndarray]) -> np.ndarray:
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images must all have one size, got {sorted(sizes)[:5]}")
    return np.stack(images)
