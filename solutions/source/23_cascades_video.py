# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 23 · Cascades and video: exercises
#
# They belong to [chapter 23](../notebooks/23_cascades_video.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Each exercise is graded alone. A function may use JAX, NumPy and other packages, and functions and
# constants of your own in other cells. It may not use the function of another exercise; of
# `diffusion_course` it may use only what the exercise's cells import.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %% role="setup"
import jax.numpy as jnp

from diffusion_course.grading import check

# %% [markdown]
# ## 23.1
# *warm-up · 10 minutes*
#
# ✎ What to write. The example mixes an image with noise: $x_t = \alpha\,x_0 + \sigma\,\varepsilon$ with
# $\sigma^2 = 1 - \alpha^2$.
#
# **Expected.** An array of `x0`'s shape.
#
# <details><summary>Hint</summary>
# ✎ The variances add up to 1.
# </details>


# %% exercise="23.1" role="answer"
def mixed(x0, eps, alpha):
    """x0 and eps [...], the number alpha -> x_t, [...]."""
    ### BEGIN SOLUTION return the noisy images, an array of x0's shape
    return alpha * x0 + jnp.sqrt(1 - alpha**2) * eps
    ### END SOLUTION


# %% [markdown]
# That is all of chapter 23. ✎ What the reader has done.
