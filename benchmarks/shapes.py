"""The networks that are measured, and the arrays that every side gets."""

from typing import NamedTuple

import numpy as np

BATCH, CLASSES = 64, 10
DDIM_STEPS = 50
# Low, so that training from random weights stays tame however long a benchmark runs.
LEARNING_RATE = 1e-4
# Matrix products [m, k] @ [k, n] whose best rate is called the machine's peak.
PRODUCTS = ((1024, 1024, 1024), (16384, 576, 64), (2048, 512, 512))


class Shape(NamedTuple):
    """Images of size×size pixels, and a network as `diffusion_course.weights.build` takes it."""

    size: int
    model: dict


def _unet(size: int, *channels: int) -> Shape:
    return Shape(size, {"class": "UNet", "channels": channels, "num_classes": CLASSES})


def _dit(size: int, patch: int) -> Shape:
    model = {"class": "DiT", "image_size": size, "patch": patch, "width": 128, "depth": 4}
    return Shape(size, model | {"num_classes": CLASSES})


SHAPES = {
    "unet8": _unet(8, 32, 64),
    "unet16": _unet(16, 32, 64, 64),
    "unet28": _unet(28, 32, 64, 64),
    "dit8": _dit(8, patch=2),
    "dit28": _dit(28, patch=4),
}


def batch(size: int, batch: int = BATCH) -> dict[str, np.ndarray]:
    """One fixed batch: x and target [B, H, W, 1], t [B] and labels [B]."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((2, batch, size, size, 1), np.float32)
    return {
        "x": x,
        "target": target,
        "t": ((np.arange(batch) + 0.5) / batch).astype(np.float32),
        "labels": (np.arange(batch) % CLASSES).astype(np.int32),
    }
