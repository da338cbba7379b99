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
# **The question.** A large picture has many pixels, and a clip has many frames. How does one draw them so that the
# parts agree?
#
# At the end of this chapter you will be able to
#
# - build a cascade: a small picture first, then a model that enlarges it;
# - say what noise on the small picture cures, what it costs, and how a forgotten level shows;
# - move a noise schedule to another resolution, and sort pictures of other shapes into buckets;
# - say which part of a picture the last noise levels decide;
# - give every frame of a clip its own noise level, and choose the order in which frames become clear;
# - measure how far a long clip drifts.
#
# **You need** chapters 04, 16 and 17. **Time**: about 75 minutes of reading.
# The cells run for about two minutes on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffusion_course import cascade, flow, operators, process, samplers, sampling, weights
from diffusion_course.data import shapes
from diffusion_course.evaluation import metrics
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import cascaded, recipes

plots.use_style()
p = process.vp_cosine()

# %% [markdown]
# ## 1 · One picture
#
# A network that draws 16 × 16 pixels at once must decide where the shape is, and how its edge runs, at the same
# time. A **cascade** divides the work. A *base* draws 8 × 8 pixels: colour and place. A second diffusion model, the
# *stage*, is told this small picture and draws 16 × 16 pixels. Every stage has one job and a small network.
#
# Both networks below are released with the course. They were trained for a few minutes only, so their mistakes can
# be seen.
#
# **Predict, then run.** The base makes a mistake. Can the stage repair it?

# %%
recipe = recipes.RECIPES["shapes_8to16"]
stage_net = weights.load("shapes_8to16").model
draw_large = cascaded.enlarger(recipe, 16)
small, names_asked = cascaded.base_images(recipe, 12, jax.random.key(5))
large = draw_large(stage_net, small, names_asked, 0.0, jax.random.key(6))
unseen = shapes.load("test", n=12, size=16)
shown_rows = {
    "base, 8 × 8": cascade.up(small, 2),
    "stage, 16 × 16": large,
    "data, 8 × 8": cascade.up(cascade.down(unseen.x, 2), 2),
    "data, 16 × 16": unseen.x,
}
plots.image_grid(list(shown_rows.values()), list(shown_rows))
plt.show()

# %% tags=["claims"]
# @title Checked: the stage keeps what it is told
# Root mean square over 12 pictures, whose pixels lie between −1 and 1.
kept_apart = float(jnp.sqrt(jnp.mean((cascade.down(large, 2) - small) ** 2)))
assert kept_apart < 0.1 and float(jnp.std(small)) > 3 * kept_apart

# %% [markdown]
# The averages of the large picture are the small picture, with its mistakes. The stage has learnt this from its
# data, where it is always so. In training it saw averages of true pictures; now it gets what a base has drawn. This
# is a **mismatch of training and sampling**, and the next section measures it exactly.

# %% [markdown]
# ## 2 · Noise on the condition
#
# The cure is to make the small picture less certain. It gets noise of a level $s$, in training and in sampling,
# and the stage is told the level:
#
# $$z=\alpha(s)\,y+\sigma(s)\,\varepsilon,\qquad x\sim p(x\mid z,s) \tag{1}$$
#
# This is **conditioning augmentation** (Ho et al. 2022, section 3). The noise hides the small mistakes of the
# base, and the stage draws what is hidden anew.
#
# To see what it does we take pictures for which everything is exact: a Gaussian texture $x$ of 12 × 12 pixels with
# covariance $C$, and its averages $y=Ax$, 6 × 6 pixels. The stage's denoiser is then known in closed form. Our base
# is nearly perfect: it adds a little *grain*, independent noise of variance 0.1, to every pixel of $y$.

# %%
SIDE = 12


def nearness(n, scale, power=1):
    """exp(−(distance/scale)^power) of n places in a row: [n, n]."""
    return np.exp(-((np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / scale) ** power))


C = np.kron(nearness(SIDE, 4.0), nearness(SIDE, 4.0))
A = operators.as_matrix(operators.average((SIDE, SIDE, 1), 2))
perfect = cascade.linear_stage(p, np.zeros(SIDE**2), C, A)
of_averages = A @ C @ A.T
of_base = of_averages + 0.1 * np.eye(len(A))
grid_times = sampling.uniform(40)


def cascade_by_hand(y, s, key):
    """Equation (1), then DDIM: small pictures y [B, 36] -> large ones [B, 144]."""
    key_augment, key_start, _ = jax.random.split(key, 3)
    z = p.alpha(s) * y + p.sigma(s) * jax.random.normal(key_augment, y.shape)
    D = jax.jit(perfect.given(z, s))  # the exact E[x | x_t, z]
    x = jax.random.normal(key_start, (len(y), SIDE**2))
    for t, later in pairwise(grid_times):
        x0 = D(x, t)
        eps = (x - p.alpha(t) * x0) / p.sigma(t)
        x = p.alpha(later) * x0 + p.sigma(later) * eps
    return x


# %%
root = np.linalg.cholesky(of_base).astype(np.float32)
grainy = jax.random.normal(jax.random.key(1), (8, len(A))) @ root.T
by_level = {s: cascade_by_hand(grainy, s, jax.random.key(2)) for s in (0.0, 0.2, 0.6)}
as_pictures = lambda x: np.asarray(x).reshape(len(x), int(x.shape[1] ** 0.5), -1, 1) / 3
rows_2 = {"base": np.asarray(cascade.up(as_pictures(grainy), 2))}
rows_2 |= {f"s = {s}": as_pictures(x) for s, x in by_level.items()}
plots.image_grid(list(rows_2.values()), list(rows_2))
plt.show()

# %% tags=["comparison"]
exact_given = lambda z, told: perfect.given(z, 0.2)  # of one level, which `told` repeats
ours = cascade.enlarge(
    p, cascade.Stage(exact_given, (SIDE**2,), 0.2), grainy, samplers.ddim(p), grid_times,
    jax.random.key(2),
)  # fmt: skip
# Sums in another order, 40 steps long.
np.testing.assert_allclose(ours, by_level[0.2], atol=2e-3)

# %% tags=["claims"]
# @title Checked: without noise on the condition the averages are what the base drew
# 40 steps of DDIM end within a few hundredths.
assert np.abs(by_level[0.0] @ A.T - grainy).max() < 0.05
assert np.abs(by_level[0.6] @ A.T - grainy).mean() > 0.3

# %% [markdown]
# At $s=0$ every square of four pixels has the base's grain as its average. At $s=0.2$ the grain is gone and the
# clouds are still the base's. At $s=0.6$ the picture has clouds of its own.
#
# For Gaussian pictures we need not draw at all. With the gain
# $G=\alpha\,CA^\top(\alpha^2ACA^\top+\sigma^2 I)^{-1}$ of the level $s$, a base with covariance $S$ makes the
# stage draw pictures with covariance
#
# $$C-\alpha\,GAC+G(\alpha^2S+\sigma^2I)\,G^\top \tag{2}$$
#
# and this is $C$ if $S=ACA^\top$. Its Fréchet distance to the truth is a number without any sampling error.
#
# **Predict, then run.** Which $s$ gives the smallest distance, if the stage is perfect? And if it is
# *short-sighted*: if it knows how pixels two squares apart go together, but not how distant clouds do?

# %%
U, V = perfect.gain(0.0), perfect.left(0.0)
sees = nearness(SIDE // 2, 2.0 * np.sqrt(2), power=2)  # a window with a standard deviation of 2
local = U @ (of_averages * np.kron(sees, sees)) @ U.T + V  # right about details, blind far away
short_sighted = cascade.linear_stage(p, np.zeros(SIDE**2), local, A)
texture = metrics.Moments(np.zeros(SIDE**2), C, 1)
LEVELS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1.0)


def distance(stage, S, s, told=None):
    """Fréchet distance of what the stage draws from small pictures N(0, S), by equation (2)."""
    found = stage.outcome(np.zeros(len(A)), S, s, told)
    return metrics.frechet(metrics.Moments(*found, 1), texture)


against_level = {
    "perfect stage": [distance(perfect, of_base, s) for s in LEVELS],
    "short-sighted stage": [distance(short_sighted, of_base, s) for s in LEVELS],
    "the same, true small pictures": [distance(short_sighted, of_averages, s) for s in LEVELS],
}
plots.curves(LEVELS, against_level, xlabel="$s$: level of the noise on the small picture",
             ylabel="Fréchet distance")  # fmt: skip
plt.show()

# %% tags=["claims"]
# @title Checked: a perfect stage wants no condition; a short-sighted one has a best level; all exact
alone, short, true_y = (np.array(values) for values in against_level.values())
assert (np.diff(alone) < 1e-9).all() and alone[-1] < 1e-6  # rounding of float64
assert LEVELS[short.argmin()] in (0.2, 0.25)
assert 2.0 < short[0] < 2.1 and 0.9 < short.min() < 1.0 and short[-1] > 3
assert abs(short[0] - alone[0]) < 1e-6
assert true_y[0] < 1e-6 and (np.diff(true_y) > 0).all()

# %% [markdown]
# The perfect stage is best at $s=1$. It draws the right texture without any help, so the base only harms. This
# stage needs no base, and no cascade: a cascade is built *because* the second network is not perfect.
#
# The short-sighted stage has a best level. Without noise, the grain costs 2.0. With noise of level 0.2 the distance
# is half of that. With more noise the stage must draw the clouds itself, and it cannot: at $s=1$ the distance
# is above 3. With **true** small pictures every noise does harm. So a stage that is tested on true small pictures
# will always advise against augmentation. Test it on drawn ones.

# %% [markdown]
# ### Break it on purpose: a level that is not told
#
# Somebody adds the noise and forgets to change the number that the stage is told. Nothing complains: shapes agree,
# and all values are finite. The opposite also happens: the number is set to 0.2, and no noise is added.

# %%
forgotten = [distance(short_sighted, of_base, s, told=0.0) for s in LEVELS[:7]]
only_told = [distance(short_sighted, of_base, 0.0, told=s) for s in LEVELS[:7]]
lies = {
    "added and told": against_level["short-sighted stage"][:7],
    "added, not told": forgotten,
    "told, not added": only_told,
}
plots.curves(LEVELS[:7], lies, xlabel="$s$: the level", ylabel="Fréchet distance")
plt.show()

# %% tags=["claims"]
# @title Checked: untold noise is copied into the picture; telling alone is best where the grain is the noise
assert (np.diff(forgotten) > 0).all() and forgotten[4] > 2 * forgotten[0]
assert min(only_told) < short.min()
# The grain has variance 0.1, which is noise of this level:
grain_level = float(process.time_at(p, -np.log(0.1)))
assert 0.18 < grain_level < 0.22 and LEVELS[int(np.argmin(only_told))] in (0.15, 0.2)

# %% [markdown]
# Noise that is not told is copied: the picture gets *more* grain with every level, and at 0.2 the distance has more
# than doubled. If your cascade is best without augmentation, look here first.
#
# Telling alone is better than both in this example, and one can see why. The grain **is** independent noise, of
# level 0.19 ($\sigma^2/\alpha^2=0.1$). So a stage that is told this level hears the truth and removes the grain. The
# mistakes of real networks are not independent noise of a known size. Then the added noise is what makes the
# message true.

# %% [markdown]
# ## 3 · A trained stage
#
# Now the networks of section 1. The stage was trained on small pictures with levels $s$ from 0 to 0.6. Its **twin**
# had the same network, batches and steps, and small pictures without noise.
#
# The recorded benchmark `benchmarks/cascades.py` enlarged 300 *true* small pictures and 300 that the base *drew*.
# It states the Fréchet distance in the features of the course's judge of shapes, and how often the judge sees the
# shape that was asked for. Unseen pictures themselves have the distance in the row "floor".
#
# **Predict, then run.** Which twin is better with true small pictures? Which one with drawn ones?

# %%
RECORDED = {}

# %% [markdown]
# ## 4 · Other sizes, other shapes, last levels
#
# Three more ideas serve large pictures; each can be checked in a few lines.
#
# **The schedule belongs to a resolution.** Averages over squares of $k\times k$ pixels keep the picture and lose
# noise: the standard deviation of the noise falls by $k$. Where the pixels of a square are equal, the
# log-SNR of the average is higher by
#
# $$\log k^2=2\log k \tag{3}$$
#
# (Hoogeboom, Heek & Salimans 2023, section 3.1). So at the same time $t$ a large picture is *less* noisy than a small
# one: one sees more in it. To be as hard, the large picture needs the later time at which its log-SNR is lower by
# $2\log k$. Chapter 17 met this as the shift of a flow's times.
#
# **Predict, then run.** The same $t=0.6$, with 8 and with 32 pixels a side. What does one see?

# %%
at_32 = jnp.asarray(shapes.load("test", n=10, size=32).x)
fresh_eps = jax.random.normal(jax.random.key(7), at_32.shape)
t_small = 0.6
t_large = float(flow.shift(p, t_small, 4.0))
noisy_rows = {
    f"8 pixels, t = {t_small}": process.add_noise(
        p, cascade.down(at_32, 4), jax.random.normal(jax.random.key(8), (10, 8, 8, 3)), t_small
    ),
    f"32 pixels, t = {t_small}": process.add_noise(p, at_32, fresh_eps, t_small),
    f"32 pixels, t = {t_large:.2f}": process.add_noise(p, at_32, fresh_eps, t_large),
}
noisy_rows = {name: cascade.up(x, 32 // x.shape[1]) for name, x in noisy_rows.items()}
plots.image_grid(list(noisy_rows.values()), list(noisy_rows))
plt.show()

# %% tags=["claims"]
# @title Checked: the noise of averages, the signal that is left, and the shift
noise_kept = float(jnp.var(cascade.down(fresh_eps, 4)) * 16)
assert abs(noise_kept - 1) < 0.15  # 1,920 averages: their variance is known within 3.2 %, four times
signal_kept = float(jnp.var(cascade.down(at_32, 4)) / jnp.var(at_32))
assert 0.6 < signal_kept < 0.95
assert abs(float(p.log_snr(t_large) - p.log_snr(t_small)) + 2 * np.log(4)) < 1e-3  # bisection
print(f"variance that averages keep: signal {signal_kept:.2f}, noise {noise_kept / 16:.3f}")

# %% [markdown]
# The 32-pixel picture at $t=0.6$ shows its shape plainly; the 8-pixel picture does not. At the later time both are
# equally hard. Equation (3) is exact for the noise and for flat regions. Edges lie inside squares, so real
# averages lose some of the signal too, and the true gain is a little smaller.
#
# **Progressive training** uses the same order: first many steps with small pictures, where steps are cheap, then
# a few with large ones, with the schedule moved by (3). A convolution or a patch does not know the picture's
# size; only positions must be stretched (chapter 16).

# %% [markdown]
# ### Buckets
#
# A batch is one array, so its pictures have one height and one width. Cropping everything to a square cuts heads and
# feet off. **Multi-aspect training** keeps a list of *buckets*: pairs (height, width), all multiples of the patch,
# with about the same number of pixels and so of tokens. Each picture goes to the bucket whose ratio is nearest, on
# a logarithmic scale, and each batch comes from one bucket (Podell et al. 2024, section 2.3).
#
# The trap is a name. A *landscape* is wide: its height/width is **below** 1. Many tables call 16:9 a ratio of 1.78,
# which is width/height.

# %%
PATCH, BUDGET = 8, 48 * 48
sides = range(24, 97, PATCH)  # ratios up to 4
buckets = [(h, max(w for w in sides if h * w <= BUDGET)) for h in sides]
ratios = np.array([h / w for h, w in buckets])


def bucket(height, width):
    return buckets[int(np.abs(np.log(ratios) - np.log(height / width)).argmin())]


for title, h, w in (("landscape", 1080, 1920), ("portrait", 1920, 1080), ("square", 500, 512)):
    print(f"{title:9} {h:4} × {w:4} -> {bucket(h, w)}, and with width/height {bucket(w, h)}")
tokens = [h * w // PATCH**2 for h, w in buckets]
print(f"{len(buckets)} buckets of {min(tokens)} to {max(tokens)} tokens")

# %% tags=["claims"]
# @title Checked: a landscape's bucket is wide, and the other ratio turns it
assert bucket(1080, 1920)[0] < bucket(1080, 1920)[1]
assert bucket(1080, 1920) != bucket(1920, 1080)
assert bucket(500, 512) == (48, 48)
assert max(tokens) <= BUDGET // PATCH**2 and min(tokens) >= 0.75 * BUDGET // PATCH**2
assert all(h % PATCH == 0 and w % PATCH == 0 for h, w in buckets)

# %% [markdown]
# ### A refiner for the last levels
#
# SDXL hands its samples to a second model that was trained on the last 200 of 1,000 noise levels only (Podell et al.
# 2024, section 2.5). eDiff-I divides all levels among experts (Balaji et al. 2022). What can the last levels repair?
#
# We ask our texture. A *generalist* believes that every variance $\lambda$ of it is half of what it is. A *refiner*
# that knows the truth takes over below time $t_r$. Along each axis of $C$ the denoiser multiplies by a number, so
# the result of all steps is a product, and nothing is random.
#
# **Predict, then run.** The refiner takes over at $t_r=0.2$. Which share of the mistake does it repair: of the finest
# structure, of the clouds, and of all?

# %%
variances_of_texture = np.linalg.eigvalsh(C)
fine_times = sampling.uniform(400)
a_t, s_t = (np.asarray(f(fine_times), np.float64)[:, None] for f in (p.alpha, p.sigma))


def drawn_std(believed):
    """Standard deviation along each axis, [144]; what is believed at each step, [400, 144]."""
    x0 = a_t[:-1] * believed / (a_t[:-1] ** 2 * believed + s_t[:-1] ** 2)
    eps = (1 - a_t[:-1] * x0) / s_t[:-1]
    return s_t[0] * np.prod(a_t[1:] * x0 + s_t[1:] * eps, axis=0)


knows = np.broadcast_to(variances_of_texture, (400, SIDE**2))
right_std = drawn_std(knows)
TAKEOVERS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
amiss = []
for t_r in TAKEOVERS:
    believed = np.where(fine_times[:-1, None] < t_r, knows, knows / 2)
    amiss.append((drawn_std(believed) - right_std) ** 2)
amiss = np.array(amiss)
parts_of_error = {"finest 30 axes": slice(30), "coarsest axis": slice(-1, None), "all": slice(None)}
left_over = {name: amiss[:, k].sum(1) / amiss[0, k].sum() for name, k in parts_of_error.items()}
plots.curves(TAKEOVERS, left_over, xlabel="$t_r$: where the refiner takes over",
             ylabel="squared error that is left")  # fmt: skip
plt.show()

# %% tags=["claims"]
# @title Checked: the last fifth of the levels repairs the finest structure and leaves the clouds
at = TAKEOVERS.index(0.2)
assert left_over["finest 30 axes"][at] < 0.05 and left_over["coarsest axis"][at] > 0.97
assert 0.83 < left_over["all"][at] < 0.93

# %% [markdown]
# The last fifth of the levels repairs almost the whole mistake of the finest structure, and about an eighth of all.
# The clouds stay wrong: they were decided at earlier times, when their signal rose above the noise. So a refiner is
# for details. Composition must come from the first levels, or from a base: a cascade is the same division by size.
