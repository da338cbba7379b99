"""Exercises of chapter 23: Cascades and video."""

import numpy as np

from diffusion_course.grading.answers.drawing import images, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part


# --- 23.1 -----------------------------------------------------------------------------------
def mixed(x0, eps, alpha):
    sigma = np.sqrt(1 - alpha**2)
    return alpha * x0 + sigma * eps


def _mixtures(rng):
    """✎ Inputs in which no two symbols agree: several shapes, no round numbers."""
    for shape in ((2, 3, 4, 1), (3, 5)):
        yield images(rng, *shape), images(rng, *shape), number(rng, 0.2, 0.7)


MIXED = exercise(
    "23.1 · ✎ The title of the first exercise",
    mixed,
    Part("images and points", 2, _mixtures),
    mistakes="""
    σ is a standard deviation: take the root
        np.sqrt(1 - alpha**2) -> 1 - alpha**2
    α is squared in 1 − α²
        alpha**2 -> alpha
    x0 and ε are exchanged
        return mixed(eps, x0, alpha)
    """,
)
