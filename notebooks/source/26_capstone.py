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
# # 26 · Capstone
#
# **The question.** Everybody gets the same network and the same few evaluations. Whose images are best, and how
# can we be sure that the numbers say what they seem to say?
#
# At the end of this chapter you will be able to
#
# - write a sampler for a network that you can only ask, and enter it on a leaderboard;
# - count evaluations where nobody can hide any;
# - explain why a memorised image gains nothing here, and compute what a sampler can know;
# - give a score its interval, and recognise a winner that only had luck;
# - see through a score that is better than its images.
#
# **You need** chapters 06 (DDIM), 11 (solvers) and 13 (evaluation). **Time**: about 60 minutes of reading, and
# as long as you like for your own sampler. The cells run for about a minute on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
import contextlib
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffusion_course.data import digits
from diffusion_course.evaluation import metrics
from diffusion_course.leaderboard import baselines, cheats, game, match, scores
from diffusion_course.models.classifier import judge as look
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# Three samplers draw digits with the same frozen network, the one that the course releases. The first may ask it
# eight times for each image. The other two may ask twice, and have the same noise. A judge, the classifier of
# chapter 13, computes the Fréchet distance of 300 images of each sampler to the training set. Lower is better.
#
# **Predict, then run.** Which of the two rows with two evaluations will have the better score?

# %%
dealer = game.Dealer(game.digits(), "chapter 26", images=300)
judge = scores.judge()
PLAYERS = {"DDIM, 8": ("DDIM", 8), "DDIM, 2": ("DDIM", 2), "?, 2": ("DDIM, with noise on top", 2)}


def play(sample, evaluations, by=dealer):
    """The images of a sampler, and their score."""
    played = match.here(sample, by, [evaluations])[evaluations]
    return played.pixels, judge.score(played.pixels, by.deal(evaluations).labels)


first = {name: play(baselines.BASELINES[which][1], n) for name, (which, n) in PLAYERS.items()}
distances = {name: score.frechet for name, (_, score) in first.items()}
labels = [f"{name}\nFréchet {d.value:.1f}" for name, d in distances.items()]
plots.image_grid([pixels[:14] for pixels, _ in first.values()], labels, scale=0.5)
plt.show()

# %% tags=["claims"]
# @title Checked: the noisy row scores better than the clean one, by more than both intervals
assert distances["?, 2"].high < distances["DDIM, 2"].low
assert distances["DDIM, 8"].value < distances["?, 2"].value

# %% [markdown]
# The third row is DDIM with two evaluations, and then plain noise on top of each image. Nobody would call
# these images better, and the score does, by far more than its error. So a leaderboard needs more than a
# number. In this chapter we build one: who counts, what is hidden, what is measured, how sure it is, and what
# it does not see.

# %% [markdown]
# ## 2 · The game
#
# You write one function, and the harness calls it:
#
# ```python
# def sample(denoise, noise, evaluations, seed): ...   # returns the images
# ```
#
# `noise` holds N rows of 64 standard normal numbers, one row for each image. `denoise(x, t)` is the network. It
# returns the expected clean images $\hat x_0$, and knows each image's class, which you do not. A call is one
# evaluation of every row. You may also ask for some of the images, `denoise(x, t, images)`, or without the
# class, `denoise(x, t, null=True)`. No image may have more than `evaluations` of them.
#
# The process is the cosine process of chapter 01, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, which has only
# noise at
# $t = 1$. DDIM is equation (12) of Song, Meng & Ermon (2021) without fresh noise:
#
# $$x_s = \alpha_s\, \hat x_0 + \sigma_s\, \frac{x_t - \alpha_t\, \hat x_0}{\sigma_t}. \tag{1}$$


# %%
alpha = lambda t: float(game.PROCESS.alpha(t))
sigma = lambda t: float(game.PROCESS.sigma(t))


def along(denoise, x, times):
    """Equation (1), from each time to the next."""
    for t, s in itertools.pairwise(times):
        x0 = denoise(x, t)
        x = alpha(s) * x0 + sigma(s) * (x - alpha(t) * x0) / sigma(t)
    return x


def my_sampler(denoise, noise, evaluations, seed):
    return along(denoise, noise, np.linspace(1, 0, evaluations + 1))


mine, my_score = play(my_sampler, 2)
print("largest difference from the library's DDIM:", np.abs(mine - first["DDIM, 2"][0]).max())
greedy = lambda denoise, noise, evaluations, seed: along(denoise, noise, np.linspace(1, 0, 9))
refused = match.here(greedy, dealer, [4])[4]
print(f"{refused.status}: {refused.message}")

# %% tags=["comparison"]
# float32 in another order, twice through the network and a rotation of 64 numbers.
np.testing.assert_allclose(mine, first["DDIM, 2"][0], atol=1e-3)

# %% tags=["claims"]
# @title Checked: there is only noise at t = 1, and the fifth question of four has no answer
assert alpha(1) == 0 and sigma(1) == 1 and alpha(0) == 1 and sigma(0) == 0
assert refused.status == "refused" and refused.pixels is None
assert dealer.deal(4).noise.shape == (300, 64)

# %% [markdown]
# ## 3 · Who counts?
#
# The simplest counter is a line in Python, `calls += 1`. JAX makes it worthless. Under `jit` a function's Python
# code runs once, when the program is compiled, and the program then runs as often as it likes. Under `vmap` one
# call stands for a whole batch.
#
# **Predict, then run.** Below, a counter watches a denoiser in a loop of 50 steps for 30 images: 1,500
# evaluations. What
# will it say?

# %%
calls = 0


def watched(x, t):
    """A stand-in for the network, with a counter that looks right."""
    global calls
    calls += 1
    return 0.5 * x


@jax.jit
@jax.vmap
def in_disguise(x):
    return jax.lax.fori_loop(0, 50, lambda i, x: watched(x, 1 - i / 50), x)


in_disguise(jnp.ones((30, 64)))
print(f"the counter says {calls}")
new_game = dealer.game(8)
try:
    jax.vmap(lambda x: jnp.asarray(new_game.denoise(x[None], 0.5)[0]))(jnp.ones((300, 64)))
except ValueError as error:
    print(f"the harness says: {error}")

# %% tags=["claims"]
# @title Checked: a counter sees traces; the harness takes none, counts rows, and forgives nothing
assert calls < 5  # one trace, or a few: never 1,500
assert new_game.counts.sum() == 0
new_game.denoise(dealer.deal(8).noise[:8], 0.5, np.full(8, 3))  # image 3, eight times in one call
assert new_game.counts[3] == new_game.counts.sum() == 8


def unruly(denoise, noise, evaluations, seed):
    for _ in range(2):
        with contextlib.suppress(game.TooMany):
            denoise(noise, 0.5)
    return noise


assert match.here(unruly, dealer, [1])[1].status == "refused"

# %% [markdown]
# This is the chapter's silent bug: nothing fails, and the number is printed with confidence. So the harness
# does not watch your code. It **keeps the network**. Your notebook runs in a sandbox, in another process, and
# `denoise` sends rows of numbers through a pipe. The harness counts the rows that arrive, image by image. A
# traced array holds no numbers, so it cannot be sent, and the error says so. Eight rows of one image in one call
# are eight evaluations.
#
# A submission that asks for too much has no score with that budget, even if it catches the error.

# %% [markdown]
# ## 4 · Secret coordinates
#
# A sandbox can hide files. But you have them at home: weights, training images, classes. A notebook could
# carry the answer with it, and `denoise` would be asked for show. How do we make knowledge worthless, without
# looking for it?
#
# The harness draws a random rotation $Q_i$ of the 64-dimensional space for each image $i$, and keeps it.
# What you see is the network in those coordinates:
#
# $$D_i(x, t) = Q_i\, D(Q_i^\top x,\; t), \tag{2}$$
#
# and what you return is taken back by $Q_i^\top$. If $z$ is standard normal, so is $Q^\top z$. And a step made of
# sums turns with its inputs: for (1), with $y = Q^\top x$,
#
# $$a\, Q D(Q^\top x) + b\, x = Q\,\big(a\, D(y) + b\, y\big). \tag{3}$$
#
# So a sampler made of such steps draws the very same images as without $Q$ (such a map is called **equivariant**).
# One that adds noise of its own draws other images, of the same law.


# %%
def uniform_rotation(rng, size):
    """An orthogonal matrix of uniform law: QR of a normal matrix, R's diagonal made positive."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def served_by_hand(deal, x, t):
    """Equation (2) for every image, with the network of the game."""
    turned = [q.T @ row for q, row in zip(deal.rotations, x, strict=True)]  # to pixels
    at = np.full(len(x), t, np.float32)
    x0 = dealer.backbone.denoise(np.reshape(turned, (-1, 8, 8, 1)), at, deal.labels)
    return np.stack([q @ row.ravel() for q, row in zip(deal.rotations, x0, strict=True)])


deal = dealer.deal(2)
straight = np.einsum("nij,ni->nj", deal.rotations, deal.noise)  # the same noise, in pixels
plain = game.Deal(2, 0, straight, deal.labels, np.broadcast_to(np.eye(64), (300, 64, 64)))
open_game = game.Game(dealer.backbone, plain)
unturned = open_game.pixels(my_sampler(open_game.denoise, straight, 2, 0))
print("DDIM with and without rotations:", f"largest difference {np.abs(unturned - mine).max():.0e}")

# %% tags=["comparison"]
served = dealer.game(2).denoise(deal.noise, 0.9)
np.testing.assert_allclose(served_by_hand(deal, deal.noise, 0.9), served, atol=1e-3)

# %% tags=["claims"]
# @title Checked: rotations change nothing for DDIM, and they are rotations of uniform law
np.testing.assert_allclose(unturned, mine, atol=3e-3)  # float32, two evaluations
many = np.stack([uniform_rotation(np.random.default_rng(i), 3) for i in range(2000)])
squares = many @ many.transpose(0, 2, 1)
np.testing.assert_allclose(squares, np.broadcast_to(np.eye(3), squares.shape), atol=1e-12)
# Mean 0 and variance 1/3 for each entry; 2,000 draws: four standard errors.
assert np.abs(many.mean(0)).max() < 4 * np.sqrt(1 / 3 / 2000)
assert np.abs((many**2).mean(0) - 1 / 3).max() < 0.03

# %% [markdown]
# Now take the place of a cheat who knows everything but $Q$: the weights, the training images, even each
# image's class.
#
# **Predict, then run.** What will a perfect training image look like when the harness has taken it back?

# %%
train = digits.load("train")
one = dealer.game(1)
known = cheats.all_of_them(one, dealer.backbone, train.x, train.labels)
shown = {"a training image, returned": known["memorised training images"]}
shown["50 steps with stolen weights"] = known["the weights, called directly"]
shown["the honest single evaluation"] = my_sampler
cheated = {name: play(sample, 1) for name, sample in shown.items()}
captions = [f"{name}\nFréchet {score.frechet.value:.0f}" for name, (_, score) in cheated.items()]
plots.image_grid([pixels[:12] for pixels, _ in cheated.values()], captions, scale=0.5)
plt.show()

# %% tags=["claims"]
# @title Checked: what is not in the image's own coordinates becomes noise, at the level of chance
honest = cheated["the honest single evaluation"][1]
for name in list(shown)[:2]:
    lost = cheated[name][1]
    assert lost.accuracy.low < 0.1 < lost.accuracy.high + 0.03  # chance; 300 images
    assert lost.frechet.low > honest.frechet.high

# %% [markdown]
# Noise. The image was right, in coordinates that are not this image's. Both are recognised at the level of chance,
# one in ten.
#
# ### What can be known?
#
# All that a notebook learns of $Q_i$ are its answers. Ask at $x = 0$: the answer is $Q_i\, D(0, t)$. Whoever has the
# weights knows $D(0, t)$ as well, so he has one vector in both coordinates. A second question, at a multiple of
# that vector, gives another one. After $k$ questions he knows $Q_i$ on $k$ dimensions, of 64. The best that he
# can do with a
# memorised image $x^\star$ is to return its part in that span $U$,
#
# $$\hat x = Q U U^\top x^\star , \tag{4}$$
#
# and to guess the rest. The cheat below does that. Its questions go towards $x^\star$, so that the answers span
# as much of it as
# possible. The rest it leaves out, or it fills it with a random direction of the right length, or it spends its last
# evaluation on it.

# %%
ALIGNED = {
    "part in the span": "memorised, aligned by the answers",
    "rest random": "memorised, aligned, the rest random",
    "rest asked for": "memorised, aligned, the rest asked for",
}
knowing, without = {}, {}
for n in (1, 2, 4):
    arts = cheats.all_of_them(dealer.game(n), dealer.backbone, train.x, train.labels)
    for name, art in ALIGNED.items():
        knowing[n, name] = play(arts[art], n)[1].frechet
    for name in ("DDIM", "DDIM, with noise on top"):
        without[n, name] = play(baselines.BASELINES[name][1], n)[1].frechet
for n in (1, 2, 4):
    row = [f"{name} {knowing[n, name].value:.1f}" for name in ALIGNED]
    row += [f"{name} {without[n, name].value:.1f}" for name in ("DDIM", "DDIM, with noise on top")]
    print(f"{n} evaluations, Fréchet: " + ", ".join(row))

# %% tags=["claims"]
# @title Checked: the cheat that knows everything but Q loses to a baseline at every budget here
for n in (1, 2, 4):
    best_honest = min(v.value for (m, _), v in without.items() if m == n)
    assert min(v.value for (m, _), v in knowing.items() if m == n) > best_honest + 0.3
assert knowing[1, "rest random"].high < without[1, "DDIM"].low

# %% [markdown]
# With one evaluation, the random filling beats DDIM. But look at why: it needs no memorised image for that. An
# honest baseline that puts noise on top of DDIM is better still, since it is the *noise* that the score likes.
# We come back to this in section 7.
#
# Secret coordinates have a price. A sampler cannot clip to $[-1, 1]$, blur, or do anything else that treats the
# numbers as pixels, and a student network (chapter 18) could not be run, as it needs pixels. The game is about
# samplers.

# %% [markdown]
# ## 5 · How sure is a score?
#
# The board shows four numbers: the **Fréchet distance** $F$ of chapter 13; **coverage**, the share of 360
# unseen digits
# that have a generated one nearby; **accuracy**, the share recognised as the class that was asked for; and
# **copies**,
# the share that is nearer to a training image than 99 % of unseen digits are. Shares have Wilson's interval
# (Wilson 1927). For the Fréchet distance, one more sample $x_i$ changes $F$ by its **influence**
#
# $$\phi_i = 2\,(m - m_y)^\top u_i + u_i^\top (I - T)\, u_i, \qquad u_i = x_i - m, \qquad
# \operatorname{std}(F) \approx \frac{\operatorname{std}(\phi)}{\sqrt N}. \tag{5}$$
#
# $m$ and $m_y$ are the means of the features of samples and data, and $T = C^{-1/2} (C^{1/2} C_y C^{1/2})^{1/2}
# C^{-1/2}$. $I - T$ is the
# gradient of $F$ by the covariance $C$ (Bhatia, Jain & Lim 2019). One line of statistics saves hundreds of
# resamplings.


# %%
def error_by_hand(x, moments):
    """Equation (5): the standard error of the Fréchet distance of features x [N, D]."""
    m, C = x.mean(0), np.cov(x.T)
    values, axes = np.linalg.eigh(C)
    C_half, C_minus = ((axes * values**power) @ axes.T for power in (0.5, -0.5))
    inner, inner_axes = np.linalg.eigh(C_half @ moments.covariance @ C_half)
    T = C_minus @ (inner_axes * np.sqrt(inner)) @ inner_axes.T @ C_minus
    u = x - m
    phi = 2 * u @ (m - moments.mean) + np.sum(u * (u @ (np.eye(len(m)) - T)), axis=1)
    return phi.std(ddof=1) / np.sqrt(len(x))


big = game.Dealer(game.digits(), "section 5", images=2000)
drawn, _ = play(my_sampler, 2, big)
features = np.asarray(look(judge.classifier, drawn)[1], np.float64)
groups = features.reshape(10, 200, -1)
of_groups = np.array([metrics.frechet(group, judge.moments) for group in groups])
predicted = np.array([error_by_hand(group, judge.moments) for group in groups])
scatter = of_groups.std(ddof=1)
print(f"ten draws of 200 images: {of_groups.mean():.2f}, and they scatter by {scatter:.2f}")
print(f"equation (5) from one draw: between {predicted.min():.2f} and {predicted.max():.2f}")
print(f"all 2,000 images: {metrics.frechet(features, judge.moments):.2f}")

# %% tags=["comparison"]
np.testing.assert_allclose(predicted[0], metrics.frechet_error(groups[0], judge.moments), rtol=1e-3)

# %% tags=["claims"]
# @title Checked: (5) predicts the scatter, and few images make the distance too large
# Ten values know their own scatter to ± 24 %: half to twice is two and a half standard errors.
assert 0.5 < predicted.mean() / of_groups.std(ddof=1) < 2
assert metrics.frechet(features, judge.moments) < of_groups.min()  # below each of the ten
assert len(judge.unseen) == 360

# %% [markdown]
# The formula agrees with what ten draws show. The last line shows something else: with ten times as many images the
# distance itself is *lower*. A Fréchet distance of few images is too high, for every sampler (chapter 13). So
# the board
# compares only samplers that drew equally many, and the interval says how far *another draw of as many* would lie.
#
# ## 6 · The board
#
# This was recorded once, with 1,000 images for each budget: each chapter's sampler, and DDIM with 50 evaluations as
# the goal. `benchmarks/leaderboard.py` makes the numbers anew. `diffusion-course leaderboard FOLDER` makes the page
# of a class, with these baselines in grey.
#
# **Predict, then run.** Chapter 11 counted orders. With eight evaluations, who is ahead: Heun's method, of second
# order, which pays two evaluations for a step, or DPM-Solver++(2M), of second order as well, which pays one? And
# who is ahead with two?

# %%
RECORDED = {  # Fréchet distance with 1, 2, 4 and 8 evaluations
    "DDPM": (17.72, 4.47, 2.21, 1.2),
    "DDIM": (17.72, 4.49, 1.57, 0.83),
    "DDIM, quadratic grid": (17.72, 6.42, 2.0, 0.87),
    "DDIM, guided (w = 1.5)": (17.72, 17.86, 6.31, 2.79),
    "reverse SDE": (17.72, 4.47, 2.49, 0.51),
    "Euler in time": (17.72, 2.32, 0.82, 0.57),
    "PNDM": (17.72, 4.49, 4.73, 1.39),
    "DPM-Solver++(2M)": (17.72, 4.49, 0.92, 0.51),
    "DPM-Solver++(2M), log-SNR grid": (17.72, 16.67, 0.91, 0.38),
    "SDE-DPM-Solver++(2M)": (17.72, 4.47, 1.51, 0.52),
    "UniPC": (17.72, 4.49, 1.08, 0.54),
    "DEIS": (17.72, 4.49, 0.96, 0.55),
    "SA-Solver": (17.72, 4.47, 1.23, 0.35),
    "Heun": (17.72, 4.49, 1.21, 0.59),
    "Heun, EDM's noise levels": (17.72, 17.92, 45.74, 3.05),
    "Heun with churn": (17.72, 4.81, 1.29, 0.54),
    "flow matching's grid": (17.72, 4.44, 1.55, 0.81),
    "consistency sampler": (17.72, 4.47, 2.9, 2.4),
    "DDIM, with noise on top": (4.04, 1.58, 1.03, 0.71),
}
GOAL = 0.32  # DDIM with 50 evaluations
HALVES = {"SA-Solver": 0.10, "DPM-Solver++(2M)": 0.16, "Heun": 0.17}  # of 95 % intervals, at 8

# %%
print(" " * 32 + "".join(f"{n:8}" for n in game.BUDGETS))
for name in sorted(RECORDED, key=lambda name: RECORDED[name][-1]):
    chapter = baselines.BASELINES[name][0]
    print(f"{chapter} {name:29}" + "".join(f"{value:8.2f}" for value in RECORDED[name]))
print("06 DDIM, 50 evaluations".ljust(32) + f"{GOAL:32.2f}")
recorded_deal = game.Dealer(game.digits(), "recorded", images=1000)
once_more = play(baselines.BASELINES["DDIM"][1], 2, recorded_deal)[1].frechet
print("played again, DDIM with 2 evaluations:", *(f"{end:.2f}" for end in once_more))

# %% tags=["claims"]
# @title Checked: a row played again; who leads; what guidance costs; what everybody has in common
assert abs(once_more.value - RECORDED["DDIM"][1]) < 0.02  # the same seed: float32, another machine
column = lambda i: {name: row[i] for name, row in RECORDED.items()}
order = {i: sorted(column(i), key=column(i).get) for i in range(4)}
assert RECORDED["DPM-Solver++(2M)"][3] < RECORDED["Heun"][3] and order[3][0] == "SA-Solver"
assert order[0][0] == order[1][0] == "DDIM, with noise on top" and order[1][1] == "Euler in time"
assert RECORDED["DDIM, guided (w = 1.5)"][3] > 3 * RECORDED["DDIM"][3]
assert RECORDED["DDIM, guided (w = 1.5)"][3] > RECORDED["DDIM"][2]
assert len({v for name, v in column(0).items() if name != "DDIM, with noise on top"}) == 1
assert RECORDED["Heun, EDM's noise levels"][2] > 2 * RECORDED["DDIM"][0]
assert GOAL < RECORDED["SA-Solver"][3] < GOAL + HALVES["SA-Solver"]
assert RECORDED["Heun"][3] - RECORDED["DPM-Solver++(2M)"][3] < 0.1
assert min(HALVES["Heun"], HALVES["DPM-Solver++(2M)"]) > 0.1
second = RECORDED["DPM-Solver++(2M), log-SNR grid"][3]
assert order[3][1] == "DPM-Solver++(2M), log-SNR grid"
assert second - RECORDED["SA-Solver"][3] < 0.04 < HALVES["SA-Solver"]
jumps = -np.diff(baselines.karras(3))  # the three steps of four evaluations, in t
assert len(jumps) == 3 and jumps.max() > 0.8

# %% [markdown]
# Read the table column by column.
#
# - **One evaluation.** All have the same score, since all do the same: the only step goes to $t = 0$, where
#   every sampler returns $\hat x_0$. Only the row with noise on top differs.
# - **Two.** Noise on top leads, and then *Euler's method in time*, the crudest of all. An order says what happens
#   when steps become small. Two steps are not small.
# - **Eight.** SA-Solver is first, but 2M on the log-SNR grid is only 0.03 behind, and SA-Solver's interval, ± 0.10,
#   also reaches down to DDIM with 50 evaluations. 2M is ahead of Heun by less than 0.1, inside both intervals,
#   ± 0.16 and ± 0.17. Intervals of single scores decide neither order. Section 8 shows what may: differences on equal noise.
# - **Guidance** costs half of the steps, and moves samples away from the data on purpose. This score punishes both.
# - **EDM's noise levels** were made for many steps. With three of them, nearly all of the way is taken in one jump.
#
# So the board says only which method is best for this network, this budget and this score.

# %% [markdown]
# ## 7 · Better than its images
#
# Why does noise on top win? A guess would be "the images vary too little". Let us look instead of guessing: at
# the pixels, at the features, and at the corners. Eleven pixels at the border are nearly the same in all training
# images.
#
# **Predict, then run.** With two evaluations, do the *features* vary too little, or too much?

# %%
still = train.x.std(0)[..., 0] < 0.05  # pixels that hardly change in the data
real_pixels = np.var(train.x, axis=0).sum()
real_features = np.trace(judge.moments.covariance)
two = dealer.deal(2).labels
grain = np.random.default_rng(7).standard_normal(mine.shape)
ON_TOP, seen_by = np.arange(0, 0.45, 0.1), {}
for c in ON_TOP:
    x = np.clip(mine + c * grain, -1, 1).astype(np.float32)
    f = np.asarray(look(judge.classifier, x)[1], np.float64)
    seen_by[c] = {
        "Fréchet": judge.score(x, two).frechet.value,
        "pixels": np.var(x, axis=0).sum() / real_pixels,
        "features": np.trace(np.cov(f.T)) / real_features,
        "still pixels": x[:, still].std(0).mean(),
    }
    print(f"noise {c:.1f}: " + ", ".join(f"{k} {v:.2f}" for k, v in seen_by[c].items()))
print(f"in the data: pixels 1, features 1, still pixels {train.x[:, still].std(0).mean():.2f}")

# %% tags=["claims"]
# @title Checked: pixels vary too little, features too much; noise mends both, and the border shows it
assert still.sum() == 11
assert seen_by[0.0]["pixels"] < 0.7 and seen_by[0.0]["features"] > 1.15
assert abs(seen_by[0.2]["features"] - 1) < abs(seen_by[0.0]["features"] - 1) / 2
assert seen_by[0.0]["pixels"] < seen_by[0.2]["pixels"] < 1
assert seen_by[0.2]["Fréchet"] < 0.6 * seen_by[0.0]["Fréchet"] < seen_by[0.4]["Fréchet"]
assert seen_by[0.2]["still pixels"] > 3 * train.x[:, still].std(0).mean()
assert seen_by[0.0]["still pixels"] < 0.03
centres = np.stack([train.x[train.labels == k].mean(0) for k in range(10)])
from_centre = lambda x, labels: np.sqrt(np.mean((x - centres[labels]) ** 2))
assert from_centre(mine, two) < 0.7 * from_centre(train.x, train.labels)
sure = lambda x: float(jax.nn.softmax(judge.classifier(jnp.asarray(x))).max(1).mean())
# 300 images: the mean's standard error is below .005; .98 and .96 were found.
assert sure(mine) > sure(train.x) + 0.015

# %% [markdown]
# Both at once. The pixels vary too little: each image is near the mean of its class. And the features vary too
# *much*: a mean digit is a very typical one, of which the judge is too sure. Noise brings both nearer to the data's
# values, so the distance falls. The images did not become digits. Eleven pixels that are still in every real digit
# now flicker, and no column of the board looks at them.
#
# This is Goodhart's law, again (chapter 19): a score stops being a good measure when it is what people
# optimise. Three
# things help. Look at images, which is why the page shows them. Ask a second judge that was not optimised, such as
# the still pixels. And say in the report what your sampler does that the score does not see.

# %% [markdown]
# ## 8 · A sampler with one free number
#
# Your turn begins small. Two evaluations leave one number to choose, the middle time: $1 \to m \to 0$. The board
# has $m = 0.5$. Is there a better one? Here everybody has the same noise, the same classes and the same rotations:
# only $m$ differs.
#
# **Move the slider.** Early middles (large $m$) and late ones (small $m$) fail differently. How?

# %%
MIDDLES = np.array([0.3, 0.4, 0.45, 0.5, 0.6, 0.7, 0.85])
practice = game.Dealer(game.digits(), "practice", images=500)


def with_middle(m):
    return lambda denoise, noise, evaluations, seed: along(denoise, noise, [1, m, 0])


tried = {m: play(with_middle(m), 2, practice) for m in MIDDLES}
heights = np.array([tried[m][1].frechet.value for m in MIDDLES])
covered = np.array([tried[m][1].coverage.value for m in MIDDLES])


def at_middle(i):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), width_ratios=(1, 1.5))
    left.plot(MIDDLES, heights, "o-", color=plots.PREDICTION)
    left.plot(MIDDLES[i], heights[i], "o", color=plots.TRUTH, ms=10)
    left.set(xlabel="middle time $m$", ylabel="Fréchet distance", ylim=(0, None))
    right.imshow(plots.tile(tried[MIDDLES[i]][0][:24], 8))
    right.set(title=f"m = {MIDDLES[i]:.2f}: coverage {covered[i]:.0%}", xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    return fig


at_middle(3)
plt.show()

# %%
widgets.explorer(
    widgets.render(at_middle, range(len(MIDDLES))), [f"m = {m:.2f}" for m in MIDDLES],
    slider="middle", start=3,
)  # fmt: skip

# %% tags=["claims"]
# @title Checked: the best middle lies near one half, and both ends are worse
best_m = MIDDLES[heights.argmin()]
assert best_m in (0.45, 0.5) and heights[-1] > 2 * heights.min() and heights[0] > heights.min()
assert covered[-1] < covered.max() - 0.2
assert heights[1:5].max() < 1.2 * heights.min()  # from 0.4 to 0.6: flat
asked_of = practice.deal(2).labels
near = [from_centre(tried[m][0], asked_of) for m in (0.85, 0.5)]
assert near[0] < 0.7 * near[1]

# %% [markdown]
# A large $m$ gives images near the class mean: the second question is asked from almost pure noise, as the first
# one was. Their coverage is low. With a small $m$ the first step is long, and it goes all the way along one rough
# guess. Between them lies a wide, flat valley.
#
# ### Chosen, or lucky?
#
# Whoever tries twenty samplers and reports the best reports some luck as well. Section 5 drew the *same* sampler
# ten times. The best of those ten "methods" has a fine score, and it is worth nothing. The board gives all
# players the same noise: then luck is shared, and *differences* are surer than the scores.
#
# **Predict, then run.** By how much does the best of ten equal samplers beat their mean? And how sure is the
# difference of two middles on the same noise?

# %%
luck = of_groups.mean() - of_groups.min()
print(f"the best of ten equal samplers seems better by {luck:.2f}, {luck / scatter:.1f} deviations")
parts = {
    m: np.array([
        metrics.frechet(part, judge.moments)
        for part in np.split(np.asarray(look(judge.classifier, tried[m][0])[1], np.float64), 5)
    ])
    for m in (0.5, 0.7)
}  # fmt: skip
apart = parts[0.7] - parts[0.5]
spread_of = lambda values: values.std(ddof=1)
print(f"five parts of 100 images: scores scatter by {spread_of(parts[0.5]):.2f} and "
      f"{spread_of(parts[0.7]):.2f}, their difference by {spread_of(apart):.2f} "
      f"about {apart.mean():.2f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: luck is of the size of the differences on the board; on the same noise it cancels
assert 0.3 < luck / of_groups.std(ddof=1) < 3  # of ten normal values 1.5 is expected
alone = np.hypot(parts[0.5].std(ddof=1), parts[0.7].std(ddof=1))  # if they had noise of their own
assert apart.std(ddof=1) < 0.8 * alone and apart.min() > 0

# %% [markdown]
# So try your ideas with a secret of your own, as here with `practice`, on the same noise for all. Keep
# those whose *difference* is sure. Then hand in once: the board is played with a secret that nobody has tuned on.
#
# ## 9 · Your capstone
#
# Write a notebook with one function `sample`, and a report of a page. The code below writes the smallest
# notebook that can be handed in. Your leader plays the folder with
# `diffusion-course leaderboard FOLDER --out board.csv`.
#
# | the report | points |
# |---|---|
# | **Idea**: one sentence that says why it should work, and a prediction made before the first run | 2 |
# | **Baseline**: which one, on the same noise, with the difference and its error | 2 |
# | **One thing at a time**: what happens without each part of the idea | 2 |
# | **What the score does not see**: images at every budget, a second measure, a failure | 2 |
# | **Honesty**: how many things were tried, and on which secret | 2 |
#
# The place on the board earns nothing here. A report on an idea that did not work can have full points.

# %%
import tempfile
from pathlib import Path

import nbformat

CELL = """
import numpy as np
from diffusion_course.leaderboard.game import PROCESS as p

def sample(denoise, noise, evaluations, seed):
    x, times = noise, np.linspace(1, 0, evaluations + 1)
    for t, s in zip(times[:-1], times[1:]):
        x0 = denoise(x, t)
        eps = (x - float(p.alpha(t)) * x0) / float(p.sigma(t))
        x = float(p.alpha(s)) * x0 + float(p.sigma(s)) * eps
    return x
"""
hand_in = Path(tempfile.mkdtemp()) / "my_sampler.ipynb"
nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)]), hand_in)
names = {}
exec(CELL, names)
handed_in, _ = play(names["sample"], 2)
print(f"{hand_in.name}: {hand_in.stat().st_size} bytes; it draws what section 2 drew")

# %% tags=["claims"]
# @title Checked: the notebook to hand in is the sampler of section 2
np.testing.assert_allclose(handed_in, mine, atol=1e-5)

# %% [markdown]
# ## 10 · What to inspect
#
# | look at | healthy | something is wrong |
# |---|---|---|
# | evaluations used, per image | the budget, for all images | fewer: steps were dropped; more: refused |
# | the score at 1 evaluation | that of all others | another: check what the last step returns |
# | score against evaluations | falls | rises: a grid or an order that needs more steps |
# | accuracy near 1, coverage low | – | images near the class mean |
# | copies far above 1 % | – | memorised, or guidance too strong |
# | pixels that never change in the data | still | noise that is left over |
# | the best of many tries, on a new secret | as good | it was luck |

# %% [markdown]
# ## 11 · Recap
#
# 1. A counter inside the code under test counts traces. Who keeps the network can count evaluations.
# 2. In secret coordinates a sampler of sums draws the same images, and a memorised image becomes noise.
# 3. After $k$ answers a cheat knows $k$ of 64 directions; it loses to the best honest baseline.
# 4. A score has an error, and differences on the same noise have a smaller one. The best of many tries has luck.
# 5. A Fréchet distance can improve while the images do not. Look, and measure a second thing.
#
# **Now you.** The [exercises of this chapter](../exercises/26_capstone.ipynb), and then your own sampler. How the
# harness works in detail: [the leaderboard](../docs/leaderboard.md).
#
# **Words introduced.** Harness, budget, secret coordinates, equivariant, influence, Goodhart's law (again).

# %% [markdown]
# **Read on.** Watson, Chan, Ho & Norouzi 2022, *Learning fast samplers for diffusion models by differentiating
# through sample quality*, ICLR (arXiv:2202.05830): a learnt sampler of few steps. Shaul et al. 2024, *Bespoke solvers
# for generative flow models*, ICLR (arXiv:2310.19075). Blum & Hardt 2015, *The ladder: a reliable leaderboard
# for machine
# learning competitions*, ICML (arXiv:1502.04585): what repeated submissions do to a board. Bhatia, Jain & Lim
# 2019, *On the
# Bures–Wasserstein distance between positive definite matrices*, Expositiones Mathematicae 37 (arXiv:1712.01504).
# Mezzadri 2007, *How to generate random matrices from the classical compact groups*, Notices of the AMS 54
# (arXiv:math-ph/0609050).
