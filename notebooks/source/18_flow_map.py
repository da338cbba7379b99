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
# # 18 · Few steps: the flow map
#
# **The question.** A sampler asks the network fifty times. Can a network learn to give the answer in one
# evaluation, or in two, and what is lost?
#
# At the end of this chapter you will be able to
#
# - say what a one-step model must learn, and why the denoiser is not it;
# - derive progressive distillation, consistency models, MeanFlow and distribution matching from three equations
#   of one map, and check each on data where the map is known;
# - train three of them, and judge them by more than one number;
# - recognise the usual faults: a tangent that is missing, a difference in the place of a derivative, noise that
#   is left over, a sampler that the student was not made for.
#
# **You need** chapters 06, 07 and 17. **Time**: about 80 minutes of reading. The cells run for about two
# minutes on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from scipy.special import ndtr

from diffusion_course import data, denoiser, distillation, editing, flow, flow_map, guidance, latent
from diffusion_course import losses, process, samplers, weights
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.models.unet import UNet
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import loop, update
from diffusion_course.weights import features

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# Our **teacher** in this chapter is the released network for the 8×8 digits, with guidance $w = 2$ (chapter
# 07). We draw the same ten noises with DDIM and fewer and fewer evaluations. One evaluation of the guided
# teacher is two calls of the network, one with the label and one without.
#
# A judge looks at 500 digits per row. It is a classifier that was trained on real digits only. It counts how
# many digits it recognises as the class that we asked for, and it measures the Fréchet distance of chapter 03
# to real digits (smaller is better).
#
# **Predict, then run.** How many of 500 digits will it recognise when they are drawn in *one* evaluation?


# %%
p = process.vp_cosine()  # the teacher predicts v on it
W = 2.0  # the guidance of the teacher, and so of everything that is learnt from it
N = 500  # digits behind every number of this chapter
LABELS = jnp.arange(N) % 10


def guided(model, labels):
    D_cond, D_uncond = denoiser.denoiser(model, p, "v", labels), denoiser.denoiser(model, p, "v")
    return guidance.classifier_free(D_cond, D_uncond, W)


METHODS = {"teacher": (samplers.ddim(p), guided)}  # more of them below: a sampler, and its D


@partial(jax.jit, static_argnames="method")
def draw(model, noise, steps, key, method):
    """From noise [N, 8, 8, 1] to digits of the classes LABELS, in equal steps of time."""
    sampler, make = METHODS[method]
    D = make(model, LABELS)

    def body(i, x):
        t, s = (1 - j / steps for j in (i, i + 1))  # the last s is exactly 0
        return sampler.step(D, x, t, s, jax.random.fold_in(key, i), ())[0]

    return jax.lax.fori_loop(0, steps, body, noise)


# %%
teacher, expert = weights.load("digits").model, weights.load("digits_classifier")
real = features.load("digits", expert.card)  # moments of the features of 1,437 real digits
unseen = data.load("digits", split="test")  # 360 that no network has seen
look = lambda x: judge(expert.model, x)[1]  # features of the judge


def start(seed):
    return jax.random.normal(jax.random.key(seed), (N, 8, 8, 1))


by_teacher, recognised, far = {}, {}, {}
for n in (50, 8, 4, 2, 1):
    by_teacher[n] = draw(teacher, start(0), n, jax.random.key(0), "teacher")
    seen, found = judge(expert.model, by_teacher[n])
    recognised[n], far[n] = metrics.class_accuracy(seen, LABELS), metrics.frechet(found, real)
    print(f"{n:2} evaluations: {recognised[n]:.1%} recognised, Fréchet distance {far[n]:.2f}")
floor = metrics.frechet(look(unseen.x), real)
print(f"360 unseen real digits: {floor:.2f}")

# %%
rows = [by_teacher[n][:10] for n in by_teacher]
plots.image_grid(rows, [f"{n}" for n in by_teacher], "DDIM: the same noise, fewer evaluations")
plt.show()

# %%
within = lambda x: float(np.mean([np.std(x[c::10], axis=0) for c in range(10)]))
print(f"standard deviation of a pixel within a class: 50 evaluations {within(by_teacher[50]):.2f}, "
      f"1 evaluation {within(by_teacher[1]):.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: in one evaluation all digits of a class are one blurred digit, and nearly all are recognised
assert recognised[1] > 0.99 and recognised[50] > 0.99
assert far[1] > 5 * far[50] and far[50] > 2 * floor
card_says = {w: weights.load("digits").card.metrics[f"w={w}"]["frechet"] for w in (1, 2)}
assert abs(card_says[1] - 0.79) < 0.01 and abs(card_says[2] - 1.84) < 0.01
assert far[1] > far[2] > far[4] > far[8] > far[50]
assert abs(within(by_teacher[1]) / within(by_teacher[50]) - 0.2) < 0.05

# %% [markdown]
# All of them. And the fifty digits of a class are nearly the same blurred digit: from one to the other a pixel
# varies a fifth as much as with 50 evaluations. The picture shows it, and the accuracy does not. So in this
# chapter accuracy alone says nothing. We always look at the Fréchet distance too.
#
# The row of one evaluation is not a fault of the network. At $t = 1$ the state is pure noise and says nothing
# about the digit. The network was trained for the *mean* of all digits that may lie behind it, and this is what
# it answers. (With guidance $w = 2$ we see twice the mean of the class, less the mean of all digits.) No better
# training of a denoiser can change that. A one-step model needs another *question*.

# %% [markdown]
# (Even with 50 evaluations the distance is well above that of unseen real digits. Most of this is the price of
# guidance: the network's card says 0.79 at $w = 1$ and 1.84 at $w = 2$, where the digits are more typical than
# real ones. A student that imitates this teacher inherits it. So we also measure the distance to the
# *teacher's* digits.)

# %% [markdown]
# ## 2 · One map, three equations
#
# The probability flow moves a state from time $t$ to time $s < t$. We call the result $X(x, t, s)$: the **flow
# map**. A sampler follows the flow in many small steps. Now we want to learn $X$ itself, and above all $X(x, 1,
# 0)$, from noise to data in one evaluation.
#
# It is practical to write it as a step of DDIM with an estimate $G$ of $x_0$ in it:
#
# $$X(x, t, s) = \frac{\sigma_s}{\sigma_t}\,x
# + \Big(\alpha_s - \alpha_t\frac{\sigma_s}{\sigma_t}\Big)\,G(x, t, s) \tag{1}$$
#
# Then $X(x, t, t) = x$ holds by itself. For $s \to t$ the right $G$ is the denoiser $D(x, t)$. For $s = 0$ it
# is the place where the flow ends, and a network for this $G$ is called a **consistency model**.
#
# Three equations hold for the right map. The derivative, with $X(x, s, s) = x$, defines it; the other two need
# something more:
#
# | equation | says | learnt by |
# |---|---|---|
# | **semigroup** | $X(X(x,t,m),m,s) = X(x,t,s)$ | progressive distillation, shortcut models, consistency trajectory models (CTM) |
# | **derivative** | $\frac{d}{dt}X(x_t,t,s) = 0$ along the flow | consistency models, TrigFlow, MeanFlow |
# | **distribution** | $X(\text{noise},1,0)$ is distributed like the data | distribution matching (DMD), and every GAN |

# %% [markdown]
# Before we train anything, we look at data for which all this is known. If the data are normal, with mean $\mu$
# and standard deviation $\varsigma$ in each direction, then $x_t$ is normal with mean $\alpha_t\mu$ and
# standard deviation $\varsigma_t = \sqrt{\alpha_t^2\varsigma^2 + \sigma_t^2}$. The flow keeps each state's
# place, in units of the standard deviation:
#
# $$X(x, t, s) = \alpha_s\mu + \frac{\varsigma_s}{\varsigma_t}\,(x - \alpha_t\mu) \tag{2}$$
#
# We put this map into the three equations. Beside it stands what we would get if we used the denoiser in place
# of $G$: the map of one DDIM step.

# %%
trig = process.vp_cosine(0.0)  # α = cos(πt/2), σ = sin(πt/2), exactly
straight = process.rectified_flow()
MEAN, STD = jnp.array([0.7, -0.4]), jnp.array([0.5, 1.3])


def normal_denoiser(q, x, t):
    alpha, sigma = process.levels(q, t, x)
    return MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x - alpha * MEAN)


def normal_map(q, x, t, s):
    """Equation (2) on the process q."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (process.levels(q, u, x) for u in (t, s))
    wider = jnp.hypot(alpha_s * STD, sigma_s) / jnp.hypot(alpha_t * STD, sigma_t)
    return alpha_s * MEAN + wider * (x - alpha_t * MEAN)


D_normal = partial(normal_denoiser, trig)


def G_normal(x, t, s):
    """The estimate that makes equation (1) the exact map, for t > s; the denoiser where t = s."""
    apart = jnp.reshape(t > s, (-1, 1))
    below = jnp.where(t > s, s, t - 0.1)
    G = flow_map.estimate_of(trig, x, normal_map(trig, x, t, below), t, below)
    return jnp.where(apart, G, D_normal(x, t))


# %%
keys = jax.random.split(jax.random.key(1), 4)
z = jax.random.normal(keys[0], (1000, 2))
t = jax.random.uniform(keys[1], (1000,), minval=0.3, maxval=1.0)
x_t = process.add_noise(trig, MEAN + STD * z, jax.random.normal(keys[2], z.shape), t)
rms = lambda error: float(np.sqrt(np.mean(np.square(error))))


@partial(jax.jit, static_argnums=0)
def residuals(G):
    """What the three equations leave over: [1000, 2] each."""
    X = partial(flow_map.land, trig, G)
    middle, s = 0.7 * t, 0.3 * t
    semigroup = X(X(x_t, t, middle), middle, s) - X(x_t, t, s)
    slope = flow.velocity(trig, D_normal, x_t, t)  # dx/dt of the flow
    _, derivative = jax.jvp(lambda x, t: X(x, t, s), (x_t, t), (slope, jnp.ones_like(t)))
    distribution = X(z, 1.0, 0.0) - (MEAN + STD * z)  # N(0, 1) becomes N(μ, ς²)
    return semigroup, derivative, distribution


left_over = {
    "exact map": residuals(G_normal),
    "denoiser": residuals(flow_map.of_denoiser(D_normal)),
}
for name, parts in left_over.items():
    print(f"{name:10}", *(f"{equation} {rms(part):.0e}  " for equation, part in
          zip(("semigroup", "derivative", "distribution"), parts, strict=True)))  # fmt: skip

# %% tags=["claims"]
# @title Checked: all three residuals of the exact map are rounding, those of one DDIM step are not
# float32 holds 1e-7 of a number near 1; derivatives and sums lose a digit.
assert all(np.abs(part).max() < 1e-5 for part in left_over["exact map"])
assert all(rms(part) > 0.1 for part in left_over["denoiser"])

# %% [markdown]
# The exact map solves all three, up to the rounding of float32. A DDIM step solves none of them. So each of the
# three can be a *loss*: what is left over is what a network should learn to remove.
#
# We also see what each equation needs. The semigroup needs a map that is right for short steps. The derivative
# needs the slope of the flow, $dx/dt$. The distribution needs data, but no flow at all, so it does not say
# *which* noise becomes which digit: there, any map to the right distribution is good.

# %% [markdown]
# ## 3 · Where one jump lands
#
# Normal data are too easy: every map is a straight line. So here is a mixture of three normal distributions in
# one dimension. The exact map keeps ranks: $X(x, t, s) = F_s^{-1}(F_t(x))$ with the distribution functions $F$
# (chapter 11). We compute it by bisection.
#
# **Predict, then run.** Where does one step of DDIM from $t = 1$ land, for each of the noises? And with which
# number of steps will DDIM reach the map's steep parts?

# %%
CENTRES, WIDTHS, SHARES = np.array([-0.9, 0.4, 1.3]), np.array([0.15, 0.3, 0.08]), [0.3, 0.5, 0.2]
mixture = denoiser.gaussian_mixture(trig, CENTRES[:, None], WIDTHS, SHARES)


def at_rank(rank, t):
    """F_t^{-1} of ranks [N], by bisection."""
    alpha, sigma = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    low, high = np.full_like(rank, -9.0), np.full_like(rank, 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        share = ndtr((middle[:, None] - alpha * CENTRES) / np.hypot(alpha * WIDTHS, sigma)) @ SHARES
        low, high = np.where(share < rank, middle, low), np.where(share < rank, high, middle)
    return (low + high) / 2


@jax.jit
def by_steps(x, t, steps):
    """DDIM with the exact denoiser, from x [N] at t to the data."""
    G = flow_map.of_denoiser(mixture.denoise)
    hop = lambda i, x: flow_map.land(trig, G, x, t * (1 - i / steps), t * (1 - (i + 1) / steps))
    return jax.lax.fori_loop(0, steps, hop, jnp.float32(x)[:, None])[:, 0]


# %%
noises = np.linspace(-2.5, 2.5, 201)
target = at_rank(ndtr(noises), 0.0)
landed = {n: np.asarray(by_steps(noises, 1.0, n)) for n in (1, 2, 4, 8, 16, 64)}
off_target = {n: rms(x - target) for n, x in landed.items()}
print("rms distance from the exact map:", {n: f"{value:.2f}" for n, value in off_target.items()})
fig, ax = plt.subplots(figsize=(6, 3.4))
lines = {"1 step": landed[1], "2": landed[2], "4": landed[4], "16": landed[16], "exact": target}
plots.curves(noises, lines, xlabel="$x_1$ (noise)", ylabel="where it lands, $X(x_1, 1, 0)$", ax=ax)
plt.show()

# %% tags=["claims"]
# @title Checked: one step lands at the mean; each doubling of the steps about halves the error
overall = float(CENTRES @ SHARES)
assert np.abs(landed[1] - overall).max() < 1e-3
assert all(1.4 < off_target[n] / off_target[2 * n] < 2.6 for n in (1, 2, 4, 8))

# %% [markdown]
# One step lands at the mean of all data, wherever it starts: it is the blurred digit of section 1. The exact
# map is a staircase. It is flat where noises go into the same mode, and steep between two modes. DDIM
# approaches it slowly: twice the steps, about half the error.
#
# A one-step network has to learn this staircase. The figure also says what will be difficult: the steep parts.
# There a small error in the noise decides which mode we land in, and a smooth network gives something in
# between.

# %% [markdown]
# **The explorer.** Move $t$: eleven states of the flow, at this time, jump to the data. Choose in the menu how
# many steps of DDIM they take. The grey lines are the true paths. Look for the time at which one step begins to
# land well: from there on the state already says which mode it belongs to, and the denoiser's mean *is* the end
# of the path.

# %%
RANKS = np.linspace(0.04, 0.96, 11)
MOMENTS = np.linspace(1.0, 0.1, 10)
clock = np.linspace(1, 0, 41)
true_paths = np.stack([at_rank(RANKS, moment) for moment in clock])


def jump_frame(setting):
    steps, moment = setting
    x = at_rank(RANKS, moment)
    ends = true_paths[-1] if steps is None else np.asarray(by_steps(x, moment, steps))
    fig, ax = plt.subplots(figsize=(5, 3.2))
    ax.plot(clock, true_paths, color=plots.NOISE, lw=1)
    ax.plot([[moment] * 11, [0] * 11], [x, ends], color=plots.PREDICTION, lw=1.2)
    ax.plot([0] * 11, ends, "o", color=plots.PREDICTION, ms=4, clip_on=False)
    ax.set(xlim=(1, 0), ylim=(-2, 2), xlabel="$t$ (noise on the left)", ylabel="$x_t$")
    ax.set_title(f"mean distance from the path's end: {np.abs(ends - true_paths[-1]).mean():.2f}")
    return fig


counts = {"1 step": 1, "2 steps": 2, "4 steps": 4, "the flow map": None}
frames = {name: widgets.render(jump_frame, [(n, moment) for moment in MOMENTS])
          for name, n in counts.items()}  # fmt: skip
widgets.explorer(frames, [f"jump from t = {moment:.1f}" for moment in MOMENTS], slider="time")

# %%
jump_frame((1, 1.0))
plt.show()

# %% tags=["claims"]
# @title Checked: one step lands better the later it starts
misses = [np.abs(np.asarray(by_steps(at_rank(RANKS, moment), moment, 1)) - true_paths[-1]).mean()
          for moment in MOMENTS]  # fmt: skip
assert np.all(np.diff(misses) < 0) and misses[-1] < misses[0] / 20

# %% [markdown]
# ## 4 · The semigroup: progressive distillation
#
# Two steps of the teacher should be one step of the student. **Progressive distillation** (Salimans & Ho 2022)
# makes exactly this its target. From data and noise we form $x_t$. The teacher takes two DDIM steps of half the
# length, from $t$ over the middle $m$ to $s$. Then we ask: with which $v$ would *one* DDIM step arrive at the
# same place? On a process with $\alpha^2 + \sigma^2 = 1$ the answer is short. With the angle $\Delta$ between
# the two times,
#
# $$\hat v = \frac{\cos\Delta\;x_t - x_s}{\sin\Delta}, \qquad
# \cos\Delta = \alpha_t\alpha_s + \sigma_t\sigma_s, \quad
# \sin\Delta = \sigma_t\alpha_s - \alpha_t\sigma_s. \tag{3}$$
#
# The student is trained towards this $\hat v$, which carries no gradient. It needs no new input: all its steps
# have the same length. When it is ready it becomes the teacher of the next student, which takes half as many
# steps. So we go from 16 steps to 8, 4, 2 and 1.
#
# The next cell is the algorithm. The number of steps $n$ is an array here, so that the stages can share a
# compiled program.


# %%
hold_still = jax.lax.stop_gradient


def ddim_step(q, by, x, t, s):
    return flow_map.land(q, flow_map.of_denoiser(by), x, t, s)  # equation (1) with a denoiser


def two_are_one(student, by, x0, eps, t, n):
    """One step of `student` from t to t − 1/n against two half steps of the denoiser `by`."""
    middle, s = t - 0.5 / n, jnp.maximum(t - 1 / n, 0)
    x_t = process.add_noise(p, x0, eps, t)
    x_m = ddim_step(p, by, x_t, t, middle)
    x_s = ddim_step(p, by, x_m, middle, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (process.levels(p, u, x0) for u in (t, s))
    cos, sin = alpha_t * alpha_s + sigma_t * sigma_s, sigma_t * alpha_s - alpha_t * sigma_s
    wanted = hold_still((cos * x_t - x_s) / sin)  # equation (3)
    v = (alpha_t * x_t - student(x_t, t)) / sigma_t
    return jnp.mean((v - wanted) ** 2)


# %% tags=["comparison"]
digits = data.load("digits")  # 1,437 digits of the training set
some, their_labels = jnp.asarray(digits.x[:64]), jnp.asarray(digits.labels[:64])


@jax.jit
def both_ways(model, key):
    student, by = denoiser.denoiser(model, p, "v", their_labels), guided(model, their_labels)
    key_time, key_noise = jax.random.split(key)  # as the library draws them
    t = jax.random.randint(key_time, (64,), 1, 5) / 4
    by_hand = two_are_one(student, by, some, jax.random.normal(key_noise, some.shape), t, 4)
    G = flow_map.of_denoiser(student)
    return by_hand, flow_map.progressive_loss(G, p, "v", some, key, teacher=by, steps=4)


ours, library = both_ways(teacher, jax.random.key(3))
print(f"by hand {ours:.6f}, library {library:.6f}")
np.testing.assert_allclose(ours, library, rtol=1e-3)  # (3) subtracts nearly equal numbers

# %% [markdown]
# What is the best that a student can reach? If each stage were perfect, the one-step student would be the
# teacher's 16 DDIM steps, and no better. In section 3 the 16 steps were not the flow's end. So one starts from
# enough steps. To begin with more costs more stages, and each stage adds an error of its own.
#
# Guidance enters in the first stage only: there the teacher is the *guided* denoiser, two calls of the network.
# From then on it is built into the student, which needs one call.
#
# **Predict, then run.** Four stages of 200 updates each, with 32 digits per update. Will the student with one
# evaluation be closer to the real digits than the teacher with two, four, or eight?

# %%
BATCH = 32


def stage_batches(n, seed):
    """Digits, with the number of steps of this stage beside the labels."""
    for x, labels in data.batches(digits, BATCH, seed):
        yield x, {"labels": labels, "n": np.full(BATCH, n, np.float32)}


def stage_loss(model, x, told, key, by):
    key_time, key_noise = jax.random.split(key)
    n = told["n"]
    t = jnp.ceil(n * (1 - jax.random.uniform(key_time, n.shape))) / n  # 1/n, 2/n, … 1
    student = denoiser.denoiser(model, p, "v", told["labels"])
    return two_are_one(student, by, x, jax.random.normal(key_noise, x.shape), t, n)


def first_stage(model, x, told, key, *, teacher):
    return stage_loss(model, x, told, key, guided(teacher, told["labels"]))


def later_stage(model, x, told, key, *, teacher):
    return stage_loss(model, x, told, key, denoiser.denoiser(teacher, p, "v", told["labels"]))


# %%
STAGE = 200
rate = update.adam(1e-3, STAGE)  # a sixth of the rate at which the teacher was trained
progressive, master = {}, teacher
for n in (8, 4, 2, 1):
    lesson = loop.fit(
        master, first_stage if n == 8 else later_stage, stage_batches(n, seed=n), steps=STAGE,
        key=jax.random.key(n), optimizer=rate, ema=0.98, teacher=master, progress=False,
    )  # fmt: skip
    progressive[n] = master = lesson.ema
    course_of = np.array(lesson.history.loss)
    print(f"{n} steps: loss {course_of[:20].mean():.3f} -> {course_of[-50:].mean():.3f}")

# %%
METHODS["plain"] = samplers.ddim(p), lambda model, labels: denoiser.denoiser(model, p, "v", labels)
more_by_teacher = draw(teacher, start(100), 50, jax.random.key(0), "teacher")
of_teacher = look(more_by_teacher)


def distances(found):
    """Fréchet distances: to the real digits, and to 500 other digits of the teacher."""
    return metrics.frechet(found, real), metrics.frechet(found, of_teacher)


def grade(model, steps, method, seeds=(0, 1, 2)):
    """Both distances for three starts, [3, 2]."""
    run = lambda seed: draw(model, start(seed), steps, jax.random.key(seed), method)
    return np.array([distances(look(run(seed))) for seed in seeds])


wall = {"teacher": {n: grade(teacher, n, "teacher") for n in (1, 2, 4, 8)}}
wall["progressive"] = {n: grade(model, n, "plain") for n, model in progressive.items()}
fifty = distances(look(by_teacher[50]))  # one start; the others would take a minute
say = lambda grades: "{:.2f} ± {:.2f}  {:.2f} ± {:.2f}".format(
    *np.stack([grades.mean(0), grades.std(0, ddof=1)], 1).ravel())  # fmt: skip
print("Fréchet distance to            the data     the teacher")
print(f"teacher, 50 evaluations:     {fifty[0]:.2f}         {fifty[1]:.2f}")
for name, rows_of in wall.items():
    for n in (8, 4, 2, 1):
        print(f"{name:11}, {n} evaluations: {say(rows_of[n])}")

# %% tags=["claims"]
# @title Checked: one evaluation of the student beats four of the teacher and not eight
for n in (1, 2, 4, 8):  # in each of three starts, to the data and to the teacher
    assert (wall["progressive"][n] < wall["teacher"][n]).all()
assert (wall["progressive"][1] < wall["teacher"][4]).all()
assert (wall["progressive"][1] > wall["teacher"][8]).all()
worse = np.diff([wall["progressive"][n].mean(0) for n in (8, 4, 2, 1)], axis=0)
assert (worse[2] > 2 * np.abs(worse[:2]).max(0)).all()  # the last stage costs most
assert (wall["progressive"][8][:, 1] < fifty[1] + 0.4).all()

# %% [markdown]
# In all three starts, one evaluation of the student is better than four of the teacher, and not as good as
# eight. It is closer than its teacher at every equal number of evaluations, and each evaluation is one network
# call where the teacher's is two.
#
# Most is lost in the last stage, from two steps to one. The step from $t = 1$ to 0 is the staircase of section
# 3, and its steep parts are hard for a smooth network.
#
# Each number has its own student here. A student knows steps of one length only: the one-step student is of no
# use with four steps (section 12).

# %% [markdown]
# ## 5 · The derivative, in steps: consistency models
#
# Progressive distillation asks for each pair of steps once. Now we ask for the end of the path at once. The map
# to the data, $f(x, t) = X(x, t, 0)$, is the same for all states of one path, so it does not change along it:
#
# $$\frac{d}{dt} f(x_t, t) = 0, \qquad f(x, 0) = x. \tag{4}$$
#
# The second half is the **boundary**. Without it $f = 0$ would be a solution. A network keeps it by
# construction. With $v$-prediction $f = \alpha x - \sigma v$, and at $t = 0$ this is $x$, whatever $v$ is.
#
# **Consistency distillation** (Song et al. 2023) takes (4) in steps: one step of the teacher from $t$ to its
# neighbour $t - \delta$, and $f$ must agree at both,
#
# $$\text{dist}\big(f_\theta(x_t, t),\; f_{\bar\theta}(x_{t-\delta}, t-\delta)\big), \qquad
# x_{t-\delta} = \text{DDIM}(x_t, t \to t - \delta). \tag{5}$$
#
# $\bar\theta$ is the average of the weights, and carries no gradient. So what is known at the data wanders up
# the path, from neighbour to neighbour. **Consistency training** has no teacher: the neighbour is the same
# digit with the same noise, at a lower level.


# %%
def agree(f, f_bar, by, q, x0, eps, t, steps):
    """Equation (5) with squared distance; without a teacher `by`, consistency training."""
    x_t, below = process.add_noise(q, x0, eps, t), jnp.maximum(t - 1 / steps, 0)
    if by is None:
        neighbour = process.add_noise(q, x0, eps, below)
    else:
        neighbour = ddim_step(q, by, x_t, t, below)
    goal = jnp.where(below[:, None] > 0, f_bar(neighbour, below), neighbour)  # the boundary
    return jnp.mean((f(x_t, t) - hold_still(goal)) ** 2)


# %% tags=["comparison"]
MANY = 20_000
cloud = MEAN + STD * jax.random.normal(keys[3], (MANY, 2))
f_normal = flow_map.to_data(G_normal)


@partial(jax.jit, static_argnums=(0, 1))
def left_at(by, steps):
    """The loss of the exact map, by hand and by the library."""
    key_time, key_noise = jax.random.split(keys[3])
    t = jax.random.randint(key_time, (MANY,), 1, steps + 1) / steps
    eps = jax.random.normal(key_noise, cloud.shape)
    by_hand = agree(f_normal, f_normal, by, trig, cloud, eps, t, steps)
    given = {"steps": steps, "teacher": by}
    return by_hand, flow_map.consistency_loss(
        G_normal, G_normal, trig, "x0", cloud, keys[3], **given
    )


STEPS = (8, 16, 32)
residual = {name: np.sqrt(np.array([left_at(by, n) for n in STEPS]))
            for name, by in (("with a teacher", D_normal), ("without", None))}  # fmt: skip
for name, both in residual.items():
    np.testing.assert_allclose(both[:, 0], both[:, 1], rtol=1e-3)
    print(f"{name:14}: rms that the exact map leaves at {STEPS} steps:", np.round(both[:, 0], 5))

# %% tags=["claims"]
# @title Checked: the exact map's loss is of order 2 with a teacher and 1 without; the boundary; no gradient
order_of = {name: -np.polyfit(np.log(STEPS), np.log(both[:, 0]), 1)[0]
            for name, both in residual.items()}  # fmt: skip
assert abs(order_of["with a teacher"] - 2) < 0.15 and abs(order_of["without"] - 1) < 0.15
assert residual["without"][-1, 0] > residual["with a teacher"][0, 0]
# The boundary holds for every network, and no gradient flows into the target.
at_zero = jax.jit(lambda model: denoiser.denoiser(model, p, "v", their_labels)(some, 0.0))(teacher)
assert np.abs(at_zero - some).max() < 1e-6
scaled = lambda a: lambda x, t: a * f_normal(x, t)
by_student, by_target = jax.grad(lambda a, b: agree(
    scaled(a), scaled(b), D_normal, trig, x_t, z, t, 16), argnums=(0, 1))(1.1, 0.9)  # fmt: skip
assert abs(by_student) > 0.1 and by_target == 0

# %% [markdown]
# We gave the *exact* map to the loss. Its loss is not zero. With an exact teacher what is left over falls with
# the square of the step, since one DDIM step errs by so much. Without a teacher it only falls like the step
# itself. The neighbour of consistency training lies on the straight way to *this* example and not on the flow,
# and only the average over all examples through $x_t$ is right. So a consistency loss that stays well above
# zero is no sign of a fault, and two losses with different numbers of steps cannot be compared.
#
# Now the digits. We start from the teacher's weights. The distance is **pseudo-Huber**, $\sqrt{\|e\|^2 + c^2} -
# c$ (Song & Dhariwal 2024): like a square for small errors, like a length for large ones.
#
# To use more than one evaluation we jump to the data, add noise again, down to a lower level $s$, and jump
# again. This is the `consistency` sampler.
#
# **Predict, then run.** Which student will be better with one evaluation, the one of section 4 or this one? And
# with four?


# %%
def distil(distance, rate=3e-3, steps=500):
    def agreement(model, x, labels, key, *, teacher, averaged):
        f, f_bar = (flow_map.of_denoiser(denoiser.denoiser(m, p, "v", labels))
                    for m in (model, averaged))  # fmt: skip
        return flow_map.consistency_loss(
            f, f_bar, p, "v", x, key, steps=16, teacher=guided(teacher, labels), distance=distance
        )

    return loop.fit(
        teacher, agreement, data.batches(digits, BATCH, 0), steps=steps, key=jax.random.key(0),
        optimizer=update.adam(rate, steps), ema=0.98, teacher=teacher, averaged=True,
        progress=False,
    )  # fmt: skip


consistency = distil(flow_map.pseudo_huber(0.03))
losses_seen = np.array(consistency.history.loss)
print(f"loss {losses_seen[:50].mean():.3f} -> {losses_seen[-50:].mean():.3f}")
METHODS["consistency"] = flow_map.consistency(p), METHODS["plain"][1]
wall["consistency"] = {n: grade(consistency.ema, n, "consistency") for n in (1, 2, 4, 8)}
for n, grades in wall["consistency"].items():
    print(f"consistency, {n} evaluations: {say(grades)}")

# %% tags=["claims"]
# @title Checked: with four evaluations nearer to the data than its teacher, and not nearer to the teacher
by_consistency, by_stages = wall["consistency"], wall["progressive"]
assert all((by_consistency[n][:, 0] < by_stages[n][:, 0]).all() for n in (1, 2, 4, 8))
# The teacher's 50 evaluations from the same start, and from another one.
assert by_consistency[4][0, 0] < fifty[0]
assert by_consistency[4][:, 0].mean() < min(fifty[0], metrics.frechet(of_teacher, real))
second_column = {name: {n: wall[name][n][:, 1].mean() for n in (1, 2, 8)}
              for name in ("consistency", "progressive")}  # fmt: skip
assert second_column["consistency"][1] < second_column["progressive"][1]
# With eight evaluations the means differ by less than the scatter of three starts.
both = [by_way[8][:, 1] for by_way in (by_consistency, by_stages)]
assert abs(both[0].mean() - both[1].mean()) < both[0].std(ddof=1) + both[1].std(ddof=1)
assert losses_seen[-50:].mean() > 0.5 * losses_seen[:50].mean()

# %% [markdown]
# In each of the three starts this student is nearer to the real digits than the other one, at every number of
# evaluations. With four it is even nearer than its own teacher with 50. That is suspicious: how can a student
# beat its teacher?

# %% [markdown]
# The second column does not show a better imitation. With eight evaluations this student is 0.92 ± 0.09 from the
# teacher's digits and the other one 0.83 ± 0.13: three starts do not tell them apart. Yet their distances to the
# real digits differ in every start. So this student gains something that its teacher does not have. It adds
# fresh noise before every further jump, and guidance had taken the teacher away from the real digits (section
# 1); we did not test which of the two matters. A distance to the data alone would have called this a better
# imitation.
#
# Look at the loss, too. It fell by less than a half, while the distance of the one-step digits fell from 18.6
# to about 2.5. The loss compares neighbours, and neighbours agreed nearly from the beginning. Judge such a
# model by its samples.

# %% [markdown]
# ## 6 · The derivative, without steps: TrigFlow and MeanFlow
#
# Why not let the step go to zero, and use the derivative itself? The chain rule gives it along the path with
# slope $dx/dt$:
#
# $$\frac{d}{dt}G(x_t, t, s) = \frac{\partial G}{\partial x}\,\frac{dx}{dt} + \frac{\partial G}{\partial t}. \tag{6}$$
#
# It is one Jacobian–vector product (`jax.jvp`), with the **tangents** $(dx/dt,\,1,\,0)$ for $(x, t, s)$. No
# matrix is built.
#
# **TrigFlow** (Lu & Song 2025) applies it to consistency models, and measures time as an angle $\theta$ with
# $\tan\theta = \sigma/\alpha$, so that $x = \cos\theta\,x_0 + \sin\theta\,\varepsilon$. If $\alpha^2 + \sigma^2
# = 1$, it is $\arccos\alpha$. The library's `tangent_loss` is this method.
#
# **MeanFlow** (Geng et al. 2025) learns the *mean velocity* from $t$ to $s$ on a rectified flow, $u = (x_t -
# X(x_t, t, s))/(t - s)$. Multiply by $t - s$ and differentiate along the path:
#
# $$u = v - (t - s)\,\frac{du}{dt}. \tag{7}$$
#
# For $s = t$ this is flow matching, $u = v$. The right side becomes the target, without a gradient.


# %%
def mean_velocity_by_hand(u, x0, x1, t, s):
    """Squared error of equation (7), summed over each example: [B]."""
    here = process.expand(t, x0)
    x, v = (1 - here) * x0 + here * x1, x1 - x0  # v of this pair; on average it is the flow's
    told, du_dt = jax.jvp(u, (x, t, s), (v, jnp.ones_like(t), jnp.zeros_like(s)))
    wanted = hold_still(v - process.expand(t - s, x0) * du_dt)
    return jnp.sum((told - wanted) ** 2, axis=tuple(range(1, x0.ndim)))


def u_normal(x, t, s):
    """The exact mean velocity of the normal data."""
    return (x - normal_map(straight, x, t, s)) / jnp.reshape(t - s, (-1, 1))


# %% tags=["comparison"]
late, early = jnp.linspace(0.3, 0.99, MANY), jnp.linspace(0.01, 0.6, MANY) * 0.45
fixed_times = lambda key, n: (late, early)
as_model = lambda x, t, cond, extras: u_normal(x, t, t - extras[:, 0])
by_library = jax.jit(lambda: flow_map.mean_velocity_loss(
    as_model, cloud, None, keys[0], times=fixed_times, power=0.0))()  # fmt: skip
x1 = jax.random.normal(jax.random.split(keys[0])[1], cloud.shape)  # as the library draws it
by_hand = jax.jit(lambda: mean_velocity_by_hand(u_normal, cloud, x1, late, early).mean())()
print(f"by hand {by_hand:.5f}, library {by_library:.5f}")
np.testing.assert_allclose(by_hand, by_library, rtol=1e-4)
angles = np.arccos(p.alpha(clock)) - flow_map.angle(p, clock)
assert np.abs(angles).max() < 1e-3  # arccos loses half of its digits near 1

# %% [markdown]
# Where do people go wrong here? We know the exact $u$, and the exact slope of the flow, so (7) must hold to
# rounding. We try three wrong tangents. And we replace the derivative by a difference over a short time $h$, as
# one might in a framework without `jvp`. For this we use $X(x_t, t, 0)$, whose derivative is exactly 0.
#
# **Predict, then run.** How small should $h$ be, and what is the smallest error that a difference can reach?

# %%
x_late = process.add_noise(straight, cloud, x1, late)
v_flow = flow.velocity(straight, partial(normal_denoiser, straight), x_late, late)
one, zero = jnp.ones_like(late), jnp.zeros_like(late)
TANGENTS = {
    "(v, 1, 0)": (v_flow, one, zero),
    "(v, 0, 0)": (v_flow, zero, zero),
    "(0, 1, 0)": (0 * v_flow, one, zero),
    "(v, 1, 1)": (v_flow, one, one),
}


@jax.jit
def by_tangents(*tangents):
    told, du_dt = jax.jvp(u_normal, (x_late, late, early), tangents)
    return told - v_flow + (late - early)[:, None] * du_dt


off_by = {name: rms(by_tangents(*tangents)) for name, tangents in TANGENTS.items()}
print("what (7) leaves over, by tangents:", {name: f"{v:.0e}" for name, v in off_by.items()})


# %%
@jax.jit
def by_difference(h):
    ahead = normal_map(straight, x_late + h * v_flow, late + h, 0.0)
    return (ahead - normal_map(straight, x_late, late, 0.0)) / h


to_zero = lambda x, t: normal_map(straight, x, t, jnp.zeros_like(t))
exactly = rms(jax.jit(lambda: jax.jvp(to_zero, (x_late, late), (v_flow, one))[1])())
gaps = 10.0 ** -np.arange(1, 7.5, 0.5)
wrong_by = np.array([rms(by_difference(h)) for h in gaps])
fig, ax = plt.subplots(figsize=(5, 3))
ax.loglog(gaps, wrong_by, "o-", color=plots.PREDICTION)
ax.axhline(exactly, color=plots.TRUTH, lw=1)
ax.text(gaps[-1], exactly * 1.3, "jvp", size="small")
ax.set(xlabel="$h$ (length of the difference)", ylabel="error of the derivative (rms)")
plt.show()

# %% tags=["claims"]
# @title Checked: (v, 1, 0) alone solves (7); the best difference is 100 times worse than jvp
assert off_by["(v, 1, 0)"] < 1e-5
assert all(value > 0.05 for name, value in off_by.items() if name != "(v, 1, 0)")
best = wrong_by.argmin()
assert 1e-5 < gaps[best] < 1e-2 and wrong_by[best] > 100 * exactly
assert wrong_by[0] > 10 * wrong_by[best] and wrong_by[-1] > 10 * wrong_by[best]

# %% [markdown]
# A long difference is no derivative. A short one subtracts two numbers that agree in nearly all of float32's
# seven digits. In between lies the best $h$, and it is still far worse than `jvp`, which has no $h$.
#
# The derivative has one more enemy: the network itself. The course's networks see the time as sines of up to
# $1000\,t$. A denoiser does not care. But $du/dt$ contains the derivative of these sines. We look at the
# teacher: its derivative by $t$, beside the mean slope over $\pm 0.02$.


# %%
@jax.jit
def slopes(model, x, t):
    """rms of a network's derivative by t, and of its slope over ± 0.02."""
    v = lambda t: model(x, t, their_labels)
    _, derivative = jax.jvp(v, (t,), (jnp.ones_like(t),))
    secant = (v(t + 0.02) - v(t - 0.02)) / 0.04
    return jnp.sqrt(jnp.mean(derivative**2)), jnp.sqrt(jnp.mean(secant**2))


t_some = jnp.linspace(0.1, 0.9, 64)
x_some = process.add_noise(p, some, jax.random.normal(keys[1], some.shape), t_some)
derivative, secant = slopes(teacher, x_some, t_some)
print(f"teacher: derivative by t {derivative:.2f}, slope over ± 0.02 {secant:.2f}")

# %% [markdown]
# The teacher's derivative is larger by about two fifths than its mean slope over ± 0.02: it wiggles with the time. In
# (7) these wiggles would be multiplied by $t - s$ and become the target. So a network for MeanFlow gets a small
# `time_scale`, 20 in place of 1000.
#
# Now we train one *from nothing*: no teacher, no weights to start from. For a quarter of the examples $s < t$,
# for the others $s = t$, where (7) is flow matching. The velocity is guided, with the network's own answer
# without label: $w\,v + (1-w)\,u(x, t, t)$. And each example's loss is divided by its own size.
#
# **Predict, then run.** What will this loss look like when all goes well?


# %%
def mean_flow(model, x, labels, key):
    key_drop, key_loss = jax.random.split(key)
    labels = losses.drop_labels(key_drop, labels, 10, 0.1)
    times = flow_map.mean_flow_times()
    return flow_map.mean_velocity_loss(model, x, labels, key_loss, times=times, guidance=W)


smooth = UNet(1, (64,), stem=2, num_classes=10, extras=1, time_scale=20.0, rngs=nnx.Rngs(0))
meanflow = loop.fit(
    smooth, mean_flow, data.batches(digits, BATCH, 0), steps=1000, key=jax.random.key(0),
    optimizer=update.adam(3e-3, 1000), ema=0.995, progress=False,
)  # fmt: skip
curve = np.array(meanflow.history.loss)
print(f"loss {curve[:50].mean():.5f} -> {curve[-50:].mean():.5f}")
METHODS["mean flow"] = (
    flow_map.jumps(straight),
    lambda model, labels: flow_map.network_jump(model, straight, "flow", labels),
)
wall["MeanFlow"] = {n: grade(meanflow.ema, n, "mean flow") for n in (1, 2, 4, 8)}
for n, grades in wall["MeanFlow"].items():
    print(f"MeanFlow, {n} evaluations: {say(grades)}")

# %% tags=["claims"]
# @title Checked: the loss stays at 1, and the samples beat one step of the teacher; the derivative is smooth
assert abs(curve[:50].mean() - 1) < 0.01 and abs(curve[-50:].mean() - 1) < 0.01
by_meanflow = wall["MeanFlow"]
assert (by_meanflow[1] < wall["teacher"][1] / 2).all() and (by_meanflow[2] < by_meanflow[1]).all()
own_derivative, own_secant = slopes(meanflow.ema, x_some, t_some)
assert derivative > 1.3 * secant and own_derivative < 1.1 * own_secant

# %% [markdown]
# The loss is 1 at the beginning, 1 at the end, and all is well. Each example's loss is divided by itself, so
# its *value* is always nearly 1, and only its *gradient* says anything. Who watches this curve learns nothing.
# Watch samples, or the size before the division.
#
# This network draws digits in one evaluation, and no teacher has shown it how. Its derivative
# by the time, with the small time scale, is hardly larger than its mean slope. (It is another network with
# another target, so this alone is no proof that the scale does it.)

# %% [markdown]
# ## 7 · The distribution: a difference of two scores
#
# The third equation forgets the flow. A generator makes $x = g(z)$ in one evaluation, and only the
# *distribution* of $x$ counts. **Distribution matching distillation**, DMD (Yin et al. 2024), noises what the
# generator made, to $x_t$, and compares two scores there: the score of the noised data, from the teacher, and
# that of the noised fakes, from a second network that is trained on them all the time. The gradient with
# respect to $x$ is
#
# $$\frac{D_{\text{fake}}(x_t, t) - D_{\text{real}}(x_t, t)}{\text{size}} =
# \frac{\sigma_t^2}{\alpha_t}\cdot\frac{\nabla\log q_{\text{fake}}(x_t) - \nabla\log q_{\text{real}}(x_t)}{\text{size}}, \tag{8}$$
#
# with the mean distance of $x$ to $D_{\text{real}}$ as size. Without it, and with suitable weights, this is the
# gradient of a KL divergence between the noised distributions.
#
# We look at it where both scores are known: the data are two clouds in one dimension, the generator is $a + b
# z$, so its fakes are normal. We train only $a$ and $b$.
#
# **Predict, then run.** A normal distribution cannot be two clouds. Will it cover both, or move into one? We
# train it twice, with little noise ($t < 0.15$) and with all noise levels.

# %%
LEFT, RIGHT = (-1.5, 0.2, 0.4), (1.0, 0.3, 0.6)  # mean, standard deviation, share
two = denoiser.gaussian_mixture(trig, [[LEFT[0]], [RIGHT[0]]], [LEFT[1], RIGHT[1]], [0.4, 0.6])


def fakes_denoiser(a, b):
    def D(x, t):
        alpha, sigma = process.levels(trig, t, x)
        return a + alpha * b**2 / ((alpha * b) ** 2 + sigma**2) * (x - alpha * a)

    return D


def match(theta, key, highest):
    """The loss whose gradient is (8), for 512 fakes."""
    key_z, key_t, key_eps = jax.random.split(key, 3)
    z, eps = (jax.random.normal(k, (512, 1)) for k in (key_z, key_eps))
    t = jax.random.uniform(key_t, (512,), minval=0.02, maxval=highest)
    fake = fakes_denoiser(*hold_still(theta))
    return flow_map.distribution_loss(trig, theta[0] + theta[1] * z, eps, t, two.denoise, fake)


@jax.jit
def train_generator(highest):
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 600))
    theta = jnp.array([0.2, 1.0])  # mean and standard deviation of the fakes

    def one_update(carry, key):
        theta, memory = carry
        step, memory = adam.update(jax.grad(match)(theta, key, highest), memory)
        return (optax.apply_updates(theta, step), memory), theta

    every = jax.random.split(jax.random.key(0), 600)
    return jax.lax.scan(one_update, (theta, adam.init(theta)), every)[1]


# %%
seen_by = {highest: np.asarray(train_generator(highest)) for highest in (0.15, 0.98)}
ends = {highest: path[-1] for highest, path in seen_by.items()}
for highest, (a, b) in ends.items():
    print(f"noise up to t = {highest}: the fakes have mean {a:.2f} and standard deviation {b:.2f}")
middle_of_two = 0.4 * LEFT[0] + 0.6 * RIGHT[0]
wide_as_two = np.sqrt(0.4 * (LEFT[1]**2 + LEFT[0]**2) + 0.6 * (RIGHT[1]**2 + RIGHT[0]**2)
                      - middle_of_two**2)  # fmt: skip
print(f"the data have mean {middle_of_two:.2f} and standard deviation {wide_as_two:.2f}")

# %%
grid = np.linspace(-4, 4, 400)
bell = lambda mean, std: np.exp(-(((grid - mean) / std) ** 2) / 2) / std / np.sqrt(2 * np.pi)
fig, ax = plt.subplots(figsize=(5, 2.8))
plots.curves(grid, {
    "data": 0.4 * bell(*LEFT[:2]) + 0.6 * bell(*RIGHT[:2]),
    "little noise": bell(*ends[0.15]), "all levels": bell(*ends[0.98]),
}, xlabel="$x$", ylabel="density", ax=ax)  # fmt: skip
plt.show()

# %% tags=["comparison"]
# Equation (8): the gradient of the library's loss against the scores of the two distributions.
fakes = 0.3 + 0.8 * jax.random.normal(keys[2], (64, 1))
eps, t_fake = jax.random.normal(keys[3], (64, 1)), jnp.linspace(0.1, 0.9, 64)
fake = denoiser.gaussian_mixture(trig, [[0.3]], [0.8], [1.0])
gradient = 64 * jax.grad(lambda x: flow_map.distribution_loss(
    trig, x, eps, t_fake, two.denoise, fake.denoise))(fakes)  # fmt: skip
noised = process.add_noise(trig, fakes, eps, t_fake)
difference = fake.score(noised, t_fake) - two.score(noised, t_fake)
size = np.abs(fakes - two.denoise(noised, t_fake))
expected = (trig.sigma(t_fake) ** 2 / trig.alpha(t_fake))[:, None] * difference / size
np.testing.assert_allclose(gradient, expected, rtol=5e-3, atol=1e-4)

# %% tags=["claims"]
# @title Checked: with little noise the generator becomes one of the clouds, with all levels it covers both
assert abs(ends[0.15][0] - RIGHT[0]) < 0.02 and abs(ends[0.15][1] - RIGHT[1]) < 0.02
assert np.abs(seen_by[0.15][-100:] - ends[0.15]).max() < 0.02  # and it stays there
# With all levels it is as wide as the data or wider; both centres lie within two of its standard deviations.
assert ends[0.98][1] > wide_as_two * 0.8 and ends[0.98][1] > 3 * ends[0.15][1]
assert all(abs(cloud_at[0] - ends[0.98][0]) < 2 * ends[0.98][1] for cloud_at in (LEFT, RIGHT))

# %% [markdown]
# With little noise the generator becomes the right cloud, exactly: mean 1.00, standard deviation 0.30. It stays
# there. The other 40 % of the data are gone, and nothing pulls it back. A KL divergence from the fakes to the
# data punishes fakes where no data are. It does not punish data without fakes. With all levels the generator
# covers both: at high noise the two clouds are one, and the whole of it must be matched.
#
# So matching of distributions can lose modes, and noise is one remedy. The authors of DMD add a second loss for
# the same reason: pairs of a noise and the teacher's digit for it. Its successor drops the pairs and adds a
# discriminator (Yin et al. 2024b).

# %% [markdown]
# ## 8 · The wall
#
# The **wall** is the steep rise of a sampler's distance when it has only a few evaluations left. Here are all
# methods side by side, at 1, 2, 4 and 8 evaluations. The network is the same everywhere (MeanFlow's is told one
# number more), and $w = 2$ is the guidance of every target. Each number is the mean of three starts with 500
# digits each. The updates differ, since the methods differ: four stages of 200 for progressive distillation
# (each number of evaluations has its own student), 500 for consistency, and 1,000 for MeanFlow, which began
# with nothing. The first two began with a network that had been trained for 6,000 updates. Each student was
# trained once, at a rate of 1e-3 (progressive) or 3e-3 (the others); the ± is that of three starts, not of three
# trainings.
#
# **Predict, then run.** Will one method be the best in both panels?

# %%
BUDGETS = (1, 2, 4, 8)
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
for column, (ax, title) in enumerate(
    zip(axes, ("to real digits", "to the teacher's digits"), strict=True)
):
    means_at = {name: [wall[name][n][:, column].mean() for n in BUDGETS] for name in wall}
    ax.set(title=title, xscale="log", yscale="log", ylim=(0.4, 30))
    ax.axhline(fifty[column], color=plots.TRUTH, lw=1)
    ax.text(1, fifty[column] * 0.98, "teacher, 50", size="small", va="top")
    plots.curves(BUDGETS, means_at, xlabel="evaluations", ylabel="Fréchet distance", ax=ax)
    ax.set_xticks(BUDGETS, BUDGETS)
    ax.minorticks_off()
axes[0].axhline(floor, color=plots.NOISE, lw=1)
axes[0].text(1, floor * 0.98, "unseen real digits", size="small", va="top", color=plots.NOISE)
axes[1].set_ylabel("")
plt.show()

# %%
noise = start(0)
wall_rows = {
    "teacher, 50": by_teacher[50],
    "teacher, 1": by_teacher[1],
    "progressive, 1": draw(progressive[1], noise, 1, jax.random.key(0), "plain"),
    "consistency, 1": draw(consistency.ema, noise, 1, jax.random.key(0), "consistency"),
    "consistency, 2": draw(consistency.ema, noise, 2, jax.random.key(0), "consistency"),
    "MeanFlow, 1": draw(meanflow.ema, noise, 1, jax.random.key(0), "mean flow"),
}
plots.image_grid(
    [x[:12] for x in wall_rows.values()], list(wall_rows), "The same noise in each column"
)
plt.show()

# %%
known = {
    name: metrics.class_accuracy(judge(expert.model, x)[0], LABELS) for name, x in wall_rows.items()
}
apart = {name: rms(x - by_teacher[50]) for name, x in wall_rows.items()}
apart["another noise"] = rms(
    draw(teacher, start(1), 50, jax.random.key(0), "teacher") - by_teacher[50]
)
apart["MeanFlow, another noise"] = rms(
    draw(meanflow.ema, start(1), 1, jax.random.key(0), "mean flow") - by_teacher[50]
)
print("recognised:", {name: f"{share:.1%}" for name, share in known.items()})
print("rms per pixel to the teacher's 50:", {name: f"{value:.2f}" for name, value in apart.items()})

# %% tags=["claims"]
# @title Checked: consistency is nearest to the data; accuracy tells nothing; two students keep the digit
nearest_to_data = {min(wall, key=lambda name, n=n: wall[name][n][:, 0].mean()) for n in BUDGETS}
assert nearest_to_data == {"consistency"}
assert all(
    wall[name][1][:, 0].max() < wall["teacher"][1][:, 0].min() / 2
    for name in wall
    if name != "teacher"
)
assert min(known.values()) > 0.99
assert (wall["MeanFlow"][8] > wall["teacher"][8]).all()
assert all(wall["MeanFlow"][n].mean(0)[0] > wall[name][n].mean(0)[0]
           for n in BUDGETS for name in ("progressive", "consistency"))  # fmt: skip
followers = max(apart["progressive, 1"], apart["consistency, 1"])
assert (
    followers < apart["teacher, 1"] / 2
    and followers < apart["MeanFlow, 1"] < apart["MeanFlow, another noise"]
)
assert apart["consistency, 2"] > 1.3 * apart["consistency, 1"]

# %% [markdown]
# Not for certain. Consistency distillation is the nearest to the real digits at every budget. To the teacher it and
# progressive distillation are about equally near. MeanFlow is behind both, and with eight evaluations
# behind the teacher's DDIM too. It is the only one that had no teacher: it shows what a thousand updates can do
# from nothing. But all of them lower the wall: with one evaluation, each has less than half of the distance
# of the teacher's DDIM. The accuracy is 99 % or more in every row, the blurred one included.
#
# Look at the columns of the picture. The two students draw *the teacher's* digit with one evaluation, from the
# same noise, as a flow map should. The consistency model with two evaluations draws another one: its second
# jump begins with fresh noise. And MeanFlow, which has never seen the teacher, is a little nearer to the
# teacher's digit than its own digit from another noise: two networks on two processes have learnt flows that are
# related, and not the same.

# %% [markdown]
# **On MNIST.** The same race with 28×28 digits is a *recorded* benchmark (`benchmarks/wall.py`, one H200,
# November 2026). Every method has the same U-Net (MeanFlow's and the shortcut model's are told one number
# more), 10,000 updates of 128 digits, and $w = 1.5$. Consistency training has no teacher's steps, and so no
# guidance: its two rows have $w = 1$. The training of the teachers is not counted. Shortcut, MeanFlow and the row
# "from nothing" begin with nothing, all others with their teacher's weights. Reflow has a teacher of its own, the
# rectified flow of chapter 17, whose row is "flow, Euler". One run each, 5,000 digits per number. "Coverage" is
# the share of unseen real digits with a drawn one near by.

# %%
MNIST_WALL = {  # evaluations -> recognised, distance to data, to teacher, coverage
    "DDIM of the teacher": {1: (1.0, 44.61, 34.09, 0.007), 2: (1.0, 14.35, 7.33, 0.482),
        4: (0.998, 6.54, 1.94, 0.77), 8: (0.997, 3.58, 0.42, 0.864), 50: (0.994, 1.94, 0.0, 0.907)},
    "DPM-Solver++(2M) of the teacher": {1: (1.0, 44.61, 34.09, 0.007),
        2: (1.0, 14.35, 7.33, 0.482), 4: (0.998, 4.97, 1.09, 0.82), 8: (0.994, 2.51, 0.1, 0.892),
        50: (0.994, 1.74, 0.01, 0.908)},
    "progressive distillation": {1: (0.996, 2.24, 0.14, 0.873), 2: (0.995, 2.11, 0.08, 0.881),
        4: (0.994, 2.0, 0.04, 0.895), 8: (0.994, 1.98, 0.02, 0.901)},
    "shortcut": {1: (0.995, 2.87, 0.64, 0.824), 2: (0.993, 2.35, 0.44, 0.854),
        4: (0.993, 2.13, 0.29, 0.875), 8: (0.995, 1.92, 0.2, 0.895)},
    "distribution matching": {1: (0.995, 2.13, 0.44, 0.888)},
    "consistency distillation": {1: (0.994, 2.03, 0.2, 0.861), 2: (0.992, 1.96, 0.16, 0.876),
        4: (0.992, 1.88, 0.21, 0.903), 8: (0.988, 1.86, 0.32, 0.916)},
    "MeanFlow": {1: (0.997, 2.91, 0.85, 0.833), 2: (0.995, 1.48, 0.34, 0.899),
        4: (0.997, 1.95, 0.25, 0.91), 8: (0.999, 2.03, 0.27, 0.916)},
    "flow, Euler": {1: (1.0, 42.49, 33.06, 0.014), 2: (1.0, 12.8, 6.57, 0.524),
        4: (1.0, 5.3, 1.4, 0.808), 8: (0.997, 3.05, 0.29, 0.886), 50: (0.996, 1.81, 0.0, 0.913)},
    "reflow": {1: (0.998, 2.16, 0.2, 0.867), 2: (0.997, 2.11, 0.11, 0.885),
        4: (0.996, 2.05, 0.07, 0.896), 8: (0.996, 1.99, 0.05, 0.9)},
    "consistency training": {1: (0.968, 1.5, 2.48, 0.83), 2: (0.954, 1.37, 2.84, 0.858),
        4: (0.948, 1.11, 2.62, 0.895), 8: (0.944, 1.12, 2.6, 0.906)},
    "consistency training from nothing": {1: (0.97, 3.25, 4.16, 0.663),
        2: (0.959, 2.47, 3.78, 0.752), 4: (0.95, 1.99, 3.38, 0.831), 8: (0.939, 2.01, 3.35, 0.852)},
}  # fmt: skip

# %%
MNIST_STARTS = (2.028, 2.262, 2.07)  # consistency, 1 evaluation, to the data: three starts
MNIST_SPOILT = 0.179  # recognised: consistency training from nothing with other settings
MNIST_FASTER = 2.557  # to the data, 1 evaluation: from the teacher's weights at five times the rate
TEACHER_AT_1 = 0.89  # the teacher's distance to the data with w = 1 and 25 steps: its card
mnist_floor = 0.416  # the distance of 5,000 unseen real digits to the data
print("recognised, distance to the data, to the teacher, coverage")
for name, at_counts in MNIST_WALL.items():
    for n, (share, to_data, to_teacher, coverage) in at_counts.items():
        print(f"{name:33} {n:2}: {share:7.2%} {to_data:6.2f} {to_teacher:6.2f} {coverage:6.1%}")

fig, ax = plt.subplots(figsize=(7.6, 3.6))
for i, (name, at_counts) in enumerate(MNIST_WALL.items()):
    if "training" not in name and name != "flow, Euler":  # another w; much like the first row
        few = [n for n in at_counts if n <= 8]
        style = {"color": plots.SERIES[i % 6], "ls": plots.DASHES[(i + i // 6) % 6], "label": name}
        ax.loglog(few, [at_counts[n][1] for n in few], "o", ms=5 - i // 3, **style)
ax.axhline(MNIST_WALL["DDIM of the teacher"][50][1], color=plots.TRUTH, lw=1)
ax.text(8, 1.9, "teacher, 50", size="small", va="top", ha="right")
ax.axhline(mnist_floor, color=plots.NOISE, lw=1)
ax.text(8, 0.43, "unseen real digits", size="small", ha="right", color=plots.NOISE)
ax.set(xlabel="evaluations", ylabel="Fréchet distance to real digits")
ax.set_xticks(BUDGETS, BUDGETS)
ax.minorticks_off()
ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
plt.show()

# %% [markdown]
# One of these numbers we compute again: the consistency model with one evaluation.

# %%
mnist_student, mnist_judge = weights.load("mnist_consistency"), weights.load("mnist_classifier")
mnist_noise = jax.random.normal(jax.random.key(1), (5000, 28, 28, 1))
once = jax.jit(lambda model, x, labels: denoiser.denoiser(model, p, "v", labels)(x, 1.0))
mnist_found, mnist_seen = [], []
for begin in range(0, 5000, 500):
    part = once(mnist_student.model, mnist_noise[begin : begin + 500], jnp.arange(500) % 10)
    classes_seen, found_in_part = judge(mnist_judge.model, part)
    mnist_seen.append(classes_seen == jnp.arange(500) % 10)
    mnist_found.append(found_in_part)
again = metrics.frechet(np.concatenate(mnist_found), features.load("mnist", mnist_judge.card))
plots.image_grid(
    [part[:12], part[12:24]], ["1 evaluation", ""], "Consistency distillation on MNIST"
)
plt.show()
print(f"again {again:.3f}, recorded {MNIST_WALL['consistency distillation'][1][1]:.3f}")

# %% tags=["claims"]
# @title Checked: the record; one evaluation of three students beats eight of the teacher's DDIM
shown = {name: {n: dict(zip(("share", "data", "teacher", "coverage"), row, strict=True))
                for n, row in rows.items()} for name, rows in MNIST_WALL.items()}  # fmt: skip
assert abs(again / shown["consistency distillation"][1]["data"] - 1) < 0.02  # float32 elsewhere
assert abs(np.mean(mnist_seen) - shown["consistency distillation"][1]["share"]) < 0.003
its_ddim = shown["DDIM of the teacher"]
assert its_ddim[1]["share"] == 1 and its_ddim[1]["coverage"] < 0.01
students = ("progressive distillation", "consistency distillation", "distribution matching")
assert all(
    its_ddim[50]["data"] < shown[name][1]["data"] < 1.2 * its_ddim[50]["data"] for name in students
)
reflowed, its_flow = shown["reflow"], shown["flow, Euler"]
assert its_flow[50]["data"] < reflowed[1]["data"] < 1.2 * its_flow[50]["data"] < its_flow[8]["data"]
assert all(
    shown[name][1]["data"] < its_ddim[8]["data"] for name in (*students, "MeanFlow", "shortcut")
)
matched, halved = shown["distribution matching"][1], shown["progressive distillation"][1]
solver = shown["DPM-Solver++(2M) of the teacher"][8]["data"]
assert all(shown[name][1]["data"] < solver for name in students)
assert all(solver < shown[name][1]["data"] < 3 for name in ("MeanFlow", "shortcut"))
# %% tags=["claims"]
# @title Checked: what the record does not decide, and what a start from the teacher's weights brings
# No verdict between two students is taken from the data: three starts of one differ by as much.
assert abs(matched["data"] - halved["data"]) < max(MNIST_STARTS) - min(MNIST_STARTS)
assert abs(weights.load("mnist").card.metrics["w=1"]["frechet"] - TEACHER_AT_1) < 0.005
assert MNIST_SPOILT < 0.2 < 0.9 < shown["consistency training from nothing"][1]["share"]
assert 1.5 * shown["consistency training"][1]["data"] < MNIST_FASTER  # starts differ by .2
begun, anew = (shown[f"consistency training{start}"] for start in ("", " from nothing"))
assert all(1.7 < anew[n]["data"] / begun[n]["data"] < 2.3 for n in BUDGETS)
assert begun[4]["data"] < 0.75 * begun[1]["data"] and anew[4]["data"] < 0.75 * anew[1]["data"]
assert begun[1]["data"] > 1.6 * TEACHER_AT_1 and begun[4]["data"] < 1.3 * TEACHER_AT_1
assert shown["MeanFlow"][1]["data"] > 1.2 * halved["data"]
assert all(
    0.8 < shown[name][1]["coverage"] < its_ddim[50]["coverage"]
    for name in (*students, "MeanFlow", "shortcut")
)

# %% [markdown]
# The teacher's DDIM in one evaluation: 100 % recognised, and less than one in a hundred unseen digits has a
# drawn one near it. All students are far from this. The three that began with the teacher's weights are
# within a fifth of DDIM's 50 evaluations with *one*, and nearer to the data than the teacher's better sampler,
# DPM-Solver++, with eight (2.51). MeanFlow and the shortcut model began with nothing. Their one evaluation (2.9)
# beats eight of DDIM (3.58), but not eight of DPM-Solver++. Coverage with one evaluation is below that of the
# teacher's 50 in all five.

# %% [markdown]
# Which student is the best, these numbers cannot say: from three sets of 5,000 noises the consistency model's
# distance to the data was 2.03, 2.26 and 2.07. The third column does not decide either. All rows began with the
# teacher's noise, so a student that follows the teacher's map draws nearly the teacher's own digits, and can
# come near 0. Distribution matching learns no map: its digits are *other* digits, and two sets of other digits
# differ even if one model draws both. (It also trains a second network beside the first.)

# %% [markdown]
# Reflow straightens a flow, and one step of Euler is then within a fifth of its teacher's 50 (2.16, 1.81).
#
# Consistency training is the only one without a teacher's steps and without guidance. Compare it with the
# teacher at $w = 1$, which has 0.89 with 25 steps. From the teacher's weights it comes to 1.50 with one evaluation
# and 1.11 with four (Geng et al. 2024, arXiv:2406.14548, propose this start). From nothing it stays about twice as
# far. And it is easy to spoil: another run from nothing, with a rate of Adam that began seven times higher, a grid
# of 16 to 128 times instead of 2 to 16 and a longer average, ended at 18 % recognised. We did not vary the three
# apart. But from the teacher's weights we changed the rate alone: five times higher, it gives 2.56 instead of 1.50
# (one run each).

# %% [markdown]
# ## 9 · What is lost: diversity
#
# A few-step model may draw good digits, and too few kinds of them. The Fréchet distance mixes both. So we
# measure the **spread** alone: the variance of each pixel within a class, summed over the pixels, averaged over
# the classes. Real digits are 100 %.
#
# There are two suspects, guidance and the few evaluations. To tell them apart we also measure the teacher's
# network at $w = 1$, with 50 evaluations.
#
# **Predict, then run.** Which of the two takes more of the spread?


# %%
def spread(x, labels):
    x, labels = np.asarray(x), np.asarray(labels)
    return np.mean([x[labels == c].var(axis=0, ddof=1).sum() for c in range(10)])


whole = spread(digits.x, digits.labels)
DRAWN = {
    "teacher, 4": (teacher, 4, "teacher"),
    "progressive, 1": (progressive[1], 1, "plain"),
    "consistency, 1": (consistency.ema, 1, "consistency"),
    "consistency, 4": (consistency.ema, 4, "consistency"),
    "MeanFlow, 1": (meanflow.ema, 1, "mean flow"),
    "MeanFlow, 8": (meanflow.ema, 8, "mean flow"),
}
clouds_of = {  # two starts where 50 evaluations are needed, three elsewhere
    "w = 1, 50": [draw(teacher, start(seed), 50, keys[0], "plain") for seed in (0, 100)],
    "teacher, 50": [by_teacher[50], more_by_teacher],
} | {
    name: [draw(model, start(seed), n, jax.random.key(seed), method) for seed in (0, 1, 2)]
    for name, (model, n, method) in DRAWN.items()
}  # fmt: skip
kept = {name: np.array([spread(x, LABELS) / whole for x in xs]) for name, xs in clouds_of.items()}
kept["unseen digits"] = np.array([spread(unseen.x, unseen.labels) / whole])
for name, shares in kept.items():
    print(f"{name:14}: {shares.mean():4.0%}, from {shares.min():.1%} to {shares.max():.1%}")

# %% tags=["claims"]
# @title Checked: guidance takes some of the spread, one evaluation takes more, four give it back
part_of = {name: shares.mean() for name, shares in kept.items()}
by_guidance = part_of["w = 1, 50"] - part_of["teacher, 50"]
assert kept["teacher, 50"].max() < kept["w = 1, 50"].min() < part_of["unseen digits"]
for name in ("progressive, 1", "consistency, 1"):
    lost = part_of["teacher, 50"] - part_of[name]  # of 500 digits: they scatter by two points
    assert 0.12 < lost < 0.28 and lost > 1.3 * by_guidance
    assert kept["teacher, 4"].max() < kept[name].min()
assert 0.25 < part_of["teacher, 50"] - part_of["teacher, 4"] < 0.35 and 0.05 < by_guidance < 0.11
assert abs(part_of["consistency, 4"] - part_of["teacher, 50"]) < 0.05

# %% [markdown]
# The few evaluations take more. The network keeps almost nine tenths of the real spread at $w = 1$. Guidance
# takes some eight points of it. One evaluation of a student takes fifteen to twenty-five points more (MeanFlow,
# which has no teacher, is shown with one and with eight), and the teacher's own DDIM in four evaluations thirty.
# With four evaluations the consistency model has about all of its teacher's spread.
#
# A likely reason is the staircase of section 3. A smooth network rounds its edges, so what one evaluation draws
# lies nearer to the middle of its class. In the pictures this is hard to see: typical digits look good. So
# measure it.

# %% [markdown]
# ## 10 · Editing in one evaluation
#
# `to_data` and a consistency model are called like a denoiser, $D(x, t)$. So the code of chapter 08 accepts them.
# What needs the *mean*, such as DDIM, is then wrong (section 12); SDEdit with the `consistency` sampler is right.
# We take the SDEdit of that chapter: 360 unseen digits, made crude (each pixel black or white), get noise
# up to $t = 0.5$, and come back with their label. How many evaluations does this need?
#
# **Predict, then run.** One evaluation of the student against one to twenty of the teacher: which is nearest
# to real digits?

# %%
crude = jnp.where(jnp.asarray(unseen.x) > 0, 1.0, -1.0)
classes = jnp.asarray(unseen.labels)


@partial(jax.jit, static_argnames=("method", "steps"))
def edit(model, key, method, steps):
    sampler, make = METHODS[method]
    return editing.sdedit(sampler, make(model, classes), p, crude, 0.5, steps, key)


edited = {
    "teacher, 1": (teacher, "teacher", 1),
    "teacher, 2": (teacher, "teacher", 2),
    "teacher, 10": (teacher, "teacher", 10),
    "teacher, 20": (teacher, "teacher", 20),
    "consistency, 1": (consistency.ema, "consistency", 1),
    "consistency, 2": (consistency.ema, "consistency", 2),
}
edits = {name: [edit(model, jax.random.key(seed), *how) for seed in (0, 1, 2)]
         for name, (model, *how) in edited.items()}  # fmt: skip
quality = {
    name: np.array([metrics.frechet(look(x), real) for x in xs]) for name, xs in edits.items()
}
moved = {name: np.array([rms(x - crude) for x in xs]) for name, xs in edits.items()}
print(f"crude digits: Fréchet distance {metrics.frechet(look(crude), real):.1f}")
for name, values in quality.items():
    print(f"{name:14}: {values.mean():.2f} ± {values.std(ddof=1):.2f}, "
          f"changed by {moved[name].mean():.2f}")  # fmt: skip

# %%
pictures = [unseen.x[:12], crude[:12], *(xs[0][:12] for xs in edits.values())]
plots.image_grid(pictures, ["real", "crude", *edits], "SDEdit from $t$ = 0.5")
plt.show()

# %% tags=["claims"]
# @title Checked: one evaluation of the student is as good as ten to twenty of the teacher
assert (quality["consistency, 1"] < quality["teacher, 2"]).all()
assert abs((quality["consistency, 1"] - quality["teacher, 10"]).mean()) < 0.15
gain = quality["consistency, 1"] - quality["teacher, 20"]
print("student less teacher with 20, start by start:", gain.round(2))
assert (
    abs(gain.mean()) < 0.15
    and abs(moved["consistency, 1"].mean() - moved["teacher, 20"].mean()) < 0.05
)
assert quality["consistency, 2"].mean() > quality["consistency, 1"].mean()

# %% [markdown]
# One evaluation of the student is as good as ten to twenty of the teacher, two calls of the network each, and
# it changes the picture by as much. Two evaluations are not better here.

# %% [markdown]
# ## 11 · Guidance as an input
#
# Our students have $w = 2$ built in. For another $w$ we must distil again. There is a better way (Meng et
# al. 2023): draw $w$ at random for each example, guide the teacher with it, and *tell* the student the number,
# embedded like the time. In our library that is one number more in `extras`. Afterwards $w$ is a dial again,
# and each evaluation is one call instead of two.

# %% [markdown]
# **Latent consistency models**, LCM (Luo et al. 2023), put the parts of this chapter together for large
# text-to-image models: consistency distillation (section 5), in the latents of an autoencoder (chapter 14), with
# an embedded $w$. For each $w$ the guided teacher $D_w = D_\varnothing + w\,(D_c - D_\varnothing)$ has a flow of
# its own, and one network $f$ learns the ends of all these paths:
#
# $$f(z_t, t, w, c) = f(z_s, s, w, c), \qquad z_s = \text{DDIM's step from } z_t \text{ to } s
# \text{ with } D_w, \qquad s = \max\bigl(t - \tfrac kN, 0\bigr)$$
#
# The right side carries no gradient, and its $f$ has averaged weights. Guidance stands in the teacher's step
# *alone*; both $f$ are told $w$. Neighbours on a fine grid of $N$ times hardly differ, so the teacher's step covers
# $k$ of them: $k = 20$ of $N = 1000$ in the paper, 4 of 100 here, which makes 25 of the teacher's steps from noise to
# latents. (The paper's $w$ is ours less 1.)

# %% [markdown]
# The library's loss is `distillation.scaled_consistency_loss`. The student begins as its teacher: the new
# embedding of $w$ ends in zeros (`begin_as`), so at first the network does not hear $w$.
#
# The released `shapes_lcm` is such a student of chapter 14's `shapes_latent`: latents of 8×8×4, $w$ drawn
# from 1 to 3, 2,000 updates of 32 latents. We draw from the same noises with the teacher in 25 evaluations, with
# the student in 4, 2 and 1, and with the teacher in 4 and 1, all with $w = 2$. The teacher makes *two* calls per
# evaluation: 50 for the first row, 8 and 2 for the others.
#
# **Predict, then run.** Somebody knows that guidance needs two calls. So they guide the student again, although it has
# been told $w = 2$ already. Which $w$ does the result have?


# %%
lcm, shapes_space = weights.load("shapes_lcm").model, weights.latent_space("shapes_vae")
as_teacher = nnx.clone(lcm)
distillation.begin_as(as_teacher, weights.load("shapes_latent").model)  # it does not hear w
KINDS, TOLD_W = np.arange(12) % 6, np.float32(2)
z_noise = jax.random.normal(jax.random.split(jax.random.key(0))[0], (240, 8, 8, 4))[:12]


@jax.jit
def call(model, z, t, labels, w):
    """One call of the network: its estimate of the latents."""
    told = distillation.with_scale(model, w, 3.0)
    return denoiser.denoiser(told, p, "v", labels)(z, t)


def call_twice(model, z, t, labels, w):
    without = call(model, z, t, np.full_like(labels, 6), w)
    return without + w * (call(model, z, t, labels, w) - without)


# %%
def path(model, ask, n, fresh=None):
    """n evaluations: DDIM's steps; jumps to the data, if there is a source of fresh noise."""
    z = np.asarray(z_noise)
    for t, s in ((1 - i / n, 1 - (i + 1) / n) for i in range(n)):
        (a_t, s_t), (a_s, s_s) = ((float(p.alpha(u)), float(p.sigma(u))) for u in (t, s))
        z0 = np.asarray(ask(model, z, np.float32(t), KINDS, TOLD_W))
        eps = (z - a_t * z0) / s_t if fresh is None else fresh.normal(size=z.shape)
        z = (a_s * z0 + s_s * eps).astype(np.float32)
    return z


some_noise = np.random.default_rng(0)
in_latents = {
    "teacher, 25": path(as_teacher, call_twice, 25),
    **{f"student, {n}": path(lcm, call, n, some_noise) for n in (4, 2, 1)},
    **{f"teacher, {n}": path(as_teacher, call_twice, n) for n in (4, 1)},
    "student, 1, guided again": path(lcm, call_twice, 1, some_noise),
}

# %%
plots.image_grid([latent.decode_all(shapes_space, z) for z in in_latents.values()],
                 list(in_latents), "Latents, w = 2: evaluations")  # fmt: skip
plt.show()
latent_off = {name: float(np.mean((z - in_latents["teacher, 25"]) ** 2))
          for name, z in in_latents.items()}  # fmt: skip
for name, mean_square in latent_off.items():
    print(f"mean square per latent value to the teacher's 25: {mean_square:.3f} {name}")

# %% [markdown]
# **Recorded** (`benchmarks/latent_consistency.py`): three draws of 240 shapes, from the same noises for every
# row. DDIM is the teacher, LCM the student; the number counts evaluations. For each $w$ you see the Fréchet distance to
# 12,000 real shapes in the features of chapter 14's judge, three draws; the share that it recognises; and the mean
# square difference to the teacher's 25 evaluations, per latent value (of variance 1). The last two are means of the
# draws. (One set of 240 unseen real shapes has a distance of 3.86, and 1,000 have .64: at 240 most of a distance comes
# from the small number of pictures, so a row below 3.86 is not better than real. Compare the rows, draw by draw.)

# %%
LCM_RECORD = {
    "DDIM, 25": {1: ((2.61, 3.22, 3.45), 0.981, 0.0), 2: ((2.82, 3.32, 3.48), 0.997, 0.0),
        3: ((3.15, 3.47, 3.77), 1.0, 0.0)},
    "DDIM, 4": {1: ((10.24, 12.36, 12.98), 0.849, 0.307), 2: ((4.68, 5.58, 6.74), 0.964, 0.337),
        3: ((3.7, 4.97, 5.26), 0.983, 0.385)},
    "DDIM, 2": {1: ((108.88, 102.51, 110.48), 0.297, 0.631),
        2: ((49.68, 48.68, 51.78), 0.533, 0.616), 3: ((26.43, 23.28, 24.21), 0.714, 0.693)},
    "DDIM, 1": {1: ((167.19, 166.45, 167.52), 0.167, 0.837),
        2: ((170.65, 170.41, 170.68), 0.167, 0.928), 3: ((164.09, 166.3, 165.34), 0.167, 1.018)},
    "LCM, 4": {1: ((2.82, 3.71, 3.48), 0.978, 0.509), 2: ((2.91, 3.29, 3.42), 0.988, 0.572),
        3: ((3.13, 3.24, 3.65), 0.992, 0.637)},
    "LCM, 2": {1: ((3.39, 3.85, 3.73), 0.956, 0.318), 2: ((2.85, 3.57, 3.26), 0.982, 0.382),
        3: ((3.05, 3.64, 3.57), 0.986, 0.447)},
    "LCM, 1": {1: ((3.96, 4.77, 4.39), 0.912, 0.25), 2: ((3.37, 4.07, 4.03), 0.95, 0.319),
        3: ((3.49, 4.04, 4.02), 0.957, 0.379)},
}  # fmt: skip

# %%
LCM_FLOOR = 3.86  # Fréchet distance of 240 unseen real shapes
LCM_OTHER = {1: 1.729, 2: 1.921, 3: 2.058}  # w -> mean square of two noises' shapes
LCM_FIRST = {"LCM, 1": 0.308, "DDIM, 1": 0.875, "DDIM, 4": 0.347}  # mean square of the 12 above
# Milliseconds of a processor for one image, with 3.3 of the decoder.
LCM_MS = {"DDIM, 25": 51.5, "DDIM, 4": 14.3, "DDIM, 1": 9.0, "LCM, 4": 11.2, "LCM, 1": 8.8}
for name, by_scale in LCM_RECORD.items():
    for w, (three, share, off) in by_scale.items():
        print(f"{name:8} w = {w}: Fréchet distances {three}, {share:.1%} recognised, {off:.3f}")
print(f"unseen real shapes: {LCM_FLOOR}; milliseconds for one image: {LCM_MS}")

# %% tags=["claims"]
# @title Checked: the record; four calls of the student beside fifty of the teacher, and what one call loses
for w in (1, 2, 3):
    draws_of, share_of, near_of = (
        {name: by_scale[w][k] for name, by_scale in LCM_RECORD.items()} for k in range(3)
    )
    full, scatter_of = draws_of["DDIM, 25"], np.ptp(draws_of["DDIM, 25"])
    behind = np.subtract(draws_of["LCM, 4"], full)
    assert np.abs(behind).max() < 0.5 < scatter_of
    assert {1: behind.min() > 0, 2: behind.min() < 0 < behind.max(), 3: behind.max() < 0}[w]
    assert 0 < share_of["DDIM, 25"] - share_of["LCM, 4"] < 0.01
    # The same noises in every row: each draw is compared with itself.
    assert all(np.less(full, draws_of["LCM, 1"])) and share_of["LCM, 1"] < share_of["DDIM, 25"]
    assert all(np.less(draws_of["LCM, 1"], draws_of["DDIM, 4"]))
    assert min(draws_of["DDIM, 1"]) > 100 and abs(share_of["DDIM, 1"] - 1 / 6) < 0.001
    assert near_of["LCM, 1"] < near_of["LCM, 2"] < near_of["LCM, 4"] < LCM_OTHER[w]
    assert max(full) < LCM_FLOOR

# %% tags=["claims"]
# @title Checked: what w does, what it costs, and the rows that were drawn again here
# 720 shapes each: a share of .92 has a standard error of .010.
assert abs(LCM_RECORD["LCM, 1"][2][1] - LCM_RECORD["LCM, 1"][1][1] - 0.04) < 0.005
assert LCM_MS["DDIM, 25"] > 5 * LCM_MS["LCM, 1"]
of_1000 = weights.load("shapes_lcm").card.metrics["1 evaluation"]
assert of_1000["samples"] == 1000 and abs(of_1000["frechet_floor"] - 0.64) < 0.005
for name, recorded in LCM_FIRST.items():  # float32, summed in another order
    again_off = latent_off[name.replace("LCM", "student").replace("DDIM", "teacher")]
    assert abs(again_off / recorded - 1) < 0.02
assert latent_off["student, 1, guided again"] > 3 * latent_off["student, 1"]
dark = latent.decode_all(shapes_space, in_latents["teacher, 1"])
print(f"brightest value of the teacher's single evaluation {dark.max():.2f} (black is -1)")
assert dark.max() < -0.5

# %% [markdown]
# The teacher's single evaluation is almost black: from noise alone it can only answer with means over all places and
# colours. The judge is right on one in six, as by chance. **Four calls** of the student are about as near to the data
# as fifty of the teacher: a little further in each draw with $w=1$, a little nearer in each with $w=3$, by less than
# .5. (The teacher's own three draws span .6 to .8.) In the mean of the draws they are recognised less often at each
# $w$, by less than one point. **One call** loses something in every draw: it is further from the data than the
# teacher's fifty. It is recognised less often, and some rings and small circles of the picture have fallen apart. But
# it is nearer than the teacher's four evaluations, which are eight calls. It takes 9 ms of processor time with the
# decoder, and the teacher's fifty calls take 52 ms.

# %% [markdown]
# And $w$ is a dial: one call that is told 2 is recognised almost 4 points more often than one that is told 1. As in
# section 8, two and four evaluations leave the teacher's *own* shapes. Each further jump begins with fresh noise, so
# even an exact map would do this. All this is one training of one student.

# %% [markdown]
# **Guided again**, the student's shapes have over three times the mean square to the teacher's. If a class and the
# null are normal and differ in their means alone, $D_w$ puts the class's mean $w$ times as far from the null's. So
# whoever guides twice gets $w^2 = 4$ (a test of the library checks this). Here another fault is added: the distillation
# never asked the student without a label.

# %% [markdown]
# **Turbo** models (ADD, Sauer et al. 2023) add the third equation: a discriminator on the one-step result.
# **Shortcut models** (Frans et al. 2025) learn the semigroup without a teacher: one network is told the length
# of its step, and two short steps are the target of a long one (`shortcut_loss`). **Consistency trajectory
# models** (Kim et al. 2024) learn $X(x, t, s)$ for all $s$ from a teacher. *Consistency models made easy* (Geng
# et al. 2024) begins with a trained denoiser and makes the steps shorter during the training.

# %% [markdown]
# ## 12 · Break it on purpose
#
# **Noise that is left.** A student's last step must end at $t = 0$. A consistency sampler jumps to the data and
# adds noise again. If somebody copies a grid from another sampler that ends at a small $t_{\min}$, then the
# last thing that happens is that noise is added.
#
# **The wrong sampler.** A student of one step knows one question: from $t = 1$ to the data. Somebody gives it
# to the DDIM sampler with four or eight steps, because more evaluations have always been better. Nothing
# complains: it is a network like any other.
#
# **Predict, then run.** How much noise is left when the grid ends at 0.1? And what do more evaluations do to
# the students under DDIM?


# %%
@jax.jit
def two_jumps(model, noise, key, last):
    """Jumps from t = 1, then from 0.5; `last` is where the second step ends."""
    D = denoiser.denoiser(model, p, "v", LABELS)
    x, _ = METHODS["consistency"][0].step(D, noise, 1.0, 0.5, key, ())
    return METHODS["consistency"][0].step(D, x, 0.5, last, key, ())[0]


ends_at = {last: two_jumps(consistency.ema, noise, jax.random.key(7), last) for last in (0.0, 0.1)}
noisy_by = rms(ends_at[0.1] - ends_at[0.0])
grade_of = {last: distances(look(x))[0] for last, x in ends_at.items()}
print(f"grid that ends at 0.1: noise of {noisy_by:.2f} is left, σ(0.1) = {p.sigma(0.1):.2f}; "
      f"Fréchet distance {grade_of[0.1]:.2f} in place of {grade_of[0.0]:.2f}")  # fmt: skip

# %%
under_ddim = {
    name: {n: grade(model, n, "plain") for n in BUDGETS}
    for name, model in (("progressive, 1", progressive[1]), ("consistency", consistency.ema))
}
for name, at_counts in under_ddim.items():
    for n, grades in at_counts.items():
        print(f"{name:14} under DDIM, {n} evaluations: {say(grades)}")


def exact_under_ddim(n):
    """n steps of DDIM with the exact end of the path in the place of the mean (section 3)."""
    x = noises
    for t, s in ((1 - i / n, 1 - (i + 1) / n) for i in range(n)):
        alpha, sigma = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
        rank = ndtr((x[:, None] - alpha * CENTRES) / np.hypot(alpha * WIDTHS, sigma)) @ SHARES
        end = at_rank(rank, 0.0)
        x = np.cos(np.pi / 2 * s) * end + np.sin(np.pi / 2 * s) * (x - alpha * end) / sigma
    return x


by_exact = {n: rms(exact_under_ddim(n) - target) for n in BUDGETS}
print(
    "the exact map of section 3 under DDIM is off by", {n: f"{v:.2f}" for n, v in by_exact.items()}
)
wider = np.std(exact_under_ddim(8)) / np.std(target)
wrongly = spread(draw(consistency.ema, start(0), 8, keys[0], "plain"), LABELS) / whole
print(f"its results are {wider:.2f} times as wide as they should be; "
      f"the consistency model's spread under DDIM: {wrongly:.0%}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: what is left is σ(0.1); under DDIM both students leave the teacher, and one nears the data
assert abs(noisy_by / float(p.sigma(0.1)) - 1) < 0.1 and grade_of[0.1] > grade_of[0.0] + 0.1
for at_counts in under_ddim.values():  # in each start, from two evaluations on
    assert all((at_counts[2 * n][:, 1] > at_counts[n][:, 1]).all() for n in (1, 2, 4))
assert (under_ddim["progressive, 1"][8] > under_ddim["progressive, 1"][1] + 1).all()
for n in (2, 4, 8):
    assert (under_ddim["consistency"][n][:, 0] < wall["consistency"][n][:, 0]).all()
    assert (under_ddim["consistency"][n][:, 1] > wall["consistency"][n][:, 1]).all()
assert by_exact[1] < 1e-6 and by_exact[8] > by_exact[4] > by_exact[2] > 0.1
assert wider > 1.1 and abs(wrongly - 1.34) < 0.1

# %% [markdown]
# The noise that is left has the standard deviation $\sigma(0.1)$, as it must, and the Fréchet distance sees it.
#
# Under DDIM both students move away from the teacher with every further evaluation. Better training would not
# cure this: the *exact* map of section 3 does the same. Equation (1) needs $G(x, t, s)$ for the step from $t$ to
# $s$. A consistency model knows $G(x, t, 0)$ only, the end of the path. (The progressive student knows even
# less: its last stage asked it at $t = 1$ only. That is a second cause.) A path bends, so on the
# straight way to its end we leave it, and the next answer is the end of another path. For steps in between we
# need a map that was trained for them: another stage, or a network that is told $s$.

# %% [markdown]
# Now look at the consistency model's distance to the *data*. Under the wrong sampler it is *smaller* than under
# the right one! Is the mistake an improvement? The exact map shows what happens: its results become too wide.
# So do the student's digits, with 134 % of the real spread. Guidance had made the teacher's digits too narrow
# (section 9). This mistake pushes to the other side, and happens to come nearer to the real digits on the way.
# Who looks at this column alone publishes a bug.

# %% [markdown]
# ## 13 · What to inspect
#
# 1. **The number of network calls**, not of steps: a guided teacher makes two per evaluation.
# 2. **Two distances**: to the data and to the teacher's own samples, with the number of samples, three starts,
#    the floor. Accuracy is no measure.
# 3. **Are more evaluations much worse?** Then ask first whether this is the sampler that the student was made for
#    (section 12). A little worse is common where every jump adds fresh noise.
# 4. **The same noise** as the teacher: side by side in a column. What follows the teacher's map must draw the
#    same digit with one evaluation.
# 5. **The spread** within a class.
# 6. **Not the loss.** It may stay at 1 (MeanFlow), be above zero at the exact map (consistency training), or
#    mean nothing (DMD).
# 7. **The target's gradient**: it must be zero. And `jvp`'s tangents: test them on normal data, where equation
#    (7) holds to rounding.

# %% [markdown]
# ## Recap
#
# 1. A denoiser answers with a mean. A one-step model must answer with the end of the path: the flow map $X(x,
#    t, s)$.
# 2. Three equations hold for it: two steps are one; nothing changes along a path; the distribution is the data's.
# 3. Progressive distillation, consistency models, MeanFlow and DMD are these equations as losses. Their targets
#    carry no gradient.
# 4. A student has its teacher's guidance built in. If it is nearer to the data than its teacher, it has not
#    imitated it.
# 5. A student that is told $w$ learns all scales at once: guidance stands in the teacher's step alone, and nobody
#    guides the student again.
# 6. Judge by samples, with more than one number, at every number of evaluations.
#
# **Exercises:** [18 · exercises](../exercises/18_flow_map.ipynb).

# %% [markdown]
# ## Try it yourself
#
# 1. Section 4 with stages 4, 2, 1 only. Where does the one-step student lose, and why (section 3)?
# 2. Section 5 with `steps=4` and with `steps=64` in the loss. What does each do to one evaluation and to four?
# 3. Section 6 with `time_scale=1000`. Watch the samples, not the loss.
#
# ## Further reading
#
# - T. Salimans, J. Ho. *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR 2022.
#   [arXiv:2202.00512](https://arxiv.org/abs/2202.00512).
# - Y. Song, P. Dhariwal, M. Chen, I. Sutskever. *Consistency Models.* ICML 2023.
#   [arXiv:2303.01469](https://arxiv.org/abs/2303.01469).
# - Y. Song, P. Dhariwal. *Improved Techniques for Training Consistency Models.* ICLR 2024.
#   [arXiv:2310.14189](https://arxiv.org/abs/2310.14189).
# - D. Kim et al. *Consistency Trajectory Models.* ICLR 2024.
#   [arXiv:2310.02279](https://arxiv.org/abs/2310.02279).
# - C. Lu, Y. Song. *Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models.* ICLR 2025.
#   [arXiv:2410.11081](https://arxiv.org/abs/2410.11081). TrigFlow.
# - Z. Geng, M. Deng, X. Bai, J. Z. Kolter, K. He. *Mean Flows for One-step Generative Modeling.* NeurIPS 2025.
#   [arXiv:2505.13447](https://arxiv.org/abs/2505.13447).
# - N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden. *Flow Map Matching.* 2024.
#   [arXiv:2406.07507](https://arxiv.org/abs/2406.07507). The map and its equations as one theory.

# %% [markdown]
# - K. Frans, D. Hafner, S. Levine, P. Abbeel. *One Step Diffusion via Shortcut Models.* ICLR 2025.
#   [arXiv:2410.12557](https://arxiv.org/abs/2410.12557).
# - T. Yin et al. *One-step Diffusion with Distribution Matching Distillation.* CVPR 2024.
#   [arXiv:2311.18828](https://arxiv.org/abs/2311.18828).
# - T. Yin et al. *Improved Distribution Matching Distillation for Fast Image Synthesis.* 2024 (2024b).
#   [arXiv:2405.14867](https://arxiv.org/abs/2405.14867).
# - C. Meng et al. *On Distillation of Guided Diffusion Models.* CVPR 2023.
#   [arXiv:2210.03142](https://arxiv.org/abs/2210.03142).
# - S. Luo, Y. Tan, L. Huang, J. Li, H. Zhao. *Latent Consistency Models.* 2023.
#   [arXiv:2310.04378](https://arxiv.org/abs/2310.04378).
# - A. Sauer, D. Lorenz, A. Blattmann, R. Rombach. *Adversarial Diffusion Distillation.* 2023.
#   [arXiv:2311.17042](https://arxiv.org/abs/2311.17042). SDXL Turbo.
# - Z. Geng, A. Pokle, W. Luo, J. Lin, J. Z. Kolter. *Consistency Models Made Easy.* 2024.
#   [arXiv:2406.14548](https://arxiv.org/abs/2406.14548).
#
# **New words:** flow map, semigroup, boundary, teacher, student, progressive distillation, consistency model, consistency
# training, tangent, mean velocity, distribution matching, spread, latent consistency model.
