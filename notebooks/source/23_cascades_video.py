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
# # 23 · Cascades and video
#
# **The question.** ✎ One sentence that a reader wants answered.
#
# At the end of this chapter you will be able to
#
# - ✎ do this;
# - ✎ predict that;
# - ✎ recognise the chapter's silent bug by its symptom.
#
# **You need** ✎ chapters.
# **Time**: ✎ minutes of reading; the notebook itself runs for ✎ seconds on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np

from diffusion_course import denoiser, process, samplers, sampling
from diffusion_course.data import toy2d
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# ✎ What the reader sees, and what it will mean by the end of the chapter. The example below draws points
# of a mixture; replace it.

# %%
p = process.from_betas(process.cosine_betas(1000))
exact = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
times = sampling.uniform(20)
start = jax.random.normal(jax.random.key(0), (300, 2))


@jax.jit
def draw(x, key):
    """From noise x [B, 2]: the state at every time, [21, B, 2]."""
    _, path = sampling.sample(samplers.ddim(p), exact.denoise, x, times, key)
    return jax.numpy.concatenate([x[None], path])


states = np.asarray(draw(start, jax.random.key(1)))


def frame(i):
    fig, ax = plt.subplots(figsize=(3, 3))
    ax.scatter(*states[i].T, s=4, color=plots.PREDICTION)
    ax.set(title=f"$t$ = {times[i]:.2f}", xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    return fig


frame(len(states) - 1)
plt.show()

# %% [markdown]
# ## 2 · The algorithm, written out
#
# ✎ First intuition, then the equation with its source, then the code, then a picture. As an example,
#
# $$x_s = \alpha(s)\,\hat x_0 + \sigma(s)\,\hat\varepsilon \tag{1}$$
#
# (Song, Meng & Ermon 2021, eq. 12, with no fresh noise.)
#
# **Predict, then run.** ✎ What will the next cell show?


# %%
def by_hand(D, x):
    """✎ The chapter's own algorithm, in the symbols of its paper."""
    for t, s in itertools.pairwise(times):
        x0 = D(x, t)  # the guess
        eps = (x - p.alpha(t) * x0) / p.sigma(t)  # the noise that it implies
        x = p.alpha(s) * x0 + p.sigma(s) * eps  # equation (1)
    return x


guess = jax.jit(exact.denoise)
ours = by_hand(guess, start)
print(f"largest difference from the library: {np.abs(ours - states[-1]).max():.1e}")

# %% tags=["comparison"]
# Sums in another order differ by a few units of float32's seventh digit, 20 steps long.
np.testing.assert_allclose(ours, states[-1], atol=1e-3)

# %% tags=["claims"]
# @title Checked: ✎ what the text above says
assert np.isfinite(states).all()

# %% [markdown]
# ✎ What was seen, in complete sentences. Every number or comparison in a text is asserted in a claims cell,
# with the number of samples and the reason for the tolerance.

# %% [markdown]
# ## 3 · An explorer
#
# ✎ What to move, and what to look for. It shows the points of section 1 at each time.

# %%
widgets.explorer(
    widgets.render(frame, range(len(states))), [f"t = {t:.2f}" for t in times], slider="time"
)

# %% [markdown]
# ## 4 · Break it on purpose
#
# ✎ The classic silent bug of this chapter: what somebody wrote, why nothing complains, and how it shows.

# %%
broken = by_hand(lambda x, t: guess(x, 0.5), start)  # ✎ the bug
print(f"spread: right {np.std(ours):.2f}, broken {np.std(broken):.2f}")

# %% [markdown]
# ## 5 · What to inspect
#
# ✎ The plots that a practitioner looks at, and what each looks like when something is wrong.

# %% [markdown]
# ## 6 · Recap
#
# 1. ✎
# 2. ✎
# 3. ✎
# 4. ✎
# 5. ✎
#
# **Now you.** The [exercises of this chapter](../exercises/23_cascades_video.ipynb).
#
# **Words introduced.** ✎
#
# **Read on.** ✎ Authors, year, *title*, place (arXiv number), and what to read there.
