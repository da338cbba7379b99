# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# **The question.** How can a network that has only learned to remove noise draw a digit that
# nobody ever wrote? And what must you know about JAX before you build one yourself?
#
# First you watch a diffusion model at work. Then you see the map of the course. Then you learn
# JAX in fifteen minutes, through seven traps that most people fall into once.
#
# **You will be able to**
#
# - say what a diffusion model does, and write its sampling loop in a few lines;
# - predict when JAX compiles a function, and count it when in doubt;
# - recognise seven traps of JAX and Flax NNX by their symptoms;
# - prove that every parameter of your network is being trained.
#
# **You need** Python and NumPy. You need neither JAX nor anything about diffusion.
# **Time:** 45 to 60 minutes; the cells take half a minute on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup(wait=False)

# %%
import itertools
import time
import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from diffusion_course import data, denoiser, process, samplers, sampling, weights
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.models.mlp import MLP
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# ## 1 · Noise in, digits out
#
# The network below was trained on 1,437 handwritten digits by this course's own code. Its card
# records how. The network can do one thing: you show it a noisy digit and tell it which digit it
# is, and it guesses the clean picture.
#
# We give it pure noise instead. We ask for a 0 in the first column, for a 1 in the second, and so
# on up to 9. Press play.

# %%
released = weights.load("digits")
model, p, kind = released.model, released.process, released.card.kind
times = sampling.uniform(24)  # 24 steps, from t = 1 (noise) down to t = 0 (data)
labels = jnp.arange(200) % 10  # ask for 0 … 9, twenty times over


@jax.jit
def draw(model, x, labels, key):
    """From noise x [B, 8, 8, 1] to digits: the pictures at every time, and the guesses at 20."""
    D = denoiser.denoiser(model, p, kind, labels)
    x0, path = sampling.sample(samplers.ddim(p), D, x, times, key)
    states = jnp.concatenate([x[None], path])
    D_shown = denoiser.denoiser(model, p, kind, labels[:20])
    guesses = jax.lax.map(lambda now: D_shown(*now), (states[:-1, :20], times[:-1]))
    return states, jnp.concatenate([guesses, x0[None, :20]])


noise = sampling.start_noise(p, jax.random.key(1), (200, 8, 8, 1))
states, guesses = map(np.asarray, draw(model, noise, labels, jax.random.key(2)))
above, below = ([plots.tile(x[:20], columns=10) for x in part] for part in (states, guesses))
frames = [np.concatenate([a, np.full((4, a.shape[1], 3), 255, np.uint8), b])
          for a, b in zip(above, below, strict=True)]  # fmt: skip
widgets.animation(frames, [f"$t$ = {t:.2f}    above: the picture, below: the guess" for t in times])

# %% [markdown]
# Here are five moments of the same run, for readers without a play button. Follow one column
# downwards.

# %% alt="Ten digits at five times, from t = 1 at the top to t = 0. On the left the noisy picture, in which digits appear only in the last two rows. On the right what the network guesses: a smudge at first, which sharpens into a digit."
stops = [0, 6, 12, 18, 24]
fig, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
titles = "the picture $x_t$", "what the network guesses is hidden in it"
for ax, part, title in zip(axes, (states, guesses), titles, strict=True):
    ax.imshow(plots.tile(np.concatenate([part[i, :10] for i in stops]), columns=10))
    ax.set(title=title, xticks=[], yticks=5 + 9 * np.arange(5))
    ax.set_yticklabels([f"$t$ = {times[i]:g}" for i in stops])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)

# %% [markdown]
# On the left, the picture seems to stay noise for a long time, and then digits appear. On the
# right, there is a smudge from the first moment on. The smudge in the first column is the average of
# all zeros, the one in the second column is the average of all ones, and so on. Each smudge is the
# average of the digits that are still possible. As noise disappears, fewer digits remain
# possible, and the smudge gets sharper. Chapter 02 explains this picture.

# %%
train, test = data.load("digits"), data.load("digits", split="test")
average = np.stack([train.x[train.labels == k].mean(axis=0) for k in range(10)])
apart = np.sqrt(np.mean((guesses[0] - average[labels[:20]]) ** 2, axis=(1, 2, 3)))
gap = apart.max()  # of the worst of the 20 pictures above
spread = np.sqrt(np.mean((train.x - average[train.labels]) ** 2))
print(f"distance from the average digits: first guesses at most {gap:.2f}, real {spread:.2f}")

# %% [markdown]
# **Predict, then run.** We drew 200 pictures. Another network was trained to read real digits. In
# how many of our pictures will it read the digit that we asked for? And are the pictures merely
# copies of training images?

# %%
reader = weights.load("digits_classifier").model
read = np.asarray(judge(reader, states[-1])[0])
share = metrics.class_accuracy(read, labels)
drawn, unseen = (metrics.nearest(x, train.x)[1] for x in (states[-1], test.x))
print(f"read as asked for: {share:.1%} of {len(read)}")
for name, distance in (("drawn", drawn), ("real but unseen", unseen)):
    print(f"distance to the nearest training image, {name}: median {np.median(distance):.2f}, "
          f"least {distance.min():.2f}")  # fmt: skip
minutes, device = released.card.recipe["minutes"], released.card.recipe["device"]
released_share = released.card.metrics["w=1"]["accuracy"]
print(f"the card: trained {minutes:.0f} minutes on {device}; {released_share:.1%} of 500 as asked")

# %% tags=["claims"]
# @title Checked: the first guesses are averages; the digits are legible and new
assert len(train) == 1437
# Training is never exact; but guessing some single digit would give the distance of real ones.
assert gap < spread / 4
# Each smudge gets sharper: the guesses leave the averages of the digits, in each of the four steps.
from_average = [np.mean((guesses[i] - average[labels[:20]]) ** 2) for i in stops]
assert np.all(np.diff(from_average) > 0)
# If .99 is right, the standard error of a share of 200 is .007; this is 4 of them.
assert share > released_share - 0.03
# A copy has distance 0: not one of the 200 comes near it.
assert drawn.min() > 0.5 * unseen.min()
# Drawn digits lie about as far from the training set as real new ones.
assert 0.75 < np.median(drawn) / np.median(unseen) < 1.25

# %% [markdown]
# The pictures are legible, and they are new. How does the network do it?
#
# **Training.** We want a network that can remove any amount of noise. So we mix a digit $x_0$ with
# Gaussian noise $\varepsilon$, for instance 0.7 times the digit and 0.7 times the noise. The network
# learns to guess the digit:
#
# $$x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon \tag{1}$$
#
# (DDPM, eq. 4.) At $t = 0$ the mixture holds only the digit, and at $t = 1$ only noise.
#
# **Sampling.** The guess is blurred while there is much noise, so we use only a small part of it. At
# time $t$ we ask for the guess $\hat x_0 = D(x_t, t)$. We compute the noise that it implies. Then we
# mix the two again at a slightly earlier time $s < t$, with a little less noise:
#
# $$\hat\varepsilon = \frac{x_t - \alpha(t)\,\hat x_0}{\sigma(t)}, \qquad
# x_s = \alpha(s)\,\hat x_0 + \sigma(s)\,\hat\varepsilon \tag{2}$$
#
# (DDIM, eq. 12 with no fresh noise; chapter 06 derives it.) One single guess would stay a smudge.
# Many small corrections lead to a sharp digit.


# %%
def by_hand(D, x):
    """DDIM, eq. 12 with its sigma = 0: from noise to data along `times`."""
    for t, s in itertools.pairwise(times):
        x0 = D(x, t)  # the guess
        eps = (x - p.alpha(t) * x0) / p.sigma(t)  # the noise that it implies
        x = p.alpha(s) * x0 + p.sigma(s) * eps  # mixed again, at the earlier time s
    return x


guess = jax.jit(lambda model, y, x, t: denoiser.denoiser(model, p, kind, y)(x, t))
digits = by_hand(partial(guess, model, labels[:20]), noise[:20])

# %% tags=["comparison"]
largest = np.abs(digits - states[-1, :20]).max()
print(f"loop by hand against the library: largest difference {largest:.1e} on a scale of −1 to 1")
# Sums in another order differ by 1e-5; a TPU also rounds factors to bfloat16. A wrong formula is
# off by more than one of the data's grey levels, which are 0.125 apart.
assert largest < 0.02
# Equation (1): at t = 0 only the digit, at t = 1 only noise, and half-way 0.7 of each.
assert p.alpha(0.0) == 1 and p.sigma(0.0) == 0 and p.alpha(1.0) < 1e-3 and p.sigma(1.0) > 0.999
assert max(abs(float(level(0.5)) - 0.7) for level in (p.alpha, p.sigma)) < 0.02

# %% [markdown]
# You have now seen all of sampling. The rest of the course explains why it works and how to train
# $D$. It also makes sampling faster, steers it, enlarges it and measures it.

# %% [markdown]
# ## 2 · The map
#
# Each chapter has one moment of insight.
#
# <!-- Made from notebooks/chapters.toml by notebooks/chapters.py: do not edit here. -->
#
# **Foundations**
#
# | | chapter | the moment of insight |
# |---|---|---|
# | 00 | [Start here](00_start_here.ipynb) | a live counter of recompilations |
# | 01 | [The forward process](01_forward_process.ipynb) | one slider over image, histogram and log-SNR |
# | 02 | [Denoising is the posterior mean](02_denoising.ipynb) | arrows that split between modes as *t* falls |
# | 03 | [DDPM](03_ddpm.ipynb) | exact and learned samples side by side |
# | 04 | [Networks that denoise](04_networks.ipynb) | what each part of a U-Net buys |
# | 05 | [The bound](05_bound.ipynb) | bits per dimension, time by time |
# | 06 | [DDIM and fast solvers](06_ddim.ipynb) | error against the number of evaluations |

# %% [markdown]
# **Steering, theory and measuring**
#
# | | chapter | the moment of insight |
# |---|---|---|
# | 07 | [Guidance](07_guidance.ipynb) | the *w* slider bends the field and trades diversity |
# | 08 | [Editing](08_editing.ipynb) | the strength slider of SDEdit; a mask to draw |
# | 09 | [Score matching and SDEs](09_score_sdes.ipynb) | a dial from ODE to SDE: other paths, the same marginals |
# | 10 | [Probability flow and likelihood](10_likelihood.ipynb) | the density that a sampler carries along |
# | 11 | [Solvers: third order, stochastic, adaptive](11_solvers.ipynb) | the race to a given error |
# | 12 | [The EDM design space](12_edm.ipynb) | gradients with and without preconditioning |
# | 13 | [Evaluation and its blind spots](13_evaluation.ipynb) | two sets with one Fréchet distance, one of them ugly |

# %% [markdown]
# **Larger models, fewer steps**
#
# | | chapter | the moment of insight |
# |---|---|---|
# | 14 | [Latent diffusion](14_latent_diffusion.ipynb) | pixels against latents at equal compute |
# | 15 | [Text, ControlNet, LoRA](15_text.ipynb) | attention maps of words |
# | 16 | [Diffusion transformers](16_transformers.ipynb) | gates that open during training |
# | 17 | [Flow matching and rectified flow](17_flow_matching.ipynb) | straightness before and after reflow |
# | 18 | [Few steps: the flow map](18_flow_map.ipynb) | the wall at 1, 2 and 4 evaluations |
# | 19 | [Steering without retraining](19_steering.ipynb) | one posterior, five ways to it |

# %% [markdown]
# **Beyond images, and into use**
#
# | | chapter | the moment of insight |
# |---|---|---|
# | 20 | [Discrete diffusion](20_discrete.ipynb) | a sentence that fills in any order |
# | 21 | [Which generative model?](21_which_model.ipynb) | seven kinds of model and three baselines, one budget |
# | 22 | [Scaling out](22_scaling.ipynb) | throughput, memory and traffic against devices |
# | 23 | [Cascades and video](23_cascades_video.ipynb) | a clip whose frames agree |
# | 24 | [3-D, sound, molecules](24_beyond_images.ipynb) | an object that appears from 2-D scores |
# | 25 | [From notebook to product](25_product.ipynb) | quality against bytes and milliseconds |
# | 26 | [Capstone](26_capstone.ipynb) | the leaderboard at 1, 2, 4 and 8 evaluations |
# | clinic | [The broken-sampler clinic](clinic.ipynb) | eighteen patients, a diagnosis for each, and the cure |
#
# <!-- Here ends what is made from notebooks/chapters.toml. -->

# %% [markdown]
# ## 3 · How to work through a chapter
#
# **Predict, run, break.** Where a text says *predict*, write your answer down before you run the
# cell. You remember an idea better after you have predicted something else. Then change something
# until it breaks. The folded cells titled *Checked* hold `assert` statements: they check the claims
# of the text each time the notebook runs.
#
# **Your device.** The first cell has printed what `setup()` found. On Colab, choose *Runtime →
# Change runtime type → TPU* (or GPU), then run from the top. Keep Colab's own jax, because
# another version may not find the TPU.
#
# **The profile** sets sizes that suit the device. It sets only sizes; the code stays the same.
# `setup(profile="cpu")` chooses the profile by hand.
#
# **The data.** Digits, points and shapes come with the course. MNIST and CIFAR-10 come from the
# Hugging Face hub, or from a folder that you name in `DIFFUSION_COURSE_DATA`.

# %%
for name in data.names():
    bundled = data.source_of(name) == "bundled"
    print(f"{name:<14} {'with the course' if bundled else 'from the hub or a local copy'}")
print(f"\n{course.devices[0].platform.upper()}, so the profile is {course.profile.name!r}: "
      f"batches of {course.profile.batch_size} in training")  # fmt: skip

# %% [markdown]
# ## 4 · JAX in fifteen minutes, through its traps
#
# JAX looks like NumPy and runs on any device. It adds functions that transform functions: `grad`
# differentiates, `vmap` adds a batch axis, `jit` compiles.


# %% tags=["comparison"]
def energy(x):
    return jnp.sum(jnp.sin(x) ** 2)


x = jnp.linspace(0.0, 1.0, 5)
slope = jax.grad(energy)(x)  # a new function, the exact gradient
rows = jax.vmap(energy)(jnp.stack([x, 2 * x, 3 * x]))  # a new function, over a batch
print("gradient", slope, "\nbatch   ", rows, "\ncompiled", jax.jit(energy)(x))
# d sin²x / dx = sin 2x; float32 has seven digits, and devices round a little differently.
np.testing.assert_allclose(slope, np.sin(2 * np.asarray(x)), atol=1e-5)
assert rows.shape == (3,)

# %% [markdown]
# ### Trap 1: a key is not a generator
#
# NumPy's generator changes its state with every draw. JAX has no hidden state. You pass a **key**,
# and the same key gives the same numbers every time.
#
# **Predict, then run.** A training step needs random times and random noise. Somebody draws both
# with one key: uniform times and normal noise. What will noise plotted against time look like?

# %% alt="Noise against time, for 4,000 pairs. With one key for both, all points lie on one rising curve. With split keys they fill a level band, without any pattern."
key = jax.random.key(0)
print("twice with one key:", jax.random.normal(key, (2,)), jax.random.normal(key, (2,)))

N = 4000
key_time, key_noise = jax.random.split(key)  # two new keys; the old one is now used up
pairs = {
    "one key for both": (jax.random.uniform(key, (N,)), jax.random.normal(key, (N,))),
    "split first": (jax.random.uniform(key_time, (N,)), jax.random.normal(key_noise, (N,))),
}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True)
axes[0].set_ylabel(r"noise $\varepsilon$")
for ax, (name, (t, eps)) in zip(axes, pairs.items(), strict=True):
    ax.scatter(t, eps, s=3, alpha=0.4, lw=0, color=plots.DATA)
    ax.set(title=name, xlabel="time $t$")


# %%
def rank_correlation(a, b):
    """Correlation of the ranks: 1 if each grows with the other, along whatever curve."""
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


same, separate = (rank_correlation(*pair) for pair in pairs.values())
print(f"rank correlation of time and noise: {same:.4f} with one key, {separate:+.3f} after a split")

# Step n of a run: no list of keys to keep, and a run that resumes at step 7 draws the same again.
keys = [jax.random.fold_in(key, step) for step in range(10)]
draws = jnp.stack([jax.random.normal(k, (N,)) for k in keys])

# %% tags=["claims"]
# @title Checked: one key couples time and noise; split keys and folded keys do not
assert jnp.array_equal(jax.random.normal(key, (3,)), jax.random.normal(key, (3,)))
assert same > 0.9999
assert abs(separate) < 4 / np.sqrt(N)  # 4 standard errors of a correlation of independent draws
t, eps = pairs["one key for both"]
assert eps[t < 0.49].max() < 0  # no early time has any positive noise
assert jnp.array_equal(draws[7], jax.random.normal(jax.random.fold_in(key, 7), (N,)))
# 45 pairs of independent draws: one run in 40,000 has a pair beyond 5 standard errors.
assert np.abs(np.corrcoef(draws) - np.eye(10)).max() < 5 / np.sqrt(N)

# %% [markdown]
# Noise became a function of time, and JAX raised no error. A model that is trained in this way has
# never seen a small time with positive noise.
#
# **Remedy:** use every key once. Use `split` if one step needs several keys. Use `fold_in` with the
# step's number to get the key of a step.
#
# ### Trap 2: compiling again and again
#
# `jit` does not compile your Python code. It runs the code once with placeholders, which have a shape
# and a type but no value. It records the operations on these placeholders and compiles the record.
# This is called *tracing*. Side effects of Python happen while JAX traces, and not in later
# calls. So a `print` inside the function shows nothing in later calls, but an `append` counts the
# traces.


# %%
def counted(function, **options):
    """jit(function), and a list that grows by one entry whenever JAX traces it."""
    traces = []

    def traced(*arguments):
        traces.append("traced")  # plain Python: not part of the compiled program
        return function(*arguments)

    return jax.jit(traced, **options), traces


# %% [markdown]
# **Predict, then run.** The next cell calls one function six times. After which of the calls does
# the counter go up?

# %%
mix, traces = counted(lambda x, level: x + level * jnp.sin(x))
batch = jnp.ones((4, 2))
calls = {
    "first call": (batch, 0.1),
    "other values": (2 * batch, 0.7),
    "another shape": (jnp.ones((5, 2)), 0.1),
    "the first shape again": (batch, 0.3),
    "whole numbers": (jnp.ones((4, 2), jnp.int32), 0.1),
    "level as an array": (batch, jnp.array([0.1, 0.2])),
}
compiled_after = {}
for name, arguments in calls.items():
    mix(*arguments)
    compiled_after[name] = len(traces)
    print(f"{name:<22} {compiled_after[name]} compiled")

# %% [markdown]
# **A program belongs to shapes and types, never to values.** With this sentence you can predict every
# count.
#
# There is one exception, and you must ask for it. A *static* argument is a Python value that JAX
# builds into the program, for instance one that decides a shape. **Predict, then run:** how many
# programs does the next cell compile for three values of an ordinary argument, and how many for
# three values of a static exponent `n`?

# %%
smooth, smooth_traces = counted(lambda x, level, n: x**n * level, static_argnums=2)
for level in (0.1, 0.2, 0.3):
    smooth(batch, level, 2)
for_levels = len(smooth_traces)
for n in (2, 3, 4, 3, 2):
    smooth(batch, 0.1, n)
print(f"{for_levels} program for three levels; {len(smooth_traces)} programs, one for each n")

# %% tags=["claims"]
# @title Checked: the counts of compilations
assert list(compiled_after.values()) == [1, 1, 2, 2, 3, 4]
assert for_levels == 1  # three values of an ordinary argument
assert len(smooth_traces) == 3  # n = 2, 3, 4, each once

# %% [markdown]
# ### The explorer: a live counter
#
# Here nothing is computed beforehand. Each place of the slider calls a compiled function with that
# many rows. An orange dot is a call that compiled, and a blue dot is a call that did not. Go right,
# then go back the same way.


# %%
class Guess(nnx.Module):
    """A network in Flax NNX: layers are attributes, made in __init__; points [B, 2] to [B, 2]."""

    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.nn.silu(self.first(x)))


def chart(runs):
    """Calls against compilations; runs: name -> for each call, whether it compiled."""
    fig, ax = plt.subplots(figsize=(7, 2.8))
    for (name, compiled), dash in zip(runs.items(), plots.DASHES, strict=False):
        n, total = np.arange(1, len(compiled) + 1), np.cumsum(compiled)
        ax.step(n, total, where="post", color=plots.NOISE, ls=dash, zorder=0)
        ax.scatter(n, total, s=18, c=np.where(compiled, plots.PREDICTION, plots.DATA))
        ax.annotate(name, (n[-1], total[-1]), (6, 0), textcoords="offset points", va="center")
    longest, highest = map(max, zip(*[(len(run), sum(run)) for run in runs.values()], strict=True))
    ax.set(xlabel="calls so far", ylabel="compilations so far")
    ax.set(xlim=(0, max(12, longest) + 4), ylim=(0, max(4, highest) + 0.5))
    ax.yaxis.get_major_locator().set_params(integer=True)
    return fig


# %%
def live_counter(values, start):
    """A slider that makes a call at each place; and the list of (rows, compiled?) of its calls."""
    model, calls = Guess(64, rngs=nnx.Rngs(0)), []
    forward, traces = counted(lambda model, x: model(x))

    def call_with(rows):
        known, begin = len(traces), time.perf_counter()
        jax.block_until_ready(forward(model, jnp.ones((rows, 2))))
        milliseconds = 1e3 * (time.perf_counter() - begin)
        calls.append((rows, len(traces) > known))
        verdict = "compiled" if calls[-1][1] else "shape known"
        text = f"{rows} rows: {verdict}, {milliseconds:.1f} ms; {len(traces)} compiled in all"
        return text, plots.to_png(chart({"so far": [new for _, new in calls]}))

    return widgets.live(call_with, values, slider="batch size", start=start), calls


explorer, history = live_counter(range(8, 136, 8), start=3)
explorer

# %% [markdown]
# Code can move the slider too. **Predict, then run:** the next cell asks for the smallest batch, the
# largest, the smallest again, and then the batch where the slider started. How many of these calls
# compile?

# %%
for position in (0, 15, 0, 3):
    explorer.slider.value = position
    print(explorer.readout.value)

# %% tags=["claims"]
# @title Checked: one compilation for each size of batch
# However you have moved it before: one compilation for each size, never a second.
assert sum(new for _, new in history) == len({rows for rows, _ in history})

# %% [markdown]
# For readers without a slider, the next figure shows three ways to feed 12 batches. Sentences
# may each have a length of their own, so that every batch has a new size. 100 examples in batches of
# 32 leave a last batch of 4. Padding all batches to one size costs some arithmetic, and then one
# program is enough.

# %% alt="Compilations so far against calls so far, for 12 batches. If every size is new, there are 12 compilations; with batches of 32, 32, 32 and 4 there are 2; padded to 32 there is 1."
ways = {
    "every size is new": range(20, 32),
    "32, 32, 32, 4, again": [32, 32, 32, 4] * 3,
    "padded to 32": [32] * 12,
}
network, runs = Guess(64, rngs=nnx.Rngs(0)), {}
for name, batch_sizes in ways.items():
    forward, way_traces = counted(lambda model, x: model(x))
    runs[name] = []
    for rows_now in batch_sizes:
        known = len(way_traces)
        forward(network, jnp.ones((rows_now, 2)))
        runs[name].append(len(way_traces) > known)
chart(runs)
plt.show()

# %% tags=["claims"]
# @title Checked: twelve programs, two programs, one program
assert [sum(run) for run in runs.values()] == [12, 2, 1]

# %% [markdown]
# ### Trap 2 again: a model baked into the program
#
# Why did we write `forward(network, x)` and not `forward(x)`? A variable that a compiled function
# takes from its surroundings is a **constant**: its value is part of the program.
#
# **Predict, then run.** We compile both ways. Then we add 1 to a bias, so that every output should
# grow by 1. What do the two functions return?

# %%
baked = jax.jit(lambda x: network(x))  # the network comes from outside
passed, passed_traces = counted(lambda network, x: network(x))  # the network is an argument
old_outputs = [network(batch), passed(network, batch), baked(batch)]

network.last.bias[...] = network.last.bias[...] + 1.0  # as if it had learned something
new_outputs = [network(batch), passed(network, batch), baked(batch)]
moved = [float(np.abs(new - old).max()) for old, new in zip(old_outputs, new_outputs, strict=True)]
print("outputs moved by", dict(zip(("in truth", "passed", "baked"), moved, strict=True)))
wider = jnp.ones((5, 2))  # a size of batch that `baked` has not seen
stale = [float(np.abs(baked(x) - network(x)).max()) for x in (batch, wider)]
print("baked is wrong by", dict(zip(("batch of 4", "batch of 5"), stale, strict=True)))

others = [passed(Guess(64, rngs=nnx.Rngs(seed)), batch) for seed in (1, 2, 3)]
print(f"four networks of one shape and an update: {len(passed_traces)} program")

# %% tags=["claims"]
# @title Checked: the baked program keeps the old weights; one program serves four networks
# By 1 up to rounding (float32, or bfloat16 on a TPU); and the baked one not by a single bit.
np.testing.assert_allclose(moved[:2], 1, atol=0.02)
assert moved[2] == 0
np.testing.assert_allclose(stale, (1, 0), atol=0.02)  # a new size was traced with the new weights
assert min(np.abs(a - b).max() for a, b in itertools.combinations(others, 2)) > 0.01
assert len(passed_traces) == 1

# %% [markdown]
# For each shape that it has seen, the baked function goes on using the old weights, and it gives no
# warning. At a new shape it is traced again, with the weights of that moment. So two batch sizes may get
# two different networks.
#
# **Remedy:** make the model an argument of the function that you compile. This course does so
# everywhere.
#
# ### Trap 3: a clock that stops too early
#
# JAX hands work to the device and returns at once, with a promise of a result. If you stop the clock
# at that moment, you have measured how long it takes to hand the work over. The right measurement
# also tells you how fast your device is.
#
# (Every accelerator works in this way. Here the CPU does so too, because the first cell says
# `wait=False`. In the other chapters a CPU finishes each call before it returns, because it can then
# reuse its memory and train faster.)

# %%
width = 1000 if course.profile.name == "cpu" else 8000
a = jax.random.normal(jax.random.key(3), (width, width))
product = jax.jit(lambda a: a @ a)
jax.block_until_ready(product(a))  # the first call compiles; never time that one


def seconds(wait):
    start = time.perf_counter()
    result = product(a)
    if wait:
        result.block_until_ready()
    elapsed = time.perf_counter() - start
    jax.block_until_ready(result)
    return elapsed


too_early, right = (min(seconds(wait) for _ in range(5)) for wait in (False, True))
print(f"without waiting {1e3 * too_early:.2f} ms, with block_until_ready {1e3 * right:.1f} ms: "
      f"{2 * width**3 / right / 1e9:.0f} billion operations per second")  # fmt: skip

# %% tags=["claims"]
# @title Checked: without waiting, the clock stops too early
assert too_early < right / 5  # the best of five each; a hundredfold gap on a quiet machine

# %% [markdown]
# ### Trap 4: float64 that is float32
#
# If you ask JAX for float64, you get float32, and sometimes a warning. This does little harm to a
# network, but it harms a schedule. After the first of DDPM's 1000 steps the noise has variance
# $\beta_1 = 10^{-4}$. It is computed as 1 minus 0.9999, and the difference keeps only the last few
# digits.

# %%
betas = process.linear_betas(1000)  # NumPy, float64
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    converted = jnp.asarray(betas)
    warned_so_far = len(caught)
    asked_for = jnp.zeros(3, dtype=jnp.float64)
print(f"converting an array: {warned_so_far} warnings, {converted.dtype}")
print(f"asking for float64: {asked_for.dtype}, and", str(caught[0].message).split(",")[0])

first_variance = {
    "cumprod in JAX": 1 - jnp.cumprod(1 - converted)[0],
    "cumprod in NumPy": 1 - np.cumprod(1 - betas)[0],
    "this library": process.from_betas(betas).sigma(1 / 1000) ** 2,
}
off = {name: abs(float(value) / betas[0] - 1) for name, value in first_variance.items()}
print("relative error:", {name: f"{error:.0e}" for name, error in off.items()})

# %% tags=["claims"]
# @title Checked: float32 loses the first variance; a table in float64 keeps it
assert warned_so_far == 0
assert converted.dtype == asked_for.dtype == jnp.float32
assert off["cumprod in JAX"] > 1e-4  # 1 − β is off by 2e-8, and β is only 1e-4
assert off["cumprod in NumPy"] < 1e-10
assert off["this library"] < 1e-5  # built in float64, then cast to float32 once

# %% [markdown]
# **Remedy:** build tables in NumPy, and cast them once, at the end.
#
# ### Trap 5: arrays do not change
#
# If you assign to an entry, JAX raises an error that names the remedy: `x.at[i].set(v)` returns a
# **new** array. Two other mistakes raise no error. If you throw the new array away, nothing changes.
# And an index beyond the end reads the last entry, while writing there does nothing.

# %% tags=["comparison"]
line = jnp.arange(5.0)
try:
    line[0] = 9.0
except TypeError as error:
    print(f"TypeError: {str(error)[:96]}…")
changed = line.at[0].set(9.0)
assert line[0] == 0 and changed[0] == 9

line.at[0].set(9.0)  # the classic: the new array is thrown away
assert line[0] == 0
assert line[99] == line[4]  # NumPy would raise IndexError
assert jnp.array_equal(line.at[99].set(9.0), line)

# %% [markdown]
# ### Trap 6: the state that you gave away
#
# A network consists of structure and numbers. `nnx.split` separates them. The structure is plain
# Python, and the numbers are a tree of arrays, which `grad` and `jit` can handle. `nnx.merge` puts the
# two together again.
#
# A training step is then a function from parameters to parameters. With `donate_argnums=0` JAX may
# write the new parameters over the old ones, which saves memory. The old ones are then **gone**.


# %%
@cache  # once for each structure and rate
def make_step(graph, rate):
    """Compiles one step of gradient descent on the mean squared error."""

    @partial(jax.jit, donate_argnums=0)
    def step(params, x, target):
        def loss(params):
            return jnp.mean((nnx.merge(graph, params)(x) - target) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), value

    return step


graph, params = nnx.split(network, nnx.Param)
for path, value in nnx.to_flat_state(params):
    print(".".join(path), value[...].shape)

# %% [markdown]
# **Predict, then run.** After one step, `params` is new. Does `network`, which we split, still work?

# %%
points = jax.random.normal(jax.random.key(4), (32, 2))
params, loss = make_step(graph, rate=0.1)(params, points, 0.5 * points)
try:
    network(points)
    raise AssertionError("the donated arrays should be gone")
except RuntimeError as error:
    print("RuntimeError:", error)

repaired = nnx.merge(graph, params)  # the remedy after the fact: new numbers, the old structure
print("the repaired network answers", repaired(points)[0])

# %% [markdown]
# Splitting copies nothing. The network and its parameters were the same arrays, and the step was
# allowed to overwrite them. For this reason the library's `create_state` copies first.
#
# There is one more trap about structure. New versions of Flax refuse a plain list of layers, because
# they cannot know whether it holds numbers or settings. `nnx.data` tells them that it holds numbers.
# It works in old versions too.


# %%
class Stack(nnx.Module):
    def __init__(self, layers):
        self.layers = layers


def count(model):
    """How many numbers a model trains."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def three_layers():
    return [nnx.Linear(2, 2, rngs=nnx.Rngs(seed)) for seed in range(3)]


try:
    Stack(three_layers())
    print("this older version of Flax takes a plain list")
except ValueError as error:
    print("ValueError:", str(error).split(" assigned")[0], "…")
print("with nnx.data:", count(Stack(nnx.data(three_layers()))), "trained numbers")

# %% tags=["claims"]
# @title Checked: the merged network works, and nnx.data shows every layer
assert np.isfinite(repaired(points)).all()
assert count(Stack(nnx.data(three_layers()))) == 3 * (2 * 2 + 2)

# %% [markdown]
# ## 5 · Break it on purpose: trap 7, the layer that never trains
#
# In some libraries, you create a layer where you use it, inside the call. In NNX such code runs, its
# outputs have the right shape, and the loss falls. We try it on a small piece of diffusion. The
# data are points of two moons, and noise of standard deviation 0.3 is added to them. The network
# guesses where each point came from.
#
# **Predict, then run.** Two networks have three layers each. Network A is broken: it creates its
# middle layer inside the call. Network B is correct. How much worse will A's loss be?


# %%
class Fixed(nnx.Module):  # B
    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.middle = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        h = jax.nn.silu(self.first(x))
        return self.last(jax.nn.silu(self.middle(h)))


class Broken(nnx.Module):  # A
    def __init__(self, width, *, rngs):
        self.width = width
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        middle = nnx.Linear(self.width, self.width, rngs=nnx.Rngs(7))  # made anew in every call
        return self.last(jax.nn.silu(middle(jax.nn.silu(self.first(x)))))


# %% alt="The losses of the networks A and B over 300 training steps. Both fall to below 0.1 within a few steps, and from then on the two curves nearly coincide."
clean = data.load("toy2d", kind="two_moons", n=1000).x
noisy = clean + 0.3 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)


def train_on_moons(model, steps):
    """Gradient descent on 1,000 points: the parameters before and after, and the losses."""
    graph, params = nnx.split(model, nnx.Param)
    before, losses = jax.tree.map(jnp.copy, params), []
    params = jax.tree.map(jnp.copy, params)  # the step may have these
    step = make_step(graph, rate=0.3)
    for _ in range(steps):
        params, loss = step(params, noisy, clean)
        losses.append(loss)
    return before, params, np.array(losses)


models = {"A": Broken(64, rngs=nnx.Rngs(0)), "B": Fixed(64, rngs=nnx.Rngs(0))}
results = {name: train_on_moons(model, 300) for name, model in models.items()}
losses = {name: result[2] for name, result in results.items()}
ax = plots.curves(np.arange(300), losses, xlabel="training step", ylabel="loss, mean squared error")
ax.set_ylim(0, None)
print("last loss:", {name: round(float(loss[-1]), 4) for name, loss in losses.items()})

# %% [markdown]
# The loss hardly shows the bug: it is at most 10 % higher, also with two other seeds. A's middle layer is a
# fixed random mixture, and the two layers around it learn to work with it. You find the bug when you look at
# the parameters that NNX knows, one by one.


# %%
def gradients(model, call=lambda model, x: model(x)):
    """The gradient of the loss on the moons, for every parameter that NNX knows of."""
    graph, params = nnx.split(model, nnx.Param)

    def loss(params):
        return jnp.mean((call(nnx.merge(graph, params), noisy) - clean) ** 2)

    return jax.grad(loss)(params)


def norms(tree):
    """Name of each array in a state -> its norm."""
    arrays = {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(tree)}
    return {name: float(jnp.linalg.norm(array)) for name, array in arrays.items()}


# %% alt="A bar for the norm of the gradient of each of six parameter arrays, in networks A and B. B has all six. In A the bias and the kernel of the middle layer are not there."
sizes = {name: norms(gradients(model)) for name, model in models.items()}
fig, ax = plt.subplots(figsize=(7, 2.8))
for name, color, shift in (("A", plots.SERIES[0], -0.2), ("B", plots.SERIES[1], 0.2)):
    for row, parameter in enumerate(sizes["B"]):
        size = sizes[name].get(parameter, 0)
        label = f" {name}" if size else f" {name}: not there"
        ax.barh(row + shift, size, height=0.36, color=color)
        ax.text(size, row + shift, label, color=color, va="center")
ax.set(yticks=range(len(sizes["B"])), yticklabels=sizes["B"], xlabel="norm of the gradient")
ax.invert_yaxis()
w = 64
expected = (2 * w + w) + (w * w + w) + (w * 2 + 2)
counts = {name: count(model) for name, model in models.items()}
print(f"expected {expected}, B trains {counts['B']}, A trains {counts['A']}")

# %% tags=["claims"]
# @title Checked: A trains 7 % of the parameters, and its loss is at most 10 % higher
assert counts["B"] == expected
assert counts["A"] == expected - (w * w + w) < 0.08 * expected  # 93 % are missing
assert all(loss[-1] < 0.3 * loss[0] for loss in losses.values())  # it falls, with the bug as well
# The loss is at most 10 % higher, also for two other seeds.
last_losses = [(losses["A"][-1], losses["B"][-1])]
for seed in (1, 2):
    pair = (Broken(64, rngs=nnx.Rngs(seed)), Fixed(64, rngs=nnx.Rngs(seed)))
    last_losses.append([train_on_moons(model, 300)[2][-1] for model in pair])
assert all(a < 1.1 * b for a, b in last_losses)

assert len(sizes["B"]) == 6 and min(sizes["B"].values()) > 0  # every parameter has a gradient
for name, steps, arrays in (("A", 5, 4), ("B", 1, 6)):
    before, after, _ = train_on_moons(models[name], steps)
    change = norms(jax.tree.map(lambda a, b: a - b, after, before))
    assert len(change) == arrays and min(change.values()) > 0  # each one that is known changes
    assert any("middle" in parameter for parameter in change) == (name == "B")

# %% [markdown]
# **Remedy:** create layers in `__init__`. Before a long run, assert three things: the model has as
# many parameters as you computed by hand, every parameter has a gradient, and every parameter
# changes.
#
# ### Its cousin: the gradient of a constant
#
# This line occurs in published code: `loss = f(model, x)`, and then `jax.grad(lambda m: loss)(model)`.
# The function in `grad` does not use its argument `m`. **Predict, then run:** what does JAX return?

# %%
graph_b, params_b = nnx.split(models["B"], nnx.Param)


def loss_of(params):
    return jnp.mean((nnx.merge(graph_b, params)(noisy) - clean) ** 2)


loss_before = loss_of(params_b)  # a number, computed once
wrong = norms(jax.grad(lambda params: loss_before)(params_b))
right_way = norms(jax.grad(loss_of)(params_b))
print(f"largest gradient: of the constant {max(wrong.values())}, of the loss "
      f"{max(right_way.values()):.2f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the gradient of a constant is 0 for every parameter, without an error
assert set(wrong.values()) == {0.0} and len(wrong) == 6
assert min(right_way.values()) > 0

# %% [markdown]
# JAX is right: a constant has the slope 0. It raises no error, the loss is printed at every step, and
# nothing trains. The loss must be computed *inside* the function that `grad` differentiates. The
# second check of the remedy finds this bug as well.
#
# ## 6 · What to inspect
#
# The second check has one legal exception. Networks for diffusion often start with a last
# layer of zeros, so that their first guess is 0. The library's networks do.
#
# **Predict, then run.** Such a network has 12 parameter arrays. How many of them have a gradient
# before the first step, and how many have one after it?


# %%
def call(model, x):
    return model(x, jnp.full(len(x), 0.5))  # the library's models also see the time


net, alive = MLP(width=32, depth=2, rngs=nnx.Rngs(0)), []
for _ in range(2):
    gradient = gradients(net, call)
    alive.append(sum(norm > 0 for norm in norms(gradient).values()))
    now = nnx.state(net, nnx.Param)
    nnx.update(net, jax.tree.map(lambda p, g: p - 0.1 * g, now, gradient))
of = len(norms(gradient))
print(f"with a gradient: {alive[0]} of {of} at the start, {alive[1]} of {of} after one step")

# %% tags=["claims"]
# @title Checked: 2 of 12 arrays have a gradient at the start, 12 of 12 after one step
assert (of, *alive) == (12, 2, 12)

# %% [markdown]
# A layer of zeros passes no gradient to the layers before it. One step later it is no longer zero. So
# look again after a few steps. Before any long run, in this course or elsewhere, look at
#
# - the device line that `setup()` prints: does it name the accelerator that you asked for?
# - the parameter count: is it the number that you computed by hand?
# - the gradient of every parameter, at the start and after a few steps;
# - the number of traces: it must stop growing after a few steps;
# - the time of one step, measured with `block_until_ready` and without the first step.

# %% [markdown]
# ## Recap
#
# 1. A diffusion model guesses the clean picture; sampling corrects noise a little at a time.
# 2. The same key gives the same draw. Split keys by purpose, and fold in the step's number.
# 3. A compiled program belongs to shapes and types. Models are arguments, never constants.
# 4. JAX returns before the work is done, rounds float64 to float32, and never changes an array.
# 5. NNX trains the parameters that it finds in attributes. Count them.

# %% [markdown]
# ## Try it yourself
#
# 1. **Every parameter.** Write `all_change(model)`, which makes one step and returns True if every
#    parameter of the model changed. What does it return for `Broken`, and for the library's `MLP`?
#    What else must it check?
# 2. **The same noise.** Draw the 200 digits again with the same noise and with other `labels`. What
#    stays the same from one digit to the next?
# 3. **Few compilations.** Feed `forward` batches of the sizes 1 to 100 with at most 8 compilations.
#    Pad each batch, and cut the result. Use the counter to show that it works. (Take `repaired` as the
#    network: trap 6 gave the arrays of `network` away.)
#
# Next: [The forward process](01_forward_process.ipynb), where the noise comes from.

# %% [markdown]
# ## Further reading
#
# - J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020.
#   [arXiv:2006.11239](https://arxiv.org/abs/2006.11239).
# - J. Song, C. Meng, S. Ermon. *Denoising Diffusion Implicit Models.* ICLR 2021.
#   [arXiv:2010.02502](https://arxiv.org/abs/2010.02502).
# - R. Frostig, M. J. Johnson, C. Leary. *Compiling machine learning programs via high-level
#   tracing.* SysML 2018. Where tracing comes from.
# - J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw. *Parallel Random Numbers: As Easy as 1, 2,
#   3.* SC 2011. Why a key can replace a generator's state.
# - The JAX authors. [*The Sharp Bits*](https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html),
#   in the JAX documentation.
# - The Flax authors. [*NNX Basics*](https://flax.readthedocs.io/en/stable/nnx_basics.html), in the
#   Flax documentation.
#
# **New words:** denoiser, sampler, key, tracing, compilation, static argument, asynchronous
# dispatch, split and merge, donation.
