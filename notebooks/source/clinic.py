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
# # clinic · The broken-sampler clinic
#
# **The question.** A diffusion model trains without an error message, and its samples are wrong. Where do we look
# first, and how do we know that we have found the cause?
#
# At the end of this chapter you will be able to
#
# - go from a symptom to a measurement that separates its possible causes;
# - recognise seventeen faults of networks, schedules, trainings and samplers by their numbers;
# - write the cure, and prove that it is one;
# - ask `diagnose` about a model of your own, and say what its answer does not cover.
#
# **You need** chapters 01 to 08. Each patient names the chapter that explains him. **Time**: about 90 minutes,
# if you decide before you look. The cells run for about a minute on two CPU cores. There is no separate notebook of
# exercises: they are in here.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from IPython.display import Markdown

from diffusion_course import data, diagnose, guidance, process, samplers, sampling, weights
from diffusion_course.data.toy2d import MIXTURE
from diffusion_course.diagnosis import CHECKS, Case, patients
from diffusion_course.diagnosis.cures import treat
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# ## 1 · One picture: the waiting room
#
# Eighteen patients wait, and sixteen have a picture. Each is real: it was made by the patient's own denoiser, or
# comes from his own training. (One of them will turn out to be well.) Points should look like the three clouds of
# chapter 02, with the requested class in orange. Digits should look like digits. A loss should fall. (Beds 6 and 16
# have plain pictures with some grain.)
#
# **Decide first.** Write down for each bed what you would measure, and what you suspect. Most of the pictures have
# several possible causes. That is the point.

# %%
WARD = patients.PATIENTS  # name -> symptom, finding, and how to get him
CASES, REPORTS = {}, {}


def case_of(name):
    """The patient: his arguments of `diagnose`, checked, and his samples."""
    if name not in CASES:
        CASES[name] = Case(**WARD[name].make())
    return CASES[name]


def examine(name, tell=True):
    """Asks `diagnose` about a patient, once, and prints what it found."""
    if name not in REPORTS:
        REPORTS[name] = diagnose(**WARD[name].make())
    if tell:
        print(*REPORTS[name].findings, *REPORTS[name].notes, sep="\n\n", end="\n\n")
    return REPORTS[name]


def width(case, x=None, labels=None):
    """How wide the clouds of the three classes are, against the data's; of 64 points: ± .06."""
    x, labels = (case.drawn, np.asarray(case.cond)) if x is None else (x, labels)
    within = lambda x, y: np.sqrt(np.mean([x[y == k].var(0).mean() for k in range(3)]))
    return float(within(x, labels) / within(case.x, case.labels))


# %%
BEDS = {  # bed -> patient
    1: "dead time embedding", 2: "condition ignored", 3: "control ignored", 4: "schedule mismatch",
    5: "velocity the other way", 6: "colour shift", 7: "gradient of a constant", 8: "unstable",
    9: "NaN", 10: "plateau that is none", 11: "blur", 12: "guidance too strong",
    13: "temperature as a cure", 14: "repetitive", 15: "noise left", 16: "colour cast",
    17: "slow", 18: "out of memory",
}  # fmt: skip


def constant_history(steps=100):
    """The losses that patient 7 prints."""
    case = case_of(BEDS[7])
    key, rng = jax.random.key(0), np.random.default_rng(0)
    rows = rng.integers(0, len(case.x), (steps, 128))
    step = lambda i: case.step(
        case.model, case.x[rows[i]], case.labels[rows[i]], jax.random.fold_in(key, i)
    )
    return np.array([float(step(i)) for i in range(steps)])


HISTORIES = {7: constant_history(), 8: case_of(BEDS[8]).history,
             9: patients.trained(1e20, 300)[2], 10: case_of(BEDS[10]).history}  # fmt: skip


# %%
def controlled():
    """Patient 3: what one noise becomes with two controlling images; and these images."""
    case = case_of(BEDS[3])
    steer, images = case.control
    middle = case.levels[2]
    draw = lambda images: np.asarray(case.predict(
        middle.x_t, middle.t, case.cond, lambda x, t, c: steer(images)(x, t, c)))  # fmt: skip
    a, s = float(case.process.alpha(middle.t)), float(case.process.sigma(middle.t))
    outputs = [a * np.asarray(middle.x_t) - s * draw(some) for some in (images, images[::-1])]
    return [np.asarray(images), outputs[0], np.asarray(images[::-1]), outputs[1]]


CONTROLLED = controlled()


# %%
def panel(ax, bed):
    """What a visitor sees of a patient."""
    ax.set_title(f"bed {bed}" + (": then NaN" if bed == 9 else ""))
    case = case_of(BEDS[bed])
    if bed in HISTORIES:
        mark = "o" if bed == 9 else None
        ax.plot(HISTORIES[bed], marker=mark, ms=4, lw=0.7, color=plots.PREDICTION)
        ax.set(xlabel="step", ylabel="loss", yscale="log" if bed == 8 else "linear")
        if bed == 9:
            ax.set(xlim=(-1, 10), ylim=(0, 1))
        return
    if case.x.ndim == 4:
        rows = CONTROLLED if bed == 3 else np.split(case.drawn[:16], 4)
        rows = [*np.split(case.x[:8], 2), *rows[:2]] if bed == 6 else rows
        ax.imshow(plots.tile(np.concatenate([row[:4] for row in rows]), 4))
        ax.set_axis_off()
        return
    x, asked = case.drawn, np.asarray(case.cond) == 0
    plots.points(ax, x, plots.NOISE, 6, 0.7)
    plots.points(ax, x[asked], plots.PREDICTION, 6, 0.9)
    reach = max(1.2, float(np.quantile(np.abs(x), 0.9)))
    ends = [-int(reach), int(reach)]  # the ticks show it
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=ends, yticks=ends)


# %%
fig, axes = plt.subplots(4, 4, figsize=(9.5, 9))
for bed, ax in enumerate(axes.flat, start=1):
    panel(ax, bed)
plt.show()
print('bed 17: "Every call of my sampler takes as long as the first."')
print('bed 18: "My training step ends with RESOURCE_EXHAUSTED: Out of memory."')

# %% tags=["claims"]
# @title Checked: samples are finite and yet wrong, one loss explodes, one is NaN, two are flat
assert set(BEDS.values()) <= set(WARD) and len(BEDS) == 18 and len(WARD) == 34
for bed in (1, 2, 4, 5, 13, 15):
    assert np.isfinite(case_of(BEDS[bed]).drawn).all()
assert np.isnan(HISTORIES[9][-1]) and HISTORIES[8].max() > 100 * HISTORIES[8][0]
assert HISTORIES[8][-50:].min() > 10 * HISTORIES[8][0]  # and it does not come back
for bed in (7, 10):  # two flat losses: one of them is no fault
    early, late = HISTORIES[bed][: len(HISTORIES[bed]) // 2], HISTORIES[bed][-50:]
    assert abs(np.median(late) / np.median(early) - 1) < 0.15

# %% [markdown]
# ## 2 · How to examine: one question at a time
#
# A picture is where a diagnosis begins, not where it ends. By the width of their clouds, beds 13 and 15 look *better*
# than the healthy model that we meet below. The order of the questions matters more than their number:
#
# 1. **The numbers**: are data, parameters and outputs finite and in range?
# 2. **The network alone**: does its output change with $t$, with the label, with the control? Is every example on
#    its own?
# 3. **The network against its process**: at each noise level, is $D(x_t, t)$ better than a *linear* denoiser? Would it
#    be better at another time, as another kind, or in another process?
# 4. **The training**: has each parameter a gradient, and does a step move it?
# 5. **The sampler without the network**: does it keep data whose denoiser is known exactly?
# 6. **The samples** against the data: range, mean, sharpness, variety, copies.
#
# An early fault can show again in later answers, so the first finding counts.

# %% [markdown]
# We write out the question that finds most: *told another time, would the network be better?* For each
# level $t$ and other times $\tau$,
#
# $$e_t(\tau) = \mathbb E\,\lVert D(x_t, \tau) - x_0 \rVert^2, \qquad D = \alpha_t x_t - \sigma_t\, v(x_t, \tau).
# \tag{1}$$
#
# A trained network is best at $\tau = t$ (chapter 02: the mean of $x_0$ minimises the error).


# %%
@nnx.jit
def answers(model, x_t, told, cond):
    return model(x_t, jnp.full(len(x_t), told), cond)


def errors_told(case, model, times):
    """Equation (1) for a network that predicts v: at each level of the case, for each time told."""
    table = np.zeros((len(case.levels), len(times)))
    for i, level in enumerate(case.levels):
        a, s = float(case.process.alpha(level.t)), float(case.process.sigma(level.t))
        for j, told in enumerate(times):
            x0 = a * level.x_t - s * answers(model, level.x_t, told, case.cond)
            table[i, j] = jnp.mean((x0 - case.x0) ** 2)
    return table


TOLD = (np.arange(12) + 0.5) / 12
healthy = weights.load("toy2d")
points = data.load("toy2d", kind="mixture", n=2000)
well = Case(healthy.model, healthy.process, healthy.card.kind, points)
by_name = {"healthy": well} | {f"bed {b}": case_of(BEDS[b]) for b in (4, 1)}
tables = {name: errors_told(c, c.model, TOLD) for name, c in by_name.items()}

# %% tags=["comparison"]
for name, one_case in by_name.items():
    found = [told.best for told in one_case.told]  # the library's, for the same examples and times
    np.testing.assert_allclose(tables[name].min(axis=1), found, rtol=1e-4)

# %% [markdown]
# **Predict, then run.** For each noise level we draw $e_t(\tau)$ over the time $\tau$ that the network is told, and a
# dot at its own time. Where will the dots lie for a healthy network? Where for one that does not hear the time?

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 2.9), sharey=True)
for ax, (name, one_case) in zip(axes, by_name.items(), strict=True):
    for i, (row, level) in enumerate(zip(tables[name], one_case.levels, strict=True)):
        colour = plots.SERIES[i]
        ax.plot(TOLD, row / level.linear, color=colour, lw=1.2, label=f"{level.ratio:g}")
        own = one_case.own_errors[i] / level.linear
        ax.plot([level.t], [own], "o", color=colour, ms=6, mec="white")
    ax.set(title=name, xlabel=r"time told $\tau$", yscale="log", ylim=(0.05, 30))
axes[0].set_ylabel("error / linear denoiser's")
axes[2].legend(title="noise against signal", ncols=3, loc="upper right", fontsize="small")
plt.show()

# %% tags=["claims"]
# @title Checked: the healthy one is best at its own time, bed 4 is not, bed 1 hears no time
gain = {n: np.array([t.own / t.best for t in c.told]) for n, c in by_name.items()}
assert gain["healthy"].max() < 1.05  # of twelve other times the best one is no better
assert (gain["bed 4"] > 1.25).sum() >= 2
assert np.ptp(tables["bed 1"], axis=1).max() < 1e-5  # it does not hear the time: flat lines
assert width(well) < 0.9 and width(case_of(BEDS[1])) > 1.25 and width(case_of(BEDS[4])) < 0.5
off = [abs(width(c) - 1) for c in (well, case_of(BEDS[13]), case_of(BEDS[15]))]
assert max(off[1:]) < off[0] - 0.12  # twice what 64 points leave open

# %% [markdown]
# Healthy: every dot lies at the bottom of its curve. Bed 4: the curves have a clear bottom, and the dots lie beside
# it, so *the network is well and its clock is wrong*. Bed 1: flat lines. It was never told the time, whatever we say.
# One measurement separates the two.
#
# `diagnose` asks this and 25 more questions. Here is the whole report on the healthy model.

# %%
report_of_healthy = diagnose(healthy.model, healthy.process, healthy.card.kind, points)
print(report_of_healthy)

# %% tags=["claims"]
# @title Checked: no finding for the healthy model, and 26 questions
assert report_of_healthy.names == () and len(CHECKS) == 26
assert len(report_of_healthy.measured) + len(report_of_healthy.unchecked) == 26

# %% [markdown]
# Read its last part, too: *Not checked*. "No finding" means that the questions that were asked found nothing. The
# same questions were put to twelve released models of this course, with no finding
# (`benchmarks/results/diagnosis.json`). A test that never says "healthy" is as useless as one that always does.

# %% [markdown]
# ## 3 · Ward A: networks that do not listen
#
# **Bed 1**: the loss falls, and samples stay noisy. **Bed 2**: points of the requested class (orange) lie in every
# cloud. **Bed 3**: rows 1 and 3 are two sets of edges that should control the digits in rows 2 and 4.
#
# **Decide first.** What do you change to find out whether a network listens, and what do you hold fixed?


# %%
def deafness(case):
    """Relative change of the output: at another time, and with another label, at the same x."""
    level, far = case.levels[2], case.levels[-1]
    size = float(jnp.sqrt(jnp.mean(level.y**2)))
    rms = lambda y: float(jnp.sqrt(jnp.mean((y - level.y) ** 2))) / size
    at_other_time = rms(case.predict(level.x_t, far.t, case.cond))
    with_other_label = rms(case.predict(level.x_t, level.t, (case.cond + 1) % 3))
    return at_other_time, with_other_label


print(f"{'':10} another time   another label")
for name, ears in {"healthy": well, "bed 1": case_of(BEDS[1]), "bed 2": case_of(BEDS[2])}.items():
    print(f"{name:10} {deafness(ears)[0]:12.2g} {deafness(ears)[1]:15.2g}")
one, two = CONTROLLED[1::2]
print(f"bed 3: the two rows of digits differ by at most {np.abs(one - two).max():.2g}")

# %%
for bed in (1, 2, 3):
    examine(BEDS[bed])

# %% tags=["claims"]
# @title Checked: each of the three is deaf on one ear only
assert min(deafness(well)) > 0.1
assert deafness(case_of(BEDS[1]))[0] == 0 < deafness(case_of(BEDS[1]))[1]
assert deafness(case_of(BEDS[2]))[1] == 0 < deafness(case_of(BEDS[2]))[0]
assert np.abs(one - two).max() == 0
# As a fresh ControlNet must: what it controls says the same as without it.
bed_3, level_3 = case_of(BEDS[3]), case_of(BEDS[3]).levels[2]
alpha_3, sigma_3 = (float(f(level_3.t)) for f in (bed_3.process.alpha, bed_3.process.sigma))
np.testing.assert_allclose(one, alpha_3 * level_3.x_t - sigma_3 * level_3.y, atol=1e-5)
assert [examine(BEDS[b], tell=False).names for b in (1, 2, 3)] == [
    ("dead time embedding",), ("condition ignored",), ("control ignored",)]  # fmt: skip

# %% [markdown]
# Hold $x$ fixed and change one input. A change of exactly 0 is no weak answer: the wire is cut. Bed 3 is special. A
# fresh ControlNet *must* be silent, since its joining layers start at zero (chapter 15). Its owner has loaded a
# control that was never trained. "Zero layers" are no cure for a control that does not work. They are why it starts
# without harm.
#
# **Cure bed 1.** His code turns the time into the number of a step, and hands this to the embedding. Repair one
# line. `treat` asks `diagnose` again. If there is no finding, it also measures what a healthy patient has. For bed 1
# this is the exact mean of $x_0$ at twelve times, and $t = 1$ is one of them.


# %%
class Retold(nnx.Module):
    """A network that is told tell(t) in the place of t."""

    def __init__(self, model, tell):
        self.model, self.tell, self.null_label = model, tell, model.null_label

    def __call__(self, x, t, cond=None):
        return self.model(x, self.tell(t), cond)


# %%
def time_of_step(t):
    """The time in [0, 1] that the embedding gets; it goes over the number of a step, of 1,000."""
    step = (t * 1000).astype(int)
    return (step // 1000).astype(jnp.float32)  # ✏️ your cure


bed_1 = treat(BEDS[1], model=Retold(healthy.model, time_of_step))

# %% [markdown]
# ## 4 · Ward B: networks that do not fit their process
#
# **Bed 4**: a network that has trained well gives blotches. **Bed 5**: points fly apart. **Bed 6**: two rows
# of data, and below them two rows of samples, none as dark or as bright as the darkest and the brightest of the data.
#
# **Decide first.** Beds 4 and 5 have the same released, healthy network inside. What is left to be wrong? For bed 6:
# what does the network see at $t = 1$, and what does the sampler give it there?

# %%
apart = case_of(BEDS[5])
for text, sign in (("as it is", 1), ("with the sign turned", -1)):
    ratio = apart.errors_of([sign * level.y for level in apart.levels]) / apart.linear
    print(f"bed 5, error against a linear denoiser, {text}: {ratio.round(2)}")
bright = {name: x.mean((1, 2, 3)).std() for name, x in (
    ("samples", case_of(BEDS[6]).drawn), ("data", case_of(BEDS[6]).x))}  # fmt: skip
print("bed 6, deviation of the brightness:", {n: round(float(v), 2) for n, v in bright.items()})
ends = {"bed 6": case_of(BEDS[6]).process, "cosine": process.vp_cosine()}
for name, p in ends.items():
    print(f"{name}: at t = 1 the signal alpha is {float(p.alpha(1.0)):.3f}")

# %%
for bed in (4, 5, 6):
    examine(BEDS[bed])

# %% tags=["claims"]
# @title Checked: the sign of bed 5, and what signal bed 6 starts with
assert (apart.errors_of([-level.y for level in apart.levels]) / apart.linear).max() < 1
assert apart.errors.min() > 1
assert bright["samples"] < 0.6 * bright["data"]  # 64 pictures know it to 9 %
enough = diagnose(**patients.brightness(process.linear_betas(1000)))
assert enough.names == ()
assert float(ends["bed 6"].alpha(1.0)) > 0.3 and float(ends["cosine"].alpha(1.0)) < 1e-6
assert [examine(BEDS[b], tell=False).names for b in (4, 5, 6)] == [
    ("schedule mismatch",), ("another kind",), ("signal at the start",)]  # fmt: skip

# %% [markdown]
# Bed 4 has a network trained with the cosine schedule, and a sampler with 1,000 linear betas. The same $t$ means
# another noise level for each. Bed 5's network predicts minus $v$: its paper's velocity points the other way. In both
# cases the weights are fine, and no further training helps.
#
# Bed 6 has 200 steps with the betas of 1,000. So at $t = 1$ a third of the signal is still there, and the exact
# denoiser is right to read the brightness off $x_1$. But the sampler starts from noise without any signal, whose mean
# is near 0. So each picture gets a medium brightness. With all 1,000 betas he is healthy.
#
# **Cure bed 4.** Name the process that the network was trained with. (Its card knows: `healthy.card`.)

# %%
my_process = None  # ✏️ your cure
bed_4 = treat(BEDS[4], process=my_process)

# %% [markdown]
# ## 5 · Ward C: trainings
#
# **Bed 7**: a loss is printed at every step and stays where it is. **Bed 10**: the same picture. **Bed 8**: the
# loss explodes and does not come back. **Bed 9**: it is NaN from one step on.
#
# **Decide first.** One of the two flat losses is no fault at all. Which measurement tells them apart, within
# three steps of training?

# %%
for bed in (7, 10):
    case_flat = case_of(BEDS[bed])
    print(f"bed {bed}: error against a linear denoiser {case_flat.errors.mean():.2f}")
before = jax.tree.map(jnp.copy, nnx.state(case_of(BEDS[7]).model, nnx.Param))
constant_history(3)
after = nnx.state(case_of(BEDS[7]).model, nnx.Param)
moved = sum(jax.tree.leaves(jax.tree.map(lambda a, b: int((a != b).sum()), before, after)))
print(f"bed 7: after three steps {moved} numbers of the network have changed")
first_bad = int(np.argmin(np.isfinite(HISTORIES[9])))
print("bed 9: losses around the first that is not finite:", HISTORIES[9][: first_bad + 2])

# %%
for bed in (7, 10, 8, 9):
    examine(BEDS[bed])

# %% tags=["claims"]
# @title Checked: bed 7 stands still, bed 10 is well, NaN stays
assert moved == 0 and not np.isfinite(HISTORIES[9][first_bad:]).any()
assert case_of(BEDS[10]).errors.mean() < 0.5
# The least loss of v on a mixture whose component is known: var(x0 | x_t) / sigma², over all t.
angles = np.pi / 2 * (np.arange(1000)[:, None] + 0.5) / 1000
mixed = np.cos(angles) ** 2 * MIXTURE.stds**2 + np.sin(angles) ** 2
least = float(((MIXTURE.stds**2 / mixed) @ MIXTURE.weights).mean())
assert abs(least / HISTORIES[10].mean() - 1) < 0.15  # 2,000 points stand for the mixture
average = np.float32(0.99) * np.float32(np.nan) + np.float32(0.01)  # and so on
assert np.isnan(average)
assert [examine(BEDS[b], tell=False).names for b in (7, 10, 8, 9)] == [
    ("gradient of a constant",), (), ("unstable training",),
    ("NaN in the parameters",)]  # fmt: skip
assert [n.name for n in examine(BEDS[10], tell=False).notes] == ["plateau that is none"]

# %% [markdown]
# Bed 10 is healthy. Nearly all of his loss is the variance of $x_0$ given $x_t$, which no network can remove. Look
# at samples, or at the error of single noise levels, before you change a flat training.
#
# Bed 7 computed the loss, and *then* differentiated `lambda m: loss`. This function does not depend on `m`, so its
# gradient is exactly 0, and nothing complains. (His released weights hide it: compare parameters before and after
# a step, not losses.) Bed 9's first NaN is the last thing that his training ever says. An average of the weights is
# no cure: it keeps a NaN for ever.
#
# **Cure bed 7.** Complete the step, so that the parameters move.


# %%
@nnx.jit
def my_step(model, x, labels, key):
    """One step of plain gradient descent with rate 0.1; returns the loss."""
    loss = patients.toy_loss(model, x, labels, key)
    grads = nnx.grad(lambda m: loss)(model)  # ✏️ your cure
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda a, g: a - 0.1 * g, params, grads))
    return loss


bed_7 = treat(BEDS[7], step=my_step)

# %% [markdown]
# ## 6 · Ward D: samplers and samples
#
# **Bed 11**: soft smudges. **Bed 12**: harsh contrast. **Bed 13**: samples were too alike, so the noise was turned
# up. **Bed 14**: two calls give the same points. **Bed 15**: all samples are grainy. **Bed 16**: a red cast.
#
# **Decide first.** All six have the exact or a well-trained network. How can you test a sampler *without* a network?

# %%
measures = {}
for name, c in {"healthy": well, "bed 13": case_of(BEDS[13]), "bed 15": case_of(BEDS[15])}.items():
    sigma_end = float(c.process.sigma(float(c.times[-1])))
    measures[name] = width(c), sigma_end
    print(f"{name}: width of the clouds {measures[name][0]:.2f}, last sigma {sigma_end:.3f}")
digits_drawn = {bed: case_of(BEDS[bed]).drawn for bed in (11, 12)}
for bed, x in digits_drawn.items():
    print(f"bed {bed}: {np.mean(np.abs(x) > 1.2):.1%} of the pixels beyond 1.2, "
          f"neighbours differ by {np.abs(np.diff(x, axis=2)).mean():.2f}")  # fmt: skip
cast = case_of(BEDS[16])
print("bed 16, mean of each channel:", cast.drawn.mean((0, 1, 2)).round(2), "data",
      cast.x.mean((0, 1, 2)).round(2))  # fmt: skip

# %%
for bed in (11, 12, 13):
    examine(BEDS[bed])

# %%
for bed in (14, 15, 16):
    examine(BEDS[bed])

# %% tags=["claims"]
# @title Checked: what each of the six is
wanted = ("blur", "guidance too strong", "too much noise in the sampler", "repetitive samples",
          "noise left", "colour shift")  # fmt: skip
assert [examine(BEDS[b], tell=False).names for b in range(11, 17)] == [(name,) for name in wanted]
beyond = {bed: np.mean(np.abs(x) > 1.2) for bed, x in digits_drawn.items()}
assert beyond[12] > 0.2 and beyond[11] < 0.01
red, *rest = cast.drawn.mean((0, 1, 2)) - cast.x.mean((0, 1, 2))
assert abs(red - 0.3) < 0.1 and max(map(abs, rest)) < 0.1  # 64 pictures: standard error .02
assert measures["bed 15"][1] > 0.05 > measures["healthy"][1]
blurred = case_of(BEDS[11])
means = np.stack([blurred.x[blurred.labels == k].mean(0) for k in np.asarray(blurred.cond)])
ends_of = {"bed 11": blurred.drawn, "data": np.asarray(blurred.x0)}
apart_from_mean = {n: np.mean((x - means) ** 2) for n, x in ends_of.items()}
assert apart_from_mean["bed 11"] < 0.1 * apart_from_mean["data"]
more_steps = WARD[BEDS[11]].make() | {"times": sampling.uniform(50)}
assert diagnose(**more_steps).names == ()  # bed 11 with more steps: the network is well

# %% [markdown]
# The clouds of beds 13 and 15 have about the right width. The healthy model's are too narrow with as many steps. So
# the temperature seems to be a cure! But two errors cancel here. On Gaussian numbers, whose denoiser is known exactly,
# the same sampler gives too wide a result *with a perfect network*. It fills the gap with grain and knows nothing of
# the data. Bed 15 looks alike, and his sampler is correct: his grid stops one step before $t = 0$.
#
# Bed 11 asked for one step. One step returns nearly the mean of all digits of the class. With more steps from the
# same noise the detail comes back, so the network is not to blame. Bed 16's sampler is correct. A constant was added
# to the red of its pictures afterwards.
#
# **Cure beds 12, 13 and 15.** One setting each.

# %%
my_w = None  # ✏️ bed 12: a guidance scale
my_sampler = None  # ✏️ bed 13: a sampler for process.vp_cosine()
my_times = None  # ✏️ bed 15: a falling grid of times
bed_12, bed_13 = treat(BEDS[12], w=my_w), treat(BEDS[13], sampler=my_sampler)
bed_15 = treat(BEDS[15], times=my_times)

# %% [markdown]
# ## 7 · Ward E: time and memory
#
# **Bed 17**: every call of the sampler takes as long as the first. **Bed 18**: the training step does not fit into
# 8 GB, with a batch of 4 million points.
#
# No picture shows these. Two numbers do: **programs compiled** by a second call, and **bytes** that the compiled
# program asks for. Both are known without a stopwatch, and the second even without running.
#
# **Decide first.** A sampling function is called twice, with two keys. How many programs may the second call compile?

# %%
for bed in (17, 18):
    examine(BEDS[bed])


# %%
def step_bytes(model, n):
    """What the program of a gradient of n points allocates: it is compiled, and not run."""
    graph, params = nnx.split(model)
    loss = lambda params, x, y, key: patients.toy_loss(nnx.merge(graph, params), x, y, key)
    x, y = jax.ShapeDtypeStruct((n, 2), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    program = jax.jit(jax.grad(loss)).lower(params, x, y, jax.random.key(0)).compile()
    return program.memory_analysis().temp_size_in_bytes


sizes = [2**n for n in (12, 15, 18)]
asked_for = np.array([step_bytes(healthy.model, n) for n in sizes])
fig, ax = plt.subplots(figsize=(5, 3))
ax.loglog(sizes, asked_for / 1e9, "o-", color=plots.PREDICTION)
ax.axhline(8, color=plots.TRUTH, ls="--")
ax.annotate("8 GB", (sizes[0], 9))
ax.set(xlabel="batch size", ylabel="GB", ylim=(None, 30), xlim=(None, 4e6))
plt.show()
print(f"{asked_for[-1] / sizes[-1] / 1e3:.1f} kB for each point")

# %% tags=["claims"]
# @title Checked: the second call compiles again; bytes grow in proportion to the batch
assert examine(BEDS[17], tell=False).names == ("compiled again and again",)
assert examine(BEDS[18], tell=False).names == ("out of memory",)
each = asked_for / sizes
assert each.max() / each.min() < 1.3 and 2**22 * each[-1] > 8e9

# %% [markdown]
# The right answer is none. Bed 17 calls `jax.jit` inside his function, so each call has a new function to compile,
# with the weights as constants of the program. Bed 18's line is straight: activations are kept for every point. Read
# the batch that fits off the line, before you start.
#
# **Cure beds 17 and 18.** For bed 17, make the compiled function once, outside, and pass what changes. For bed
# 18, name a batch size (a power of two, as large as fits).


# %%
def my_generate(model, key, n, labels):
    """Samples [n, 2] of the points' network: 10 steps of DDIM."""
    run = sampling.generator(  # ✏️ your cure
        process.vp_cosine(), "v", samplers.ddim(process.vp_cosine()), sampling.uniform(10), (2,)
    )
    return run(model, key, n, labels)


my_batch = None  # ✏️ bed 18
bed_17, bed_18 = treat(BEDS[17], generate=my_generate), treat(BEDS[18], batch_size=my_batch)

# %% [markdown]
# ## 8 · The explorer: symptom against severity
#
# A fault has a strength. `diagnose` speaks from a limit on, which lies between what healthy models give and what
# these patients do. Below the limit the fault is there and nothing is said. The explorer shows four faults, each in
# six strengths, with the same noise and the same network.
#
# **Predict, then move the slider.** For which of the four do you see something before `diagnose` says something?


# %%
class Clock(nnx.Module):
    """The healthy network, told t**power in the place of t."""

    def __init__(self, model, power):
        self.model, self.null_label = model, model.null_label
        self.power = nnx.Variable(jnp.float32(power))

    def __call__(self, x, t, cond=None):
        return self.model(x, t ** self.power[...], cond)


@jax.jit
def cloud(model, keys, w, temperature, last):
    """1,000 samples of 25 steps, with the strength of each of the four faults."""
    labels = jnp.arange(1000) % 3
    null = jnp.full_like(labels, 3)
    guided = guidance.classifier_free_batched(
        model, process.vp_cosine(), "v", labels, null, w)  # fmt: skip
    x = jax.random.normal(keys[0], (1000, 2))
    times = 1 - (1 - last) * jnp.arange(26) / 25
    sampler = samplers.ddpm(process.vp_cosine(), temperature=temperature)
    return sampling.sample(sampler, guided, x, times, keys[1])[0]


# %%
STRENGTHS = {
    "guidance": ("samples", "w", [1, 2, 3, 5, 8, 15]),
    "temperature": ("sampler", "temperature", [1, 1.03, 1.06, 1.09, 1.15, 1.3]),
    "wrong clock": ("schedule", "power", [1, 1.1, 1.25, 1.5, 2, 3]),
    "noise left": ("end", "last", [0, 0.01, 0.02, 0.03, 0.06, 0.12]),
}
ASK = {check.name: check.ask for check in CHECKS}


def spoken(fault, value):
    """What the check of this fault finds at this strength."""
    check, name, _ = STRENGTHS[fault]
    p, model, more = process.vp_cosine(), healthy.model, {}
    if name == "temperature":
        more = {"sampler": samplers.ddpm(p, temperature=value), "times": sampling.uniform(25)}
    elif name == "power":
        model = Clock(model, value)
    elif name == "last":
        more = {"times": 1 - (1 - value) * np.arange(26) / 25}
    else:
        more = {"w": value}
    found = ASK[check](Case(model, p, "v", points, **more)).findings
    return found[0].name if found else "nothing found"


# %%
said, clouds, SAME_KEYS = {}, {}, jax.random.split(jax.random.key(0))
for fault, (_, name, values) in STRENGTHS.items():
    for value in values:
        said[fault, value] = spoken(fault, value)
        chosen = {"w": 1.0, "temperature": 1.0, "last": 0.0, "power": 1.0} | {name: float(value)}
        model = Clock(healthy.model, chosen.pop("power"))
        clouds[fault, value] = np.asarray(cloud(model, SAME_KEYS, **chosen))


def frame(setting):
    fault, value = setting
    fig, ax = plt.subplots(figsize=(3.6, 3.7))
    plots.points(ax, points.x[:600], plots.DATA, 4, 0.3)
    plots.points(ax, clouds[setting], plots.PREDICTION, 4, 0.4)
    ax.set(
        xlim=(-1.4, 1.4),
        ylim=(-1.4, 1.4),
        title=f"{STRENGTHS[fault][1]} = {value}: {said[setting]}",
    )
    return fig


widgets.explorer(
    {fault: widgets.render(frame, [(fault, v) for v in values])
     for fault, (_, _, values) in STRENGTHS.items()},
    [f"strength {i} of 5" for i in range(6)], slider="strength", choice="fault", start=2,
)  # fmt: skip

# %%
fig, axes = plt.subplots(4, 6, figsize=(10, 7.2))
for row, (fault, (_, name, values)) in zip(axes, STRENGTHS.items(), strict=True):
    for ax, value in zip(row, values, strict=True):
        quiet = said[fault, value] == "nothing found"
        plots.points(ax, clouds[fault, value], plots.NOISE if quiet else plots.PREDICTION, 2, 0.5)
        ax.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[])
        ax.set_title(f"{name} {value:g}", size="small")
fig.suptitle("grey: nothing found; orange: a finding", x=0.02, ha="left")
plt.show()

# %% tags=["claims"]
# @title Checked: a finding once given stays with more strength; the weakest are healthy
for fault, (_, _, values) in STRENGTHS.items():
    speaks = [said[fault, v] != "nothing found" for v in values]
    assert not speaks[0] and speaks[-1] and speaks == sorted(speaks)
wide = [width(well, clouds["temperature", v], np.arange(1000) % 3) for v in (1, 1.09)]
print("widths with temperature 1 and 1.09:", np.round(wide, 3))
# The same noise in both: their ratio is known far better than 1,000 points know each, ± .016.
assert said["temperature", 1.09] == "nothing found" and wide[1] > 1.04 * wide[0]

# %% [markdown]
# Each row turns from grey to orange once, and stays. To the left of this place there is a fault that nobody reports:
# a limit keeps healthy models free of false alarms, and pays with faults that are too weak to be found. With
# temperature 1.09 the clouds are wider than with 1, by more than 4 %, and nothing is said. So "no finding" is not "no
# fault".
#
# ## 9 · Break it on purpose: two faults at once
#
# A patient has a dead time embedding *and* labels that were shuffled against their points. **Predict, then run.** How
# many findings will there be?

# %%
both = WARD["shuffled labels"].make() | {"model": Retold(healthy.model, lambda t: 0 * t + 0.5)}
visits = [diagnose(**both)]
visits += [diagnose(**(both | {"model": healthy.model}))]
for number, report in enumerate(visits, start=1):
    print(f"visit {number}: {report.names}; labels: "
          f"{report.measured.get('labels', report.unchecked.get('labels'))}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: one finding at each visit
assert visits[0].names == ("dead time embedding",)
assert visits[1].names == ("labels of other images",)
assert "cure that first" in visits[0].unchecked["labels"]

# %% [markdown]
# One. A deaf network's answers are bad with any label, so whether the labels are right can't be seen through them.
# The report says that it did not ask. After the first cure the second fault appears. **The lesson.** Change one
# thing, then ask again. Whoever "fixes" five things at once never learns which one it was.

# %% [markdown]
# ## 10 · The cures
#
# **Predict, then run.** Bed 15 gets a grid that begins at $t = .9$ and ends at 0. Will `diagnose` find something? Is
# he cured?

# %%
late_start = treat(BEDS[15], times=np.linspace(0.9, 0, 26))


@nnx.jit
def ascent(model, x, labels, key):
    """A step that goes up instead of down."""
    loss, grads = nnx.value_and_grad(lambda m: patients.toy_loss(m, x, labels, key))(model)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda a, g: a + 0.1 * g, params, grads))
    return loss


uphill = treat(BEDS[7], step=ascent)

# %% tags=["claims"]
# @title Checked: no finding, and no cure
assert late_start.report.names == () and not late_start.cured
assert "begins at t = 0.9" in late_start.missing[0]
assert 0.15 < float(process.vp_cosine().alpha(0.9)) < 0.16
assert uphill.report.names == () and not uphill.cured and "nan" in uphill.missing[0]

# %% [markdown]
# No finding, and no cure. At $t = .9$ the network expects a signal of $\alpha = .16$, and the sampler gives it none.
# This is below the limit of `diagnose`. Bed 7 with gradient *ascent* has no finding either: every parameter moves,
# and the loss ends as NaN. So a silent report proves no cure. `treat` asks for more, of each bed something else: a
# loss that falls, the class that was asked for, clouds neither far too narrow nor too wide, a grid that begins at
# $t = 1$.
#
# Try the stubs first. The folded cell below holds one solution for each of them, and `treat` says "healthy" eight
# times.

# %% tags=["claims"]
# @title The solutions: open this after you have tried
cured = [treat(BEDS[1], model=Retold(healthy.model, lambda t: (t * 1000).astype(int) / 1000))]
cured += [treat(BEDS[4], process=process.vp_cosine())]


@nnx.jit
def good_step(model, x, labels, key):
    loss, grads = nnx.value_and_grad(lambda m: patients.toy_loss(m, x, labels, key))(model)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda a, g: a - 0.1 * g, params, grads))
    return loss


run_once = sampling.generator(
    process.vp_cosine(), "v", samplers.ddim(process.vp_cosine()), sampling.uniform(10), (2,)
)
cured += [treat(BEDS[7], step=good_step), treat(BEDS[12], w=2.0)]
cured += [treat(BEDS[13], sampler=samplers.ddpm(process.vp_cosine()))]
cured += [treat(BEDS[15], times=sampling.uniform(25))]
cured += [treat(BEDS[17], generate=lambda model, key, n, labels: run_once(model, key, n, labels))]
cured += [treat(BEDS[18], batch_size=2**19)]
assert len(cured) == 8 and all(treatment is not None and treatment.cured for treatment in cured)

# %% [markdown]
# ## 11 · A model that is not of this course
#
# Thirty lines of plain NNX: a network, a loss, a training loop. It has no label, no null class and no card. All that
# `diagnose` needs is `model(x, t)`, and what you know anyway: the process, the kind, the data.


# %%
class Mine(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 128, rngs=rngs)
        self.second = nnx.Linear(128, 128, rngs=rngs)
        self.last = nnx.Linear(128, 2, rngs=rngs)

    def __call__(self, x, t):
        h = nnx.silu(self.first(jnp.concatenate([x, t[:, None]], axis=1)))
        return self.last(nnx.silu(self.second(h)))


def my_loss(model, x, labels, key):
    keys = jax.random.split(key)
    t, noise = jax.random.uniform(keys[0], (len(x),)), jax.random.normal(keys[1], x.shape)
    a, s = jnp.cos(jnp.pi * t / 2)[:, None], jnp.sin(jnp.pi * t / 2)[:, None]
    return jnp.mean((model(a * x + s * noise, t) - (a * noise - s * x)) ** 2)


@jax.jit
def train(params, opt_state, batches):
    def one(carry, batch):
        loss = lambda params: my_loss(nnx.merge(graph, params), batch[0], None, batch[1])
        value, grads = jax.value_and_grad(loss)(carry[0])
        updates, opt_state = adam.update(grads, carry[1])
        return (optax.apply_updates(carry[0], updates), opt_state), value

    return jax.lax.scan(one, (params, opt_state), batches)


# %%
adam = optax.adam(3e-3)
graph, start = nnx.split(Mine(nnx.Rngs(0)))
chosen_rows = np.random.default_rng(0).integers(0, len(points.x), (600, 256))
mine_batches = points.x[chosen_rows], jax.random.split(jax.random.key(0), 600)
(params_mine, _), history_mine = train(start, adam.init(start), mine_batches)
mine = nnx.merge(graph, params_mine)

# %% [markdown]
# **Three lines.** Each argument beyond the fourth opens further checks: a loss (does each parameter have a
# gradient?) and a history (is it stable, and is its plateau one?).

# %%
cosine_clock = process.vp_cosine()
report_mine = diagnose(mine, cosine_clock, "v", points.x, loss=my_loss, history=history_mine)
print(report_mine)

# %%
confused = diagnose(mine, cosine_clock, "x0", points.x)
print(*confused.findings)
try:
    diagnose(mine, "v", points.x)  # something is missing
except ValueError as error:
    print(error)

# %% tags=["claims"]
# @title Checked: healthy with its own kind, and found with another
assert report_mine.names == () and {"gradient", "history"} <= set(report_mine.measured)
assert confused.names == ("another kind",)

# %% [markdown]
# ## 12 · What to inspect: the clinic's table
#
# One row for each patient, made from the reports above: what one sees, which question finds it, the likely cause, and
# the cure.


# %%
def row_of(bed):
    name = BEDS[bed]
    report = examine(name, tell=False)
    (found,) = *report.findings, *report.notes
    short = lambda text: text.split(";")[0].split(": ")[0]
    return (f"| {bed} | {WARD[name].symptom} | {report.questions[found.name]} | **{found.name}**: "
            f"{short(found.cause)} | {short(found.cure)} | {found.chapter} |")  # fmt: skip


head = "| bed | symptom | inspect | cause | cure | chapter |\n|--:|---|---|---|---|--:|\n"
Markdown(head + "\n".join(row_of(bed) for bed in BEDS))

# %% [markdown]
# ## Recap
#
# 1. A symptom has several causes. Choose the measurement that separates them, and change one thing at a time.
# 2. Ask in order: numbers, network alone, network against process, training, sampler with an exact denoiser,
#    samples. The first finding counts; cure it, then ask again.
# 3. A trained network is best at its own time. Told other times, it shows a wrong clock, and whether it hears the
#    time at all.
# 4. A flat loss may be healthy, and a loss that is printed may belong to a training that stands still. Compare
#    parameters and errors at fixed levels.
# 5. "No finding" means: nothing above the limits in what was asked. Read *Not checked*, and measure what a healthy
#    model has.

# %% [markdown]
# ## Try it yourself
#
# 1. Thirty-four patients are in `patients.PATIENTS`, and eighteen have a bed. Ask a friend to draw one of the
#    others for you with `WARD[name].make()`, without its name.
# 2. Bed 2: write the sampler's side of this fault, guidance with the null label in both halves. Does `diagnose`
#    find it? Which argument does it need?
# 3. Find a fault that no check finds. What would you measure?

# %% [markdown]
# ## Further reading
#
# - T. Karras, M. Aittala, J. Lehtinen, J. Hellsten, T. Aila, S. Laine. *Analyzing and Improving the Training Dynamics
#   of Diffusion Models.* CVPR 2024. [arXiv:2312.02696](https://arxiv.org/abs/2312.02696). Faults of training that
#   are seen in magnitudes.
# - S. Lin, B. Liu, J. Li, X. Yang. *Common Diffusion Noise Schedules and Sample Steps are Flawed.* WACV 2024.
#   [arXiv:2305.08891](https://arxiv.org/abs/2305.08891). Bed 6, and grids that do not start at $t = 1$.
# - L. Zhang, A. Rao, M. Agrawala. *Adding Conditional Control to Text-to-Image Diffusion Models.* ICCV 2023.
#   [arXiv:2302.05543](https://arxiv.org/abs/2302.05543). Why a fresh control is silent.
# - A. Nichol, P. Dhariwal. *Improved Denoising Diffusion Probabilistic Models.* ICML 2021.
#   [arXiv:2102.09672](https://arxiv.org/abs/2102.09672). The loss, level by level.
#
# **New words:** symptom, finding, evidence, cause, cure, false alarm, linear denoiser, severity.
