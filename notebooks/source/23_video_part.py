# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
import itertools
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from diffusion_course import process, rollouts
from diffusion_course.data import clips
from diffusion_course.models import video
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# ## 5 · A clip whose frames agree
#
# A video is a row of pictures. So why not draw the pictures one by one, with a model of pictures?
#
# The library draws **clips**: one shape on black, 8 frames of 16 × 16 pixels. It moves with constant speed and
# bounces off the walls. Kind, colour, place and velocity are random. We know them exactly, so we can measure
# what a model makes. `clips.measure` finds the shape's place in each frame (the centroid of its light), its size
# and its colour. `clips.motion` finds the path of constant speed that fits these places best. What is left is
# the **motion error**. The picture is 2 wide, and a pixel is 1/8.

# %%
film = clips.load(n=500)
seen_true = clips.measure(film.x[:40])
true_error = clips.motion(seen_true.position).error
plots.image_grid(list(film.x[:3]), ["clip 1", "clip 2", "clip 3"])
plt.show()
print(f"motion error of 40 clips of the data: median {np.median(true_error):.4f}, "
      f"largest {true_error.max():.4f}; a pixel is {1 / 8}")  # fmt: skip

# %% [markdown]
# No network yet. For a finite set of $N$ clips the best denoiser is known (chapter 02 has it for points). With
# frames $x_{t,f}$ it is a weighted mean of the clips:
#
# $$D(x_t)_f = \sum_i w_i\, c_{i,f}, \qquad w_i \propto \exp\Big(-\sum_f \frac{\lVert x_{t,f} - \alpha\, c_{i,f}
# \rVert^2}{2\sigma^2}\Big) \tag{5}$$
#
# (Karras et al. 2022, appendix B.3, with a clip in the place of a picture). Look at the weight. It belongs to a
# whole clip, and *every frame* adds to its exponent. This is all that "the frames agree" means: each frame is
# guessed with what all the others say.
#
# **Predict, then run.** We draw 3 clips with (5). Then we take the 4,000 frames of the data as 4,000 pictures, and
# draw 24 of them from the same noise, with the best denoiser of pictures. Which of the two makes better *pictures*?

# %%
vp = process.vp_cosine()
noise_of_clips = jax.random.normal(jax.random.key(3), (3, 8, 16, 16, 3))


@partial(jax.jit, static_argnames="kind")
def draw_ideal(examples, x, kind="full"):
    """All states on the way from noise x [B, F, …], by the ideal denoiser of examples [N, F, …]."""
    times = rollouts.schedule(kind, x.shape[1], steps=24, delay=6)
    path = rollouts.sample(vp, rollouts.ideal(vp, examples), x, times, jax.random.key(0))[1]
    return jnp.concatenate([x[None], path])


together = np.asarray(draw_ideal(film.x, noise_of_clips)[-1])
pictures = rollouts.as_batch(film.x)[:, None]  # each a clip of one frame
one_by_one = draw_ideal(pictures, rollouts.as_batch(noise_of_clips)[:, None])[-1]
one_by_one = np.asarray(one_by_one).reshape(together.shape)
names = [f"{how} {n}" for how in ("frame by frame", "as a clip") for n in (1, 2, 3)]
plots.image_grid([*one_by_one, *together], names)
plt.show()

# %%
def to_nearest(x):
    """Root mean square distance of each frame to the nearest frame of the data."""
    made, known = (np.reshape(a, (-1, 16 * 16 * 3)) for a in (x, film.x))
    squared = (made**2).sum(1)[:, None] - 2 * made @ known.T + (known**2).sum(1)
    return np.sqrt(np.maximum(squared.min(1), 0) / made.shape[1])


motion_errors, colour_spread = {}, {}
for name, drawn in {"frame by frame": one_by_one, "as a clip": together}.items():
    looks = clips.measure(drawn)
    motion_errors[name] = clips.motion(looks.position).error
    colour_spread[name] = looks.colour.std(1).max(-1)
    print(f"{name:15} to the nearest frame of the data: at most {to_nearest(drawn).max():.3f};",
          "motion error", motion_errors[name].round(3),
          "spread of colour", colour_spread[name].round(2))

# %% tags=["claims"]
# @title Checked: both make perfect pictures, and only one of them makes clips
assert true_error.max() < 0.01  # the floor: what the pixels lose, in units of which a pixel is .125
# 24 steps of a solver that ends in D: on a picture of the data, up to rounding.
assert to_nearest(one_by_one).max() < 0.03 and to_nearest(together).max() < 0.03
assert motion_errors["as a clip"].max() < 0.01
assert motion_errors["frame by frame"].min() > 10 * motion_errors["as a clip"].max()
assert colour_spread["frame by frame"].min() > 0.1 > 5 * colour_spread["as a clip"].max()

# %% [markdown]
# Neither. Every single frame is a perfect picture in both. But the first three rows are no clips: the shape jumps,
# and changes its colour. A measure of pictures (chapter 13) would not see any difference. **A clip is good if its
# frames are good and agree**, so a measure of video has to look across frames.
#
# (This denoiser knows 500 clips and draws one of them again. That is memorising, chapter 13's subject. Here it
# serves as an exact answer.)

# %% [markdown]
# ## 6 · Attention over space, attention over time
#
# A network needs what (5) has: each frame must hear the others. A transformer of clips cuts every frame into
# patches (chapter 16). With $F$ frames of $N$ patches, attention among all tokens has $(FN)^2$ pairs. The usual
# way is to factorise: first the $N$ patches of each frame attend to each other, then the $F$ frames at each
# place:
#
# $$\underbrace{F \cdot N^2}_{\text{space}} + \underbrace{N \cdot F^2}_{\text{time}}
# \quad\text{in place of}\quad (FN)^2 \tag{6}$$
#
# (Ho et al. 2022, section 3, in a U-Net; Arnab et al. 2021, section 3.3, and Ma et al. 2024 in transformers).
# Attention works on sequences, so frames or places have to become examples of the batch. For time that needs a
# change of the axes' order, and section 9 shows what happens without it.


# %%
def attention_over_time(attend, tokens):
    """Tokens [B, F, N, C]: one sequence of F tokens for each clip and place."""
    B, F, N, C = tokens.shape
    sequences = tokens.transpose(0, 2, 1, 3).reshape(B * N, F, C)
    return attend(sequences).reshape(B, N, F, C).transpose(0, 2, 1, 3)


def pairs(frames, places):
    """Pairs of tokens that attention looks at: all, and factorised."""
    return (frames * places) ** 2, frames * places**2 + places * frames**2


SIZES = {
    "our clips": (8, 16),  # 8 frames, 4 × 4 patches
    # 120 frames of 512 × 512 pixels: latents are 4 × 8 × 8 times fewer, in patches of 2 × 2.
    "5 s of video": (30, 1024),
}
for name, size in SIZES.items():
    everything, factorised = pairs(*size)
    print(f"{name:13} all {everything:>11,} pairs, factorised {factorised:>10,}: "
          f"{everything / factorised:.1f} times fewer")  # fmt: skip

# %% tags=["comparison"]
some_tokens = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
running_sum = lambda s: jnp.cumsum(s, axis=1)  # of a sequence: an order matters, as in attention
mine_over_time = attention_over_time(running_sum, some_tokens)
np.testing.assert_allclose(mine_over_time, video.over_time(running_sum, some_tokens), atol=1e-6)
np.testing.assert_allclose(mine_over_time, np.cumsum(some_tokens, axis=1), atol=1e-6)

# %% [markdown]
# `video.VideoDiT` is made of such blocks. It takes clips of any length: an **image is a clip of one frame**, so
# one network can be trained on images *and* video. There are many more images than videos, and Ho et al. (2022)
# found that joint training gave better samples. With `tubelet=2` a token is a box of two frames, a **spacetime
# patch** (Arnab et al. 2021, section 3.2): half the tokens, but the two frames then have one noise level.
#
# Who hears whom is a question of wiring, not of training. So we fill three small networks with random numbers,
# change one frame, and look which outputs change.
#
# **Predict, then run.** The third network has no positions of time: no token knows the number of its frame. It
# hears all frames. What does it not know?

# %%
def awake(**options):
    """A small network of clips with random numbers for parameters: what it hears, it shows."""
    net = video.VideoDiT(16, 3, width=16, head_size=8, depth=2, **options, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
    nnx.update(net, jax.tree.map(fill, nnx.state(net, nnx.Param)))
    return net


def heard(net, frames):
    """Entry [j, f]: whether output f of a clip changes with its frame j."""
    x = noise_of_clips[:1, :frames]
    others = jnp.stack([x[0].at[j].add(1.0) for j in range(frames)])
    answer = jax.jit(lambda net, x: net(x, jnp.full(len(x), 0.5)))
    answer = answer(net, jnp.concatenate([x, others]))
    return np.asarray(jnp.abs(answer[1:] - answer[:1]).max((2, 3, 4)) > 1e-5)

# %%
WIRINGS = {
    "all frames": {}, "causal": {"causal": True}, "without positions": {"time_positions": False}
}  # fmt: skip
ears = {name: heard(awake(**options), 5) for name, options in WIRINGS.items()}
fig, axes = plt.subplots(1, 3, figsize=(6.5, 2.4), sharey=True)
for ax, (name, table) in zip(axes, ears.items(), strict=True):
    ax.imshow(table, vmin=0, vmax=1.3, cmap="Blues")
    ax.set(title=name, xlabel="output of frame", xticks=range(5), yticks=range(5))
axes[0].set_ylabel("frame that changes")
plt.show()

# %%
order = np.array([3, 0, 4, 1, 2])
clip_of_5 = noise_of_clips[:1, :5]
apart_by = {}
for known in (True, False):
    net = awake(time_positions=known)
    ask_net = jax.jit(lambda net, x: net(x, jnp.full(len(x), 0.5)))
    gap = ask_net(net, clip_of_5[:, order]) - ask_net(net, clip_of_5)[:, order]
    apart_by[known] = float(jnp.abs(gap).max())
print(f"frames shuffled before or after the network: {apart_by[True]:.2f} apart with positions, "
      f"{apart_by[False]:.0e} without")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the count of pairs; who hears whom; without positions the order is lost
assert pairs(8, 16) == (16_384, 3_072) and round(pairs(30, 1024)[0] / pairs(30, 1024)[1]) == 29
assert ears["all frames"].all() and ears["without positions"].all()
assert (ears["causal"] == np.triu(np.ones((5, 5), bool))).all()  # frame j is heard from j on
assert apart_by[False] < 1e-4 < 0.1 < apart_by[True]  # float32 sums in another order

# %% [markdown]
# For 5 seconds of video factorising saves a factor of 29 in pairs. The causal network hears no later frame. And
# without positions the network cannot tell the order: if you shuffle the frames, its answer is shuffled in the
# same way, so a clip and its shuffled copy are equally likely for it. The loss will still fall, since colour and
# shape do not depend on the order. What is lost is motion, and which way time runs.
#
# **A 3-D U-Net beside it.** A U-Net of pictures becomes one of video in the same way. Its 3 × 3 convolutions stay
# within a frame, and attention over time is put behind the attention over space (Ho et al. 2022). Full 3 × 3 × 3
# convolutions have 27 weights for each pair of channels. A 3 × 3 one followed by one of length 3 in time has 12
# (Tran et al. 2018). In both cases new layers over time can start as the identity, so training goes on from a
# model of pictures.

# %% [markdown]
# ## 7 · A noise level for each frame
#
# Until now all frames of a clip had the same noise. **Diffusion Forcing** gives each frame its own time $t_f$:
#
# $$x_f = \alpha(t_f)\, x_{0,f} + \sigma(t_f)\, \varepsilon_f, \qquad
# \text{and the network is told all of } t_1, \dots, t_F \tag{7}$$
#
# (Chen et al. 2024, section 3.2). Nothing else changes. The target of each frame is that of its own time, and the
# sampler's step of each frame is the known one. Only the denoiser sees the clip as a whole.

# %% [markdown]
# To draw, we choose a **matrix of times**: a row for each step, a column for each frame. Frame $f$ falls in $n$
# steps from 1 to 0, and begins $d$ steps after the frame before it:
#
# $$t[m, f] = \operatorname{clip}\big(1 - (m - d f)/n,\; 0,\; 1\big). \tag{8}$$
#
# With the delay $d = 0$ all frames are equally noisy: *full sequence*. With $d = n$ a frame begins when the one
# before it is finished: *autoregressive*, as a language model writes words. Between them lies the *pyramid*.

# %%
def matrix_by_hand(frames, steps, delay):
    """Equation (8), row by row."""
    rows = []
    for m in range(steps + delay * (frames - 1) + 1):
        rows.append([min(max(1 - (m - delay * f) / steps, 0), 1) for f in range(frames)])
    return np.array(rows)


matrices = {kind: rollouts.schedule(kind, 8, 24, delay=6) for kind in rollouts.KINDS}
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for ax, (kind, matrix) in zip(axes, matrices.items(), strict=True):
    shown = ax.imshow(matrix, aspect="auto", cmap="gray_r", vmin=0, vmax=1,
                      interpolation="nearest")  # fmt: skip
    ax.set(title=f"{kind}: {len(matrix) - 1} steps", xlabel="frame $f$")
axes[0].set_ylabel("step $m$")
fig.colorbar(shown, ax=axes, label="time $t$ (dark: noise)")
plt.show()

# %% [markdown]
# **Is every schedule right?** We ask a case with an exact answer. One coordinate of a clip is a Gaussian with
# *memory*: neighbouring frames have the correlation $\rho$, frames $k$ apart $\rho^k$. Then the denoiser with a
# noise level per frame is a formula (Bishop 2006, eq. 2.81). With $A = \operatorname{diag}\alpha(t_f)$ and $S =
# \operatorname{diag}\sigma(t_f)$ it is
#
# $$D(x) = \Sigma A\, (A \Sigma A + S^2)^{-1} x. \tag{9}$$
#
# It is linear, and so is a step of DDIM. So we need no samples: we follow each unit of noise through the sampler,
# and have the exact covariance of what it draws.
#
# **Predict, then run.** Chapter 23's title could be "autoregressive or all at once?" Which of the three schedules
# draws the right covariance $\Sigma$?

# %%
RHO_FRAMES = 0.9
true_cov = RHO_FRAMES ** np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
gauss = rollouts.GaussianClips(vp, true_cov)


@partial(jax.jit, static_argnames=("kind", "steps"))
def follow(x, kind, steps):
    times = rollouts.schedule(kind, 8, steps, delay=steps // 4)
    return rollouts.sample(vp, gauss.denoise, x, times, jax.random.key(0))[0]


def drawn_cov(kind, steps):
    """The covariance over frames of what the sampler draws: its linear map, times its transpose."""
    unit = jnp.eye(8)[:, :, None]  # clip b is one unit of noise in frame b
    to = np.asarray(follow(unit, kind, steps))[..., 0]
    return to.T @ to


cov_gaps = {}
for kind in rollouts.KINDS:
    cov_gaps[kind] = [float(np.abs(drawn_cov(kind, n) - true_cov).max()) for n in (24, 96)]
    rows = len(rollouts.schedule(kind, 8, 24, delay=6)) - 1
    print(f"{kind:15} {rows:4} evaluations: {cov_gaps[kind][0]:.4f} from Σ;",
          f"four times as many: {cov_gaps[kind][1]:.4f}")

# %%
def frames_by_hand(D, x, times):
    """DDIM with a time for each frame: x [B, F, 1], times [n + 1, F]."""
    for t, s in itertools.pairwise(times):
        (a_t, a_s), (s_t, s_s) = ([f(v)[:, None] for v in (t, s)] for f in (vp.alpha, vp.sigma))
        x0 = D(x, t)  # one look at the whole clip
        eps = (x - a_t * x0) / jnp.maximum(s_t, 1e-6)
        x = jnp.where((s < t)[:, None], a_s * x0 + s_s * eps, x)  # a frame at rest stays
    return x


few_clips = jax.random.normal(jax.random.key(4), (5, 8, 1))
mine_frames = frames_by_hand(jax.jit(gauss.denoise), few_clips, matrices["pyramid"])
theirs_frames = follow(few_clips, "pyramid", 24)

# %% tags=["comparison"]
np.testing.assert_allclose(mine_frames, theirs_frames, atol=1e-3)  # float32, 66 steps
for kind, delay in {"full": 0, "pyramid": 6, "autoregressive": 24}.items():
    np.testing.assert_allclose(matrix_by_hand(8, 24, delay), matrices[kind], atol=1e-6)

# %% tags=["claims"]
# @title Checked: with the exact denoiser all three schedules draw the same clips
for kind, (coarse, fine) in cov_gaps.items():
    # What is left is the solver's error. DDIM is of first order: a quarter of the step, a quarter.
    assert fine < 0.3 * coarse and fine < 0.05, kind
assert [len(m) - 1 for m in matrices.values()] == [24, 24 + 6 * 7, 24 * 8]

# %% [markdown]
# All three. The difference from $\Sigma$ is the solver's, and it vanishes with more steps. So a schedule is not a
# question of *what* is drawn, as long as the denoiser is exact. It decides the price (24, 66 or 192 evaluations
# for 8 frames), the waiting time for the *first* frame, and which errors of a real network add up: section 8.
#
# A time per frame has a second use. A frame at $t = 0$ that stays there is a **condition**. With the first frame
# at 0 the model does *image to video*, with the last one it completes a past, with every second one it doubles
# the frame rate. No model has to be trained for each. For the Gaussian, given $x_1$, the later frames must be
# $\mathcal N(\rho^k x_1,\, 1 - \rho^{2k})$.

# %%
PICTURE = 1.5  # the given first frame, in each of 4,000 coordinates
falling = rollouts.schedule("full", 8, 96)
falling[:, 0] = 0
futures = jax.random.normal(jax.random.key(5), (1, 8, 4000)).at[:, 0].set(PICTURE)
go_on = jax.jit(lambda x: rollouts.sample(vp, gauss.denoise, x, falling, jax.random.key(0))[0])
futures, lag = np.asarray(go_on(futures))[0], np.arange(8)
first_frame = noise_of_clips[:1].at[:, 0].set(film.x[4, 0])
given_first = np.concatenate([np.zeros((25, 1)), rollouts.schedule("full", 7, 24)], axis=1)
animate = jax.jit(
    lambda known, x: rollouts.sample(
        vp, rollouts.ideal(vp, known), x, given_first, jax.random.key(0)
    )[0]
)
animated = np.asarray(animate(film.x, first_frame))[0]
plots.image_grid([film.x[4], animated], ["a clip", "from its first frame"])
plt.show()
print("mean", futures.mean(1).round(2), "\nexact", (PICTURE * RHO_FRAMES**lag).round(2))
print("std ", futures.std(1).round(2), "\nexact", np.sqrt(1 - RHO_FRAMES ** (2 * lag)).round(2))

# %% tags=["claims"]
# @title Checked: image to video, exactly
# 4,000 draws: standard errors of at most .014 (mean) and .010 (std); and 96 steps of DDIM.
np.testing.assert_allclose(futures.mean(1), PICTURE * RHO_FRAMES**lag, atol=0.06)
np.testing.assert_allclose(futures.std(1), np.sqrt(1 - RHO_FRAMES ** (2 * lag)), atol=0.05)
assert (futures[0] == PICTURE).all()
assert (animated[0] == film.x[4, 0]).all() and np.abs(animated - film.x[4]).max() < 0.1

# %% [markdown]
# **The explorer** shows the state of one clip on its way, with the ideal denoiser of section 5. Choose a schedule
# and move the slider. In *full* all frames become clear together. In *autoregressive* the first frame is finished
# before the second begins. In *pyramid* the far frames are vague while the near ones are already sharp, which is
# how much one can know about a future.

# %%
PARTS = 9
walks = {kind: np.asarray(draw_ideal(film.x, noise_of_clips, kind))[:, 0]
         for kind in rollouts.KINDS}  # fmt: skip


def moment(kind, part):
    """A figure of the clip after this part of the schedule's steps."""
    row = round(part / (PARTS - 1) * (len(matrices[kind]) - 1))
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(6, 1.9), height_ratios=(3, 2))
    top.imshow(plots.tile(walks[kind][row], 8), interpolation="nearest")
    top.axis("off")
    bottom.bar(range(8), matrices[kind][row], color=plots.NOISE)
    bottom.set(ylim=(0, 1.05), xticks=[], ylabel="$t_f$")
    return fig


moment("pyramid", 5)
plt.show()

# %%
stages = {kind: widgets.render(partial(moment, kind), range(PARTS)) for kind in rollouts.KINDS}
widgets.explorer(stages, [f"{100 * k // (PARTS - 1)} % of the steps" for k in range(PARTS)],
                 slider="progress", choice="schedule", start=4)  # fmt: skip

# %% tags=["claims"]
# @title Checked: all three end in a clip of the data; a pyramid's near frames are clear first
assert all(to_nearest(walk[-1]).max() < 0.03 for walk in walks.values())
half_way = matrices["pyramid"][33]
assert half_way[0] == 0 and half_way[-1] == 1 and (np.diff(half_way) >= 0).all()

# %% [markdown]
# ## 8 · Long clips drift
#
# A model has a window of some frames. For a longer clip we *roll out*: the newest frames become the context of the
# next window, again and again. Now the model reads its own work. If it errs, it goes on from the error.
#
# Again a case that we can compute. The window has two frames: one of context, one new. The truth has variance 1 and
# correlation $\rho$. The model has learnt a little too much variance for the new frame: $1 + e^2$. Let $v_n$ be the
# variance after $n$ turns. A new frame is $\rho$ times the old one plus fresh noise of variance $1 + e^2 -
# \rho^2$, so
#
# $$v_{n+1} = \rho^2 v_n + 1 - \rho^2 + e^2 \quad\Rightarrow\quad
# v_\infty = 1 + \frac{e^2}{1 - \rho^2}. \tag{10}$$
#
# With $\rho = 0.95$ an error is amplified ten times, and as $\rho \to 1$ without a bound. Slow scenes are the
# hard ones.

# %% [markdown]
# A proposed cure: give the *context* a little noise, and tell the model (Chen et al. 2024, section 3.3). It then
# trusts its context less. With $\alpha$ of that noise level the same calculation gives
#
# $$v_{n+1} = 1 + e^2 + \rho^2 \alpha^4 (v_n - 1). \tag{11}$$
#
# **Predict, then run.** Does it cure the drift? And what could it cost?

# %%
RHO_LONG, EXTRA, TURNS, CONTEXT_TIME = 0.95, 0.05, 60, 0.2
down = rollouts.schedule("full", 1, 48)


def of_two_frames(extra):
    """The exact denoiser of a model whose new frame has the variance 1 + extra."""
    return rollouts.GaussianClips(vp, [[1, RHO_LONG], [RHO_LONG, 1 + extra]]).denoise


@partial(jax.jit, static_argnames=("extra", "context_time"))
def roll(first, extra, context_time):
    """A long clip, [1, TURNS + 1, M]."""
    D, key = of_two_frames(extra), jax.random.key(7)
    made = rollouts.extend(vp, D, first, down, TURNS, key, context_time=context_time)
    return jnp.concatenate([first, made], axis=1)


@partial(jax.jit, static_argnames=("extra", "context_time"))
def one_turn(extra, context_time):
    """How much of the context, and of its own noise, the sampler puts into a new frame: (a, g)."""
    times = np.concatenate([np.full((49, 1), context_time), down], axis=1)
    unit = jnp.eye(2)[None]  # coordinate 0: a unit in the context; coordinate 1: a unit of noise
    return rollouts.sample(vp, of_two_frames(extra), unit, times, jax.random.key(0))[0][0, 1]

# %%
def recurrence(a, g, context_time):
    """The variance of every frame, if each is a·(context with noise) + g·(fresh noise)."""
    alpha, sigma = float(vp.alpha(context_time)), float(vp.sigma(context_time))
    v = [1.0]
    for _ in range(TURNS):
        v.append(a**2 * (alpha**2 * v[-1] + sigma**2) + g**2)
    return np.array(v)


def exact_turn(extra, context_time, rho=RHO_LONG):
    """a and g of a sampler without error, as in (10) and (11)."""
    a = rho * float(vp.alpha(context_time))
    return a, np.sqrt(1 + extra - a**2)


CASES = {
    "exact model": (0.0, 0.0),
    "erring": (EXTRA, 0.0),
    "erring, noisy context": (EXTRA, CONTEXT_TIME),
}
first_of_long = jax.random.normal(jax.random.key(6), (1, 1, 3000))
long_clips = {name: np.asarray(roll(first_of_long, *case))[0] for name, case in CASES.items()}
turns_of = {name: np.asarray(one_turn(*case), float) for name, case in CASES.items()}
expected = {name: recurrence(*turns_of[name], case[1]) for name, case in CASES.items()}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
plots.curves(np.arange(TURNS + 1), expected, xlabel="frame", ylabel="variance (dots: drawn)", ax=left)
for series, color in zip(long_clips.values(), plots.SERIES, strict=False):
    left.plot(series.var(1), ".", ms=3, color=color)
for series, color in zip(long_clips.values(), plots.SERIES, strict=False):
    right.plot(series[:, 0], color=color, lw=1)
right.set(xlabel="frame", ylabel="one coordinate $x$")
plt.show()
late_jump, late_variance = {}, {}
for name, series in long_clips.items():
    late_variance[name] = float(series[-20:].var())
    late_jump[name] = float((np.diff(series, axis=0)[-20:] ** 2).mean())
    of_exact_sampler = recurrence(*exact_turn(*CASES[name]), CASES[name][1])[-1]
    print(f"{name:22} variance of the last 20 frames {late_variance[name]:.2f}",
          f"(without the sampler's error {of_exact_sampler:.2f});",
          f"mean square step between two frames {late_jump[name]:.3f}")

# %% tags=["claims"]
# @title Checked: the recurrence; noise on the context halves the drift, and makes the frames agree less
at_end = {name: recurrence(*exact_turn(*case), case[1])[-1] for name, case in CASES.items()}
np.testing.assert_allclose(at_end["erring"], 1 + EXTRA / (1 - RHO_LONG**2), rtol=0.01)  # (10)
shrink = RHO_LONG**2 * float(vp.alpha(CONTEXT_TIME)) ** 4
np.testing.assert_allclose(at_end["erring, noisy context"], 1 + EXTRA / (1 - shrink), rtol=0.01)  # (11)
assert 10 < 1 / (1 - RHO_LONG**2) < 10.5
assert at_end["erring, noisy context"] - 1 < 0.5 * (at_end["erring"] - 1)
for name, (_, level) in CASES.items():
    # 3,000 coordinates: a variance is known to 2.6 %, and 61 frames in a row lean the same way.
    np.testing.assert_allclose(long_clips[name].var(1), expected[name], rtol=0.1)
    keeps = turns_of[name][0] * float(vp.alpha(level))
    np.testing.assert_allclose(late_jump[name], 2 * expected[name][-1] * (1 - keeps), rtol=0.1)
assert late_jump["erring, noisy context"] > 2 * late_jump["erring"]
no_memory_lost = recurrence(*exact_turn(EXTRA, 0.0, rho=1.0), 0.0)
np.testing.assert_allclose(no_memory_lost[-1], 1 + TURNS * EXTRA)  # no bound
# The sampler's own error: a new frame gets too little noise, and that adds up, too.
too_little = exact_turn(0.0, 0.0)[1] - turns_of["exact model"][1]
assert 0.01 < too_little < 0.02 and 0.88 < expected["exact model"][-1] < 0.93
assert late_variance["exact model"] < 0.95 and abs(turns_of["exact model"][0] - RHO_LONG) < 1e-3

# %% [markdown]
# It does, and it is not free. Noise on the context leaves less than half of the drift. But the model now trusts
# its context less: neighbouring frames have the correlation $\rho\alpha^2$ and no longer $\rho$, and the mean
# square step between two frames more than doubles. On a screen this is flicker. So the level is a compromise.
#
# **Predict, then run.** We change the level of the context's noise and nothing else. Is there a level that is right
# in both?

# %%
levels_tried = np.linspace(0, 0.5, 26)
keeping = RHO_LONG * np.asarray(vp.alpha(levels_tried)) ** 2
limit_drift = EXTRA / (1 - keeping**2)  # where (11) ends, less 1
flicker = 2 * (1 + limit_drift) * (1 - keeping)
fig, ax = plt.subplots(figsize=(5.5, 3))
plots.curves(levels_tried, {"drift: variance too much": limit_drift, "step between frames": flicker},
             xlabel="time $t$ of the context", ylabel="(true values: 0 and 0.1)", ax=ax)  # fmt: skip
plt.show()

# %% tags=["claims"]
# @title Checked: more noise on the context, less drift and more flicker; drift never ends below the model's own error
assert (np.diff(limit_drift) < 0).all() and (np.diff(flicker) > 0).all()
assert limit_drift.min() > EXTRA
np.testing.assert_allclose(2 * (1 - RHO_LONG), 0.1)

# %% [markdown]
# There is none. The drift falls and the flicker rises with every bit of noise. And the drift never gets smaller
# than $e^2$, the model's error in a single step. Noise on the context keeps errors from *adding up*. It does not
# repair the model. The honest cures are a better model, a longer window, and frames far back as context.

# %% [markdown]
# ## 9 · Break it on purpose
#
# Somebody writes attention over time without the change of axes:
#
# ```python
# sequences = tokens.reshape(B * N, F, C)      # from [B, F, N, C]
# ```
#
# All shapes are right, nothing complains, and the result is reshaped back. But a reshape cuts the row of numbers
# anew, in the order in which they lie. With $N = 16$ places and $F = 8$ frames, each "sequence over time" holds 8
# *neighbouring places of one frame*.
#
# **Predict, then run.** Which frames will such a network hear?


# %%
def over_time_broken(function, tokens, *others):
    """Attention over time, without the change of axes."""
    B, F, N, C = tokens.shape
    return function(tokens.reshape(B * N, F, C), *others).reshape(B, F, N, -1)


numbers = np.arange(8)[:, None] + np.zeros((8, 16))  # each token holds the number of its frame
broken_sequences = numbers.reshape(16, 8)
print("frames in the first three sequences:", *(sorted(set(row)) for row in broken_sequences[:3]))


with mock.patch.object(video, "over_time", over_time_broken):
    deaf = heard(awake(), 8)
right_ears = heard(awake(), 8)
print(f"pairs of different frames that hear each other: {(deaf.sum() - 8) / 56:.0%} of 56,",
      f"with the right axes {(right_ears.sum() - 8) / 56:.0%}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: no frame hears another one
assert all(len(set(row)) == 1 for row in broken_sequences)
assert (deaf == np.eye(8, dtype=bool)).all() and right_ears.all()

# %% [markdown]
# None. A second attention over space has taken the place of attention over time. The network is a model of
# pictures: it draws the upper three rows of section 5. Training shows nothing, because the loss falls as it does
# for pictures. **The test** is the one above: change a frame, and see who notices. It takes a second, and needs
# no training. Test the batch in the same way: a change in one clip must change no other clip. (If $F$ is larger
# than $N$, the broken sequences do reach the next frame, at other places. Then some motion is learnt, and the bug
# is harder to see.)
#
# ### What to inspect
#
# | look at | it should be | if not |
# |---|---|---|
# | motion error, spread of colour and size within a clip | as in the data (section 5) | frames do not hear each other |
# | a changed frame, a shuffled clip | all hear the change; the answer knows the order | axes mixed; positions missing |
# | loss by the frame's own $t$, and by the *others'* | falls when the others are cleaner | times are not told per frame |
# | variance, colour, size against the frame's number | flat in a long rollout | drift: section 8 |
# | step between neighbouring frames | as in the data | too much noise on the context |

# %% [markdown]
# ### The same at full size, on paper
#
# - **Latents of video.** An autoencoder shrinks time, too. With 8 × 8 in space and 4 in time, 120 frames of
#   512 × 512 pixels become 30 × 64 × 64 places (the second row of section 6's table, before patches of 2 × 2). One
#   latent then stands for 4 frames, and these share a noise level. The autoencoder has to be causal in time if the
#   first frame shall be an image by itself.
# - **Image to video** is a frame at $t = 0$, as in section 7. Models that were not trained with a time per frame
#   get the image as further channels instead (chapter 16 has both ways for other conditions).
# - **Sound** is one more sequence along the same time. It gets tokens of its own, and attends with the frames of the
#   same moment; chapter 24 shows what changes in its noise schedule.
# - **More frames per second** is a cascade in time: the frames between given ones are drawn, as in section 7.

# %% tags=["claims"]
# @title Checked: the sizes on paper
assert (120 // 4, 512 // 8) == (30, 64) and (64 // 2) ** 2 == 1024
assert 3**3 == 27 and 3**2 + 3 == 12
