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
# First you watch a diffusion model at work. Then come the map of the course, and JAX in fifteen
# minutes, by the traps that catch everybody once.
#
# **You will be able to**
#
# - say what a diffusion model does, and write its sampling loop in a few lines;
# - predict when JAX compiles a function, and count it when in doubt;
# - recognise seven traps of JAX and Flax NNX by their symptoms;
# - prove that every parameter of your network is being trained.
#
# **You need** Python and NumPy. No JAX, and nothing about diffusion.
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
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from diffusion_course import data, denoiser, process, samplers, sampling
from diffusion_course.evaluation import metrics
from diffusion_course.notebook import plots
from diffusion_course import weights
from diffusion_course.notebook import widgets
from diffusion_course.models.classifier import judge
from diffusion_course.models.mlp import MLP

plots.use_style()

# %% [markdown]
# ## 1 · Noise in, digits out
#
# The network below was trained on 1,437 handwritten digits by this course's own code; its card says
# how. Its only skill: shown a noisy digit, and told which digit it is, it guesses the clean picture.
#
# We hand it pure noise, and ask column by column for a 0, a 1, … a 9. Press play.

# %%
released = weights.load("digits")
model, p, kind = released.model, released.process, released.card.kind
times = sampling.uniform(24)  # 24 steps, from t = 1 (noise) down to t = 0 (data)
labels = jnp.arange(200) % 10  # ask for 0 … 9, twenty times over


@jax.jit
def draw(model, x, labels, key):
    """From noise x [B, 8, 8, 1] to digits: the picture and the network's guess at every time."""
    D = denoiser.denoiser(model, p, kind, labels)
    x0, path = sampling.sample(samplers.ddim(p), D, x, times, key)
    states = jnp.concatenate([x[None], path])
    guesses = jax.lax.map(lambda now: D(*now), (states[:-1], times[:-1]))
    return states, jnp.concatenate([guesses, x0[None]])


noise = sampling.start_noise(p, jax.random.key(1), (200, 8, 8, 1))
states, guesses = map(np.asarray, draw(model, noise, labels, jax.random.key(2)))
above, below = ([plots.tile(x[:20], columns=10) for x in part] for part in (states, guesses))
frames = [np.concatenate([a, np.full((4, a.shape[1], 3), 255, np.uint8), b])
          for a, b in zip(above, below, strict=True)]  # fmt: skip
widgets.animation(frames, [f"$t$ = {t:.2f}    above: the picture, below: the guess" for t in times])

# %% [markdown]
# The same on paper, for readers without a play button. Follow one column downwards.

# %%
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
# On the left, nothing much seems to happen for a long time, then digits appear. On the right, there
# is a smudge from the first moment on: the average of all the zeros, of all the ones, and so on.
# It is the average of what is still possible. As the noise goes, less is, and the smudge sharpens.
# Chapter 02 is about this one picture.

# %%
train, test = data.load("digits"), data.load("digits", split="test")
average = np.stack([train.x[train.labels == k].mean(axis=0) for k in range(10)])
gap = np.sqrt(np.mean((guesses[0] - average[labels]) ** 2))
spread = np.sqrt(np.mean((train.x - average[train.labels]) ** 2))
print(f"distance from the average digits: first guesses {gap:.2f}, real digits {spread:.2f}")
# Training is never exact; but guessing some single digit would give the distance of real ones.
assert gap < spread / 4

# %% [markdown]
# **Predict, then run.** We drew 200 pictures. How many will another network, trained to read
# real digits, read as the digit that we asked for? And are they merely copies of training images?

# %%
reader = weights.load("digits_classifier").model
read = np.asarray(judge(reader, states[-1])[0])
share = metrics.class_accuracy(read, labels)
drawn = np.median(metrics.nearest(states[-1], train.x)[1])
unseen = np.median(metrics.nearest(test.x, train.x)[1])
print(f"read as asked for: {share:.1%} of {len(read)}")
print(f"distance to the nearest training image: drawn {drawn:.2f}, real but unseen {unseen:.2f}")
minutes, device = released.card.recipe["minutes"], released.card.recipe["device"]
released_share = released.card.metrics["w=1"]["accuracy"]
print(f"the card: trained {minutes:.0f} minutes on {device}; {released_share:.1%} of 500 as asked")
assert len(train) == 1437
# If .99 is right, the standard error of a share of 200 is .007; this is 4 of them.
assert share > released_share - 0.03
# A copy has distance 0. Drawn digits lie about as far from the training set as real new ones.
assert drawn > 0.75 * unseen

# %% [markdown]
# They are legible, and new. How is it done?
#
# **Training.** Mix a digit $x_0$ with Gaussian noise $\varepsilon$, and teach the network to guess
# the digit:
#
# $$x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon \tag{1}$$
#
# (DDPM, eq. 4.) At $t = 0$ there is only digit, at $t = 1$ only noise.
#
# **Sampling.** At time $t$ ask for the guess $\hat x_0 = D(x_t, t)$. Work out the noise that it
# implies, and mix the two again at a slightly earlier time $s < t$, with a little less noise:
#
# $$\hat\varepsilon = \frac{x_t - \alpha(t)\,\hat x_0}{\sigma(t)}, \qquad
# x_s = \alpha(s)\,\hat x_0 + \sigma(s)\,\hat\varepsilon \tag{2}$$
#
# (DDIM, eq. 12 with no fresh noise; chapter 06 derives it.) Many small corrections, instead of
# one guess that would stay a smudge.


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

# %%
gap = np.abs(digits - states[-1, :20]).max()
print(f"loop by hand against the library: largest difference {gap:.1e} on a scale of −1 to 1")
# Sums in another order differ by 1e-5; a TPU also rounds factors to bfloat16. A wrong formula is
# off by more than one of the data's grey levels, which are 0.125 apart.
assert gap < 0.02

# %% [markdown]
# That was the whole of sampling. The rest of the course asks why it works, how to train $D$, and
# how to make it faster, steerable, larger and measurable.

# %% [markdown]
# ## 2 · The map
#
# Each chapter has one moment of insight. Those with a link are here; the others are on their way.
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
# | 09 | Score matching and SDEs | a dial from ODE to SDE: other paths, the same marginals |
# | 10 | Probability flow and likelihood | the density that a sampler carries along |
# | 11 | Solvers, third order and adaptive | the race to a given error |
# | 12 | The EDM design space | gradients with and without preconditioning |
# | 13 | Evaluation and its blind spots | two sets with one Fréchet distance, one of them ugly |

# %% [markdown]
# **Larger models, fewer steps**
#
# | | chapter | the moment of insight |
# |---|---|---|
# | 14 | Latent diffusion | pixels against latents at equal compute |
# | 15 | Text, ControlNet, LoRA | attention maps of words |
# | 16 | Diffusion transformers | gates that open during training |
# | 17 | Flow matching and rectified flow | straightness before and after reflow |
# | 18 | Few steps: the flow map | the wall at 1, 2 and 4 evaluations |
# | 19 | Steering without retraining | one posterior, five ways to it |

# %% [markdown]
# **Beyond images, and into use**
#
# | | chapter | the moment of insight |
# |---|---|---|
# | 20 | Discrete diffusion | a sentence that fills in any order |
# | 21 | Which generative model? | four kinds of model, one data set, one budget |
# | 22 | Scaling out | throughput, memory and traffic against devices |
# | 23 | Cascades and video | a clip whose frames agree |
# | 24 | 3-D, sound, molecules | an object that appears from 2-D scores |
# | 25 | From notebook to product | quality against bytes and milliseconds |
# | 26 | Capstone | the leaderboard at 1, 2, 4 and 8 evaluations |
# | clinic | The broken-sampler clinic | fourteen patients, a diagnosis for each |
#
# <!-- Here ends what is made from notebooks/chapters.toml. -->

# %% [markdown]
# ## 3 · How to work through a chapter
#
# **Predict, run, break.** Where a text says *predict*, write your answer down before you run the
# cell; being wrong on paper is how the idea sticks. Then change something until it breaks. Many
# cells end in `assert`: what the text claims is checked each time the notebook runs.
#
# **Your device.** The first cell has printed what `setup()` found. On Colab, choose *Runtime →
# Change runtime type → TPU* (or GPU), then run from the top. Keep Colab's own jax: another version
# may not find the TPU.
#
# **The profile** sets sizes that suit the device, and only sizes; the code is the same.
# `setup(profile="cpu")` chooses by hand.
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
# ## 4 · JAX in fifteen minutes, by its traps
#
# JAX is NumPy on any device, with functions that transform functions: `grad` differentiates,
# `vmap` adds a batch axis, `jit` compiles.


# %%
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
# NumPy's generator moves on with every draw. JAX has no hidden state: a **key** goes in, and the
# same key gives the same numbers, every time.
#
# **Predict, then run.** A training step needs random times and random noise. Somebody draws both
# with one key: times uniform, noise normal. What does noise plotted against time look like?

# %%
key = jax.random.key(0)
assert jnp.array_equal(jax.random.normal(key, (3,)), jax.random.normal(key, (3,)))

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
assert same > 0.9999
assert abs(separate) < 4 / np.sqrt(N)  # 4 standard errors of a correlation of independent draws
t, eps = pairs["one key for both"]
assert eps[t < 0.49].max() < 0  # no early time has any positive noise

# Step n of a run: no list of keys to keep, and a run that resumes at step 7 draws the same again.
keys = [jax.random.fold_in(key, step) for step in range(10)]
draws = jnp.stack([jax.random.normal(k, (N,)) for k in keys])
assert jnp.array_equal(draws[7], jax.random.normal(jax.random.fold_in(key, 7), (N,)))
# 45 pairs of independent draws: one run in 40,000 has a pair beyond 5 standard errors.
assert np.abs(np.corrcoef(draws) - np.eye(10)).max() < 5 / np.sqrt(N)

# %% [markdown]
# Noise became a function of time, and no error was raised. A model trained so has never seen
# a small time with positive noise.
#
# **Remedy:** use every key once. `split` it for several purposes in one step, `fold_in` the number
# of the step.
#
# ### Trap 2: compiling again and again
#
# `jit` does not compile your Python. It runs it once, with placeholders that have a shape and a type
# but no value, writes down what happens to them, and compiles that. This is *tracing*. Python's own
# side effects happen while JAX traces, and not in the calls after. So `print` is a poor witness
# there, and `append` makes a good counter.


# %%
def counted(function, **options):
    """jit(function), and a list that grows by one entry whenever JAX traces it."""
    traces = []

    def traced(*arguments):
        traces.append("traced")  # plain Python: not part of the compiled program
        return function(*arguments)

    return jax.jit(traced, **options), traces


# %% [markdown]
# **Predict, then run.** Six calls of one function. After which of them does the counter go up?

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
counts = {}
for name, arguments in calls.items():
    mix(*arguments)
    counts[name] = len(traces)
    print(f"{name:<22} {counts[name]} compiled")
assert list(counts.values()) == [1, 1, 2, 2, 3, 4]

# %% [markdown]
# **A program belongs to shapes and types, never to values.** Keep that sentence and you can predict
# every count.
#
# The one exception is asked for: a *static* argument is a Python value that the program is built
# around, for instance one that decides a shape. **Predict, then run:** the counter again, for a
# static exponent `n`.

# %%
smooth, traces = counted(lambda x, level, n: x**n * level, static_argnums=2)
for level in (0.1, 0.2, 0.3):
    smooth(batch, level, 2)
assert len(traces) == 1  # three values of an ordinary argument
for n in (2, 3, 4, 3, 2):
    smooth(batch, 0.1, n)
assert len(traces) == 3  # n = 2, 3, 4, each once
print(f"{len(traces)} programs: one for each n")

# %% [markdown]
# ### The explorer: a live counter
#
# Nothing is prepared here. Each place of the slider calls a compiled function with that many rows.
# Orange is a call that compiled, blue one that did not. Go right, then go back the same way.


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
# Code can move the slider too. **Predict, then run:** the smallest batch, the largest, the smallest
# again, and where the slider started. How many of these calls compile?

# %%
for position in (0, 15, 0, 3):
    explorer.slider.value = position
    print(explorer.readout.value)
# However you have moved it before: one compilation for each size, never a second.
assert sum(new for _, new in history) == len({rows for rows, _ in history})

# %% [markdown]
# Three ways to feed 12 batches, drawn for readers without a slider. 100 examples in batches of 32
# leave a last batch of 4. Sentences may each have a length of their own. Padding to one size costs
# some arithmetic, and leaves one program.

# %%
ways = {
    "every size is new": range(20, 32),
    "32, 32, 32, 4, again": [32, 32, 32, 4] * 3,
    "padded to 32": [32] * 12,
}
network, runs = Guess(64, rngs=nnx.Rngs(0)), {}
for name, sizes in ways.items():
    forward, traces = counted(lambda model, x: model(x))
    runs[name] = []
    for rows in sizes:
        known = len(traces)
        forward(network, jnp.ones((rows, 2)))
        runs[name].append(len(traces) > known)
chart(runs)
assert [sum(run) for run in runs.values()] == [12, 2, 1]

# %% [markdown]
# ### Trap 2 again: a model baked into the program
#
# Why did we write `forward(network, x)` and not `forward(x)`? A variable that a compiled function
# takes from its surroundings is a **constant**: its value is part of the program.
#
# **Predict, then run.** We compile both ways, then change the weights. What do the two return?

# %%
baked = jax.jit(lambda x: network(x))  # the network comes from outside
passed, traces = counted(lambda network, x: network(x))  # the network is an argument
before = [network(batch), passed(network, batch), baked(batch)]

network.last.bias[...] = network.last.bias[...] + 1.0  # as if it had learned something
after = [network(batch), passed(network, batch), baked(batch)]
moved = [float(np.abs(new - old).max()) for old, new in zip(before, after, strict=True)]
print("outputs moved by", dict(zip(("in truth", "passed", "baked"), moved, strict=True)))
# By 1 up to rounding (float32, or bfloat16 on a TPU); and the baked one not by a single bit.
np.testing.assert_allclose(moved[:2], 1, atol=0.02)
assert moved[2] == 0

# %%
outputs = [passed(Guess(64, rngs=nnx.Rngs(seed)), batch) for seed in (1, 2, 3)]
assert min(np.abs(a - b).max() for a, b in itertools.combinations(outputs, 2)) > 0.01
assert len(traces) == 1
print(f"four networks of one shape and an update: {len(traces)} program")

# %% [markdown]
# The baked function samples from yesterday's weights, for ever, and says nothing.
#
# **Remedy:** the model is an argument of the function that you compile. Everywhere in this course.
#
# ### Trap 3: a clock that stops too early
#
# JAX hands work to the device and returns at once, with a promise of a result. Whoever stops the
# clock then has measured the handing over. This also tells you what your device can do.
#
# (That is so on every accelerator, and here because the first cell says `wait=False`. In the other
# chapters a CPU finishes a call before it returns, in memory that it keeps: training is faster so.)

# %%
n = 1500 if course.profile.name == "cpu" else 8000
a = jax.random.normal(jax.random.key(3), (n, n))
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
      f"{2 * n**3 / right / 1e9:.0f} billion operations per second")  # fmt: skip
assert too_early < right / 5  # the best of five each; a hundredfold gap on a quiet machine

# %% [markdown]
# ### Trap 4: float64 that is float32
#
# Ask JAX for float64 and you get float32, with a warning at best. Networks do not mind. Schedules
# do: after the first of DDPM's 1000 steps the noise has variance $\beta_1 = 10^{-4}$, which is
# computed as 1 minus something close to 1.

# %%
betas = process.linear_betas(1000)  # NumPy, float64
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    converted = jnp.asarray(betas)
    assert not caught  # not a word
    asked_for = jnp.zeros(3, dtype=jnp.float64)
assert converted.dtype == asked_for.dtype == jnp.float32
print("warning:", str(caught[0].message).split(",")[0])

first_variance = {
    "cumprod in JAX": 1 - jnp.cumprod(1 - converted)[0],
    "cumprod in NumPy": 1 - np.cumprod(1 - betas)[0],
    "this library": process.from_betas(betas).sigma(1 / 1000) ** 2,
}
off = {name: abs(float(value) / betas[0] - 1) for name, value in first_variance.items()}
print("relative error:", {name: f"{error:.0e}" for name, error in off.items()})
assert off["cumprod in JAX"] > 1e-4  # 1 − β is off by 2e-8, and β is only 1e-4
assert off["cumprod in NumPy"] < 1e-10
assert off["this library"] < 1e-5  # built in float64, then cast to float32 once

# %% [markdown]
# **Remedy:** build tables in NumPy, and cast them once, at the end.
#
# ### Trap 5: arrays do not change
#
# Assigning to an entry is an error that names its own remedy: `x.at[i].set(v)` returns a **new**
# array. The silent relative is worse: an index beyond the end reads the last entry, and writing
# there does nothing.

# %%
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
# A network is structure and numbers. `nnx.split` separates them: the structure is plain Python, the
# numbers are a tree of arrays, which is what `grad` and `jit` want. `nnx.merge` puts them together.
#
# A training step is then a function from parameters to parameters. `donate_argnums=0` lets JAX
# write the new ones over the old ones instead of beside them. The old ones are then **gone**.


# %%
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

network = nnx.merge(graph, params)  # the remedy after the fact: the new numbers, the old structure
assert np.isfinite(network(points)).all()

# %% [markdown]
# Splitting copies nothing: the network and its parameters were the same arrays, and we gave them
# away. The library's `create_state` therefore copies first.
#
# One more thing about structure. New versions of Flax refuse a plain list of layers, since they
# cannot know whether it holds numbers or settings. `nnx.data` says so, in old versions too.


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
assert count(Stack(nnx.data(three_layers()))) == 3 * (2 * 2 + 2)

# %% [markdown]
# ## 5 · Break it on purpose: trap 7, the layer that never trains
#
# In some libraries layers are made where they are used, inside the call. In NNX that runs, gives
# outputs of the right shape, and the loss falls. The job is a small piece of diffusion: points of
# two moons with noise of 0.3 added; guess where they came from.
#
# **Predict, then run.** Two networks of three layers each: A is broken, it makes its middle layer
# inside the call; B is in order. How much worse will A's loss be?


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


# %%
clean = data.load("toy2d", kind="two_moons", n=4000).x
noisy = clean + 0.3 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)


def train_on_moons(model, steps):
    """Gradient descent on 4,000 points: the parameters before and after, and the losses."""
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
# The loss hardly tells. A's middle layer is a fixed random mixture, and the two layers around it make
# do. What tells is a look at what NNX knows of, parameter by parameter.


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


# %%
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

# %%
w = 64
expected = (2 * w + w) + (w * w + w) + (w * 2 + 2)
counts = {name: count(model) for name, model in models.items()}
print(f"expected {expected}, B trains {counts['B']}, A trains {counts['A']}")
assert counts["B"] == expected
assert counts["A"] == expected - (w * w + w) < 0.08 * expected  # 93 % are missing
assert losses["A"][-1] < 1.1 * losses["B"][-1]  # and the loss is at most 10 % higher

assert len(sizes["B"]) == 6 and min(sizes["B"].values()) > 0  # every parameter has a gradient
for name, steps, arrays in (("A", 5, 4), ("B", 1, 6)):
    before, after, _ = train_on_moons(models[name], steps)
    change = norms(jax.tree.map(lambda a, b: a - b, after, before))
    assert len(change) == arrays and min(change.values()) > 0  # each one that is known changes
    assert any("middle" in parameter for parameter in change) == (name == "B")

# %% [markdown]
# **Remedy:** make layers in `__init__`, and assert these three before a long run: the count you
# worked out by hand, a gradient for every parameter, a change in every parameter.
#
# ## 6 · What to inspect
#
# One legal exception, before it costs you an evening. Networks for diffusion often start with a
# last layer of zeros, so that their first guess is 0. The library's do.
#
# **Predict, then run.** How many of such a network's 12 parameter arrays have a gradient before
# the first step, and how many after it?


# %%
def call(model, x):
    return model(x, jnp.full(len(x), 0.5))  # the library's models also see the time


net, alive = MLP(width=32, depth=2, rngs=nnx.Rngs(0)), []
for _ in range(2):
    gradient = gradients(net, call)
    alive.append(sum(norm > 0 for norm in norms(gradient).values()))
    params = nnx.state(net, nnx.Param)
    nnx.update(net, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
of = len(norms(gradient))
print(f"with a gradient: {alive[0]} of {of} at the start, {alive[1]} of {of} after one step")
assert (of, *alive) == (12, 2, 12)

# %% [markdown]
# Behind a layer of zeros no gradient gets through; one step later the layer is no longer zero. So
# look again after a few steps. What to look at before any long run, in this course or elsewhere:
#
# - the device line that `setup()` prints: is it the accelerator you asked for?
# - the parameter count, against the number worked out by hand;
# - the gradient of every parameter, at the start and after a few steps;
# - the number of traces after a few steps: it must have stopped growing;
# - the time of a step, measured with `block_until_ready`, without the first one.

# %% [markdown]
# ## Recap
#
# 1. A diffusion model guesses the clean picture; sampling corrects noise a little at a time.
# 2. Same key, same draw: split keys by purpose, fold in the step.
# 3. A compiled program belongs to shapes and types. Models are arguments, never constants.
# 4. JAX answers before it is done, rounds float64 to float32, and never changes an array.
# 5. NNX trains what it finds in attributes. Count it.

# %% [markdown]
# ## Try it yourself
#
# 1. **Every parameter.** Write `all_change(model)`: one step, then True if every parameter of the
#    model changed. What does it say of `Broken`, and of the library's `MLP`? What else
#    must it check?
# 2. **Same key, same draw.** Draw the 200 digits again with the same noise and another `labels`.
#    What stays the same from one digit to the next?
# 3. **One compilation.** Feed `forward` the sizes 1 to 100 with at most 8 compilations, by padding
#    and cutting the result. Prove it with the counter.
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
