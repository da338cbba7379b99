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
# # 03 · DDPM
#
# **The question.** A network has learned to remove a little noise. How can it draw a digit that
# nobody ever wrote?
#
# At the end of this chapter you will be able to
#
# - write the training loop and the ancestral sampler of DDPM from memory, and say where each
#   symbol comes from;
# - say why a blurred guess may stand in for the sharp truth, if the step is short;
# - compare a trained network with the exact answer, point by point;
# - train a U-Net on real handwritten digits in half a minute, and judge its samples by more than
#   looking at them;
# - recognise a model whose time input is dead, although its loss falls and its digits look fine.
#
# **You need** chapters 01 (the forward process) and 02 (denoising is the posterior mean).
# **Time**: reading takes about 80 minutes. The notebook itself runs for about two minutes on two
# CPU cores.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from diffusion_course import data, denoiser, losses, parameterization, process, samplers, sampling
from diffusion_course import weights
from diffusion_course.data import toy2d
from diffusion_course.evaluation import metrics
from diffusion_course.evaluation.quality import measure
from diffusion_course.models.classifier import judge
from diffusion_course.models.mlp import MLP
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import loop, recipes, update

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# The top row is pure noise. Each row below shows the same ten images a little later, and the last row
# is the result. We asked the model for one digit of each class. The loop that made the picture uses no
# real image. It only calls a network that guesses what lies under the noise.

# %% alt="Ten images at five times, from t = 1 to t = 0. The first row is noise, at t = 1/4 digits show through noise, and the last row has one digit of each class."
released = weights.load("digits")
D = denoiser.denoiser(released.model, released.process, "v", jnp.arange(10))
start = jax.random.normal(jax.random.key(3), (10, 8, 8, 1))
_, on_the_way = sampling.sample(
    samplers.ddpm(released.process), D, start, sampling.uniform(250), jax.random.key(4)
)
stages = ["t = 1", "t = 3/4", "t = 1/2", "t = 1/4", "t = 0"]
plots.image_grid([start, *(on_the_way[k] for k in (62, 124, 187, 249))], stages, scale=0.8)
plt.show()

# %% [markdown]
# ## 2 · Training: guess the noise
#
# We start in the plane, where the exact answer is known, with the linear schedule of the paper.
# The data are three unequal clouds; `oracle` is their exact denoiser from chapter 02.
#
# The network sees the noisy point and the time, and guesses the noise. If it always answered 0, each
# coordinate would cost 1 on average, the variance of the noise. Training makes this number smaller:
#
# $$L_\text{simple} = \mathbb{E}_{n,\,x_0,\,\varepsilon}\,
#   \big\|\varepsilon - \varepsilon_\theta(\sqrt{\bar\alpha_n}\,x_0 +
#   \sqrt{1-\bar\alpha_n}\,\varepsilon,\; n)\big\|^2 \tag{1}$$
#
# (Ho, Jain & Abbeel 2020, eq. 14; the code divides by the dimension). Chapter 02 showed that the best
# guess at $\varepsilon$ is the posterior mean, converted by equation (4) of that chapter.

# %%
T = 1000
betas = process.linear_betas(T)
p = process.from_betas(betas)
oracle = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
cloud = data.load("toy2d", kind="mixture", n=20_000)

# %% [markdown]
# The next cell writes out algorithm 1 of the paper. `n` is the step of the chain, from 1 to $T$, and our
# network takes the time $t = n/T$. Note the keys: we split the batch's key, use one half for the step
# and the other half for the noise, and do not use the batch's key again.


# %%
def algorithm_1(model, x0, key):
    """The loss of one batch (Ho et al. 2020, algorithm 1, lines 3 to 5)."""
    key_n, key_eps = jax.random.split(key)
    n = jax.random.randint(key_n, (len(x0),), 1, T + 1)
    eps = jax.random.normal(key_eps, x0.shape)
    alpha_bar = np.cumprod(1 - betas)  # float64; cast once, at the end (chapter 00)
    signal, noise = (jnp.float32(np.sqrt(a))[n - 1, None] for a in (alpha_bar, 1 - alpha_bar))
    x_n = signal * x0 + noise * eps
    return jnp.mean((eps - model(x_n, n / T)) ** 2)


@nnx.jit
def train_step(model, optimizer, x0, key):
    loss, gradient = nnx.value_and_grad(algorithm_1)(model, x0, key)
    optimizer.update(model, gradient)
    return loss


# %%
model = MLP(rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
batches = data.batches(cloud, size=512, seed=0)
trace = [
    float(train_step(model, optimizer, next(batches)[0], jax.random.fold_in(jax.random.key(0), i)))
    for i in range(200)
]
print(f"loss at step 1 {trace[0]:.2f}, mean of the last 10 {np.mean(trace[-10:]):.3f}")

# %% tags=["claims"]
# @title Checked: the loss starts near 1 and leaves it
# The last layer starts at 0: the first loss is a mean of 1,024 squares of N(0, 1), of variance 2.
assert abs(trace[0] - 1) < 4 * np.sqrt(2 / 1024)
assert np.mean(trace[-10:]) < 0.25 * trace[0]  # measured .96 and .13

# %% [markdown]
# Our network starts with a last layer of zeros, so it first answers 0. The loss then is the mean square
# of the target. This is the first thing to check in the training curve of a network that starts so: it
# must start at the mean square of the target, and then fall. For $\varepsilon$ this number is 1. For other
# targets it is another number.
#
# The library's `losses.diffusion_loss` is the same function. It works for every process and every
# target, and it draws the steps through `times`. Given the same key it returns the same number.

# %% tags=["comparison"]
x0 = jnp.asarray(cloud.x[:512])
loss_key = jax.random.key(11)
ours = algorithm_1(model, x0, loss_key)
library = losses.diffusion_loss(model, p, "eps", x0, None, loss_key, times=losses.discrete_times(T))
print(f"ours {ours:.6f}, library {library:.6f}")
# Different order of the same float32 operations, over 1024 terms of size about 1.
np.testing.assert_allclose(ours, library, rtol=1e-5)

# %% [markdown]
# `loop.fit` adds to such a step what every real run needs. It donates buffers, averages the weights and
# shows a progress bar. It stops with an error if the loss becomes NaN. Its default optimiser clips
# the gradient, warms up and lets the learning rate fall. For the points we pass plain Adam at a
# constant rate, as in the paper. The digits of section 6 use the default.


# %% alt="The loss over 1,500 training steps, on a logarithmic axis. It falls from 1 to about 0.13 within 200 steps, and stays there, noisy."
def objective(model, x, labels, key):
    return losses.diffusion_loss(model, p, "eps", x, None, key, times=losses.discrete_times(T))


def fit_cloud(loss):
    return loop.fit(
        MLP(rngs=nnx.Rngs(0)), loss, data.batches(cloud, size=512, seed=0),
        steps=1500, key=jax.random.key(0), optimizer=optax.adam(3e-3),
    )  # fmt: skip


fitted = fit_cloud(objective)
fitted.history.plot()
plt.show()

# %% [markdown]
# The loss falls fast, and then it stays flat and noisy at about 0.13. It will never reach 0, because
# nobody can know the noise exactly from a noisy point. So this floor is not a failure. It is the
# variance that is left after the best possible guess, and here we can compute it. (We use the network
# with its averaged weights, which section 5 explains.)

# %%
eps = jax.random.normal(jax.random.key(21), (20_000, 2))
n = jax.random.randint(jax.random.key(22), (20_000,), 1, T + 1)
x_n = process.add_noise(p, jnp.asarray(cloud.x), eps, n / T)
best = parameterization.to_eps("x0", p, oracle.denoise(x_n, n / T), x_n, n / T)
floor = float(jnp.mean((eps - best) ** 2))
flat = np.mean(fitted.history.loss[-200:])
reached = float(jnp.mean((eps - fitted.ema(x_n, n / T)) ** 2))
print(f"training curve {flat:.3f}; floor {floor:.4f}; averaged weights, same points {reached:.4f}")

# %% tags=["claims"]
# @title Checked: the network is within 3 % of the floor
assert 0.12 < flat < 0.14
assert floor < reached < 1.03 * floor  # the same 20,000 points and noise: they differ by learning

# %% [markdown]
# ## 3 · Sampling: many small steps back
#
# We want to undo one step of the chain. This is easy if we know $x_0$. With our schedule, for
# instance, the mean of $x_{499}$ is $0.003\,x_0 + 0.994\,x_{500}$. Let $q$ stand for the distributions
# of the noising chain. Bayes' rule for $q(x_n|x_{n-1})$ and $q(x_{n-1}|x_0)$ gives a Gaussian, the posterior,
# with
#
# $$\tilde\mu_n = \frac{\sqrt{\bar\alpha_{n-1}}\,\beta_n}{1-\bar\alpha_n}\,x_0 +
#   \frac{\sqrt{\alpha_n}\,(1-\bar\alpha_{n-1})}{1-\bar\alpha_n}\,x_n, \qquad
#   \tilde\beta_n = \frac{1-\bar\alpha_{n-1}}{1-\bar\alpha_n}\,\beta_n \tag{2}$$
#
# (Ho et al. 2020, eq. 6 and 7; $\alpha_n = 1-\beta_n$). When we sample, we do not know $x_0$. So we put
# the network's guess
# $\hat x_0 = (x_n - \sqrt{1-\bar\alpha_n}\,\varepsilon_\theta)/\sqrt{\bar\alpha_n}$ in its place. If we
# collect the terms, we get
#
# $$x_{n-1} = \frac{1}{\sqrt{\alpha_n}}\Big(x_n - \frac{\beta_n}{\sqrt{1-\bar\alpha_n}}\,
#   \varepsilon_\theta(x_n, n)\Big) + \sqrt{\tilde\beta_n}\, z \tag{3}$$
#
# (algorithm 2, with the smaller of the two variances of section 3.2). In the last step, $n = 1$, we
# have $\tilde\beta_1 = 0$, so no noise is added to the result. This way of sampling, with fresh noise
# $z$ in every step, is called **ancestral sampling**: each state is drawn given the state before it,
# its ancestor.

# %% [markdown]
# ### Why a guess may stand in for the truth
#
# A blurred guess in the place of a sharp $x_0$: why does this work? Chapter 01 (section 3) gave the reason.
# The mean (2) is linear in $x_0$, and the best guess is the average of all $x_0$ that are possible. So the
# mean of the step is **exact**. Two things are lost. The doubt about $x_0$ adds a variance
# $c^2\operatorname{Var}(x_0 \mid x_n)$ to the truth, where $c$ is the factor of $x_0$ in (2). And the truth
# is not exactly Gaussian. Both are small where $c$ is small. That holds for all short steps but the last
# few, next to the data. Each of these loses a variance of less than 0.0001: it matters only to clouds that are
# very small.
#
# **Predict, then run.** We go from $t = 0.3$ back to $s$ with the exact denoiser, and measure by how much
# the true $x_s$ differs from the mean of (2). How does the variance that is lost grow with the step?

# %%
away = {}
print("step    mean error   variance: true   by (2) + lost   lost / by (2)")
for i, length in enumerate((0.001, 0.02, 0.1, 0.2)):
    s = 0.3 - length
    eps_s, eps_step = jax.random.normal(jax.random.key(50 + i), (2, 20_000, 2))
    x_s = process.add_noise(p, jnp.asarray(cloud.x), eps_s, s)
    scale, added = process.transition(p, 0.3, s)
    x_t = scale * x_s + jnp.sqrt(added) * eps_step
    guess = oracle.denoise(x_t, 0.3)
    mean_s, by_2 = process.posterior(p, guess, x_t, 0.3, s)
    c = process.posterior(p, jnp.ones(1), jnp.zeros(1), 0.3, s)[0][0]
    rest = np.asarray(x_s - mean_s, np.float64)
    lost = float(c**2 * jnp.mean((cloud.x - guess) ** 2))
    away[length] = rest, float(by_2), lost
    print(
        f"{length:5} {rest.mean():13.4f} {rest.var():16.5f} {by_2 + lost:15.5f} {lost / by_2:14.1%}"
    )

# %% tags=["claims"]
# @title Checked: the mean is exact; c²·Var(x0|x_t) is lost, at t = 0.3 under 1 % in one step of the thousand
for rest, by_2, lost in away.values():
    assert np.all(np.abs(rest.mean(axis=0)) < 4 * rest.std() / np.sqrt(len(rest)))
    # 40,000 values: 4 standard errors of their mean square.
    assert abs(np.mean(rest**2) - by_2 - lost) < 4 * np.std(rest**2) / np.sqrt(rest.size)
# Exact at each x_t, not only on average: what is left has no trend along the guess (step 0.2).
trend = np.sum(away[0.2][0] * np.asarray(guess - guess.mean(axis=0)), axis=1)
assert abs(trend.mean()) < 4 * trend.std() / np.sqrt(len(trend))
part = {length: lost / by_2 for length, (_, by_2, lost) in away.items()}
# The numbers of the text: in the mean (2), the factors of x0 and of x_500.
at_500 = [
    float(process.posterior(p, a, 1 - a, 0.5, 0.499)[0][0]) for a in (jnp.ones(1), jnp.zeros(1))
]
np.testing.assert_allclose(at_500, [0.003, 0.994], atol=6e-4)
assert part[0.001] < 0.01 and part[0.2] > 0.5
assert list(part.values()) == sorted(part.values())

# %% tags=["claims"]
# @title Checked: next to the data a step loses more than it keeps, and less than 0.0001
for n in (2, 3, 5, 10):
    x_t = process.add_noise(p, jnp.asarray(cloud.x), eps_s, n / T)
    guess = oracle.denoise(x_t, n / T)
    _, kept = process.posterior(p, guess, x_t, n / T, (n - 1) / T)
    c = process.posterior(p, jnp.ones(1), jnp.zeros(1), n / T, (n - 1) / T)[0][0]
    lost = float(c**2 * jnp.mean((cloud.x - guess) ** 2))
    assert lost < 1e-4 and (n > 2 or lost > 0.9 * kept)

# %% [markdown]
# Do not confuse the letters of the paper with those of the course. The paper's $\alpha_n = 1-\beta_n$
# belongs to one step, and the course's $\alpha(t) = \sqrt{\bar\alpha_n}$ belongs to all steps so far.
# The paper calls $\sqrt{\tilde\beta_n}$ $\sigma_n$: this noise is *added* in one step. The course's
# $\sigma(t) = \sqrt{1-\bar\alpha_n}$ is the noise that is *present*.


# %%
def algorithm_2(model, x, keys):
    """Ancestral sampling (Ho et al. 2020, algorithm 2): a loop, as it is written there."""
    alpha = 1 - betas
    alpha_bar = np.concatenate([[1.0], np.cumprod(alpha)])  # entry 0 belongs to the data
    predict = jax.jit(lambda model, x, n: model(x, jnp.full(len(x), n / T)))
    for n in range(T, 0, -1):
        eps = predict(model, x, n)
        mean = (x - betas[n - 1] / np.sqrt(1 - alpha_bar[n]) * eps) / np.sqrt(alpha[n - 1])
        variance = (1 - alpha_bar[n - 1]) / (1 - alpha_bar[n]) * betas[n - 1]
        x = mean + np.sqrt(variance) * jax.random.normal(keys[T - n], x.shape)
    return x


# %% [markdown]
# The library writes the same step with the denoiser $D(x, t)$ and for any two times $s < t$. It uses one
# `lax.scan`, so the thousand steps are one compiled program, and the model is its argument.
#
# **Predict, then run.** The loop and the library use the same start and the same noise. How far apart
# will the two results be after a thousand steps?


# %% tags=["comparison"]
@partial(jax.jit, static_argnames="steps")
def draw(model, x_start, key, steps=T):
    D = denoiser.denoiser(model, p, "eps")
    return sampling.sample(samplers.ddpm(p), D, x_start, sampling.uniform(steps), key)


x_start = jax.random.normal(jax.random.key(5), (2000, 2))
key = jax.random.key(6)
keys = [jax.random.fold_in(key, i) for i in range(T)]
written_out = algorithm_2(fitted.ema, x_start, keys)
learned, learned_path = draw(fitted.ema, x_start, key)
print(f"largest difference {jnp.abs(written_out - learned).max():.1e}")
# 1000 steps of float32, whose errors the first steps amplify by 1/alpha(1) ≈ 160.
np.testing.assert_allclose(written_out, learned, atol=5e-3)

# %% [markdown]
# ## 4 · Side by side with the oracle
#
# Now we change only the denoiser. The sampler, the start and the noise stay the same. The upper row of
# the figure uses the exact denoiser, which needs no network and no training. The lower row uses ours.
#
# **Predict, then run.** Where will the two clouds differ most: in the middle of the modes, or between
# them?

# %%
exact, exact_path = jax.jit(
    lambda x, key: sampling.sample(samplers.ddpm(p), oracle.denoise, x, sampling.uniform(T), key)
)(x_start, key)


states = {"exact denoiser": np.concatenate([x_start[None], exact_path]),
          "trained network": np.concatenate([x_start[None], learned_path])}  # fmt: skip
color = {"exact denoiser": plots.TRUTH}


def side_by_side(step):
    """Both clouds after `step` steps; 0 is the start."""
    clouds = {name: path[step] for name, path in states.items()}
    return plots.panels(clouds, color=color, limits=(-3, 3), size=5, scale=3.2)


# %% alt="2,000 points at five times, from noise to data; above with the exact denoiser, below with the trained network. Both rows end in three clouds. Below, a few points are left between the clouds."
columns = {f"t = {1 - step / T:g}": step for step in (0, 500, 750, 900, 1000)}
rows = {name: {title: path[step] for title, step in columns.items()}
        for name, path in states.items()}  # fmt: skip
plots.panels(rows, color=color, limits=(-3, 3), size=3, scale=2.1)
plt.show()

# %% [markdown]
# Now we compare numbers. The mean of the exact denoiser's samples must equal the mean of the data, up
# to the chance of 2,000 draws. For the network we use the maximum mean discrepancy (MMD; Gretton et al.
# 2012, eq. 3). It is a squared distance between two clouds, and it scatters around 0 if both come from
# one distribution. We compare it with this scatter, and with the MMD of the noise from which we
# started.

# %%
fresh = np.asarray(oracle.sample(jax.random.key(7), 2000))
means, stds, shares = (np.asarray(a) for a in toy2d.MIXTURE)
mean = shares @ means
variance = shares @ (stds[:, None] ** 2 + means**2) - mean**2
off = np.abs(np.asarray(exact).mean(0) - mean) / np.sqrt(variance / 2000)
print(f"exact denoiser: the mean is {off.max():.1f} standard errors off")
others = [oracle.sample(jax.random.key(40 + i), 2000) for i in range(4)]
scatter = max(abs(metrics.mmd(other, fresh)) for other in others)
start_mmd, learned_mmd = metrics.mmd(x_start, fresh), metrics.mmd(learned, fresh)
print(f"MMD to fresh data (2,000 points): noise {start_mmd:.3f}, network {learned_mmd:.4f}")
print(f"largest of four sets of real data: {scatter:.4f}")


# %%
def between(x):
    """Share of points inside the triangle of the modes, over 4 standard deviations from each."""
    x = np.asarray(x, np.float64)
    distance = np.linalg.norm(x[:, None] - means, axis=-1) / stds
    corners = np.linalg.solve(np.vstack([means.T, np.ones(3)]), np.vstack([x.T, np.ones(len(x))]))
    return np.mean((distance.min(axis=1) > 4) & (corners.min(axis=0) > 0))


print(
    f"between the modes: exact {between(exact):.2%}, network {between(learned):.2%} of 2,000 points"
)

# %% tags=["claims"]
# @title Checked: the mean of the exact samples is right, the network's cloud nearly; it puts points between the modes
assert (off < 4).all()
# A network may be a little worse than real data, but by little beside the noise it began with.
assert abs(learned_mmd) < 0.002 and start_mmd > 0.05
assert abs(learned_mmd) < 4 * scatter  # too coarse for the few points between the modes
# A Gaussian in the plane has exp(−8) = 0.03 % of its points that far out, to all sides together:
# 0.6 of 2,000. The network put 7 of 2,000 between the modes.
assert between(learned) >= 0.001 > between(exact)

# %% [markdown]
# The clouds differ between the modes. Our network leaves a few points on the way from one mode to the next,
# and the exact denoiser leaves none. (The MMD of the whole clouds is too coarse to see so few points.)
#
# **Explorer.** Move the slider through the thousand steps. For many steps the cloud seems to stay
# the same, and then the modes separate. At what time is it decided in which mode a point ends?

# %%
nearest = lambda x: (np.linalg.norm(np.asarray(x)[:, None] - means, axis=-1) / stds).argmin(1)
decided = {}
for t in (0.5, 0.25, 0.1, 0.05):
    state = exact_path[round((1 - t) * T) - 1]
    decided[t] = (nearest(oracle.denoise(state, t)) == nearest(exact)).mean()
    print(f"t = {t}: the guess points to the final mode for {decided[t]:.0%} of 2,000 points")

# %%
stops = [0, 250, 500, *range(600, 1001, 50)]
widgets.explorer(
    widgets.render(side_by_side, stops), [f"t = {1 - i / T:.2f}" for i in stops], slider="steps"
)

# %% tags=["claims"]
# @title Checked: at t = 1/2 the mode is open for many points, at t = 0.05 for hardly any
assert decided[0.5] < 0.75 and decided[0.05] > 0.95

# %% [markdown]
# ## 5 · The average of the weights
#
# With a constant learning rate the weights never settle. They move at random around a good place. An
# exponential moving average (EMA) of the weights estimates this place better than any single step.
# With $d = 0.999$ it averages over about the last 1,000 steps:
#
# $$\bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta. \tag{4}$$
#
# DDPM samples from $\bar\theta$ with $d = 0.9999$ (Ho et al. 2020, appendix B). Our run asks for
# $d = 0.999$, but it is short: a warm-up (see the trap below) keeps the decay at 0.994 even at step 1,500, so
# the average covers about the last 150 steps. We can measure how much it helps, because we know the exact
# denoiser.

# %%
times = (0.1, 0.3, 0.5, 0.7)


def distance_to_oracle(model, x0, eps):
    """Mean squared difference between the model's denoiser and the exact one, at each time."""
    D = denoiser.denoiser(model, p, "eps")
    x = {t: process.add_noise(p, x0, eps, t) for t in times}
    return np.array([jnp.mean((D(x[t], t) - oracle.denoise(x[t], t)) ** 2) for t in times])


pair = jnp.asarray(cloud.x[:4000]), jax.random.normal(jax.random.key(8), (4000, 2))
raw, averaged = distance_to_oracle(fitted.model, *pair), distance_to_oracle(fitted.ema, *pair)
for t, a, b in zip(times, raw, averaged, strict=True):
    print(f"t = {t}: raw weights {a:.5f}, averaged {b:.5f}, {a / b:.0f} times closer")

# %% [markdown]
# **A trap.** The average starts at the random initial weights. If we use $d = 0.9999$ from the first
# step, a share of $d^{2000}$ of them is left after 2,000 steps. The remedy is to let the decay
# grow: $d_n = \min(d, (1+n)/(10+n))$. The library's `update.ema_decay` does this.

# %%
plain = 0.9999**2000
warmed = np.prod([min(0.9999, (1 + n) / (10 + n)) for n in range(2000)])
print(
    f"share of the random weights after 2,000 steps: plain {plain:.0%}, with warm-up {warmed:.0e}"
)

# %% tags=["claims"]
# @title Checked: averaged weights are closer to the oracle; warm-up forgets the random start
assert (averaged < 0.5 * raw).all()  # the same run, the same noise: only the weights differ
assert plain > 0.8 and warmed < 1e-6
assert np.isclose(update.ema_decay(500, 0.9999), 501 / 510)
assert abs(float(update.ema_decay(len(fitted.history.loss), 0.999)) - 0.994) < 5e-4

# %% [markdown]
# ## 6 · Real digits
#
# Now we use the same algorithm with images and a U-Net. (Chapter 04 explains the U-Net. Here you only
# need to know that it takes an image and a time and returns an image.) Four things differ from the
# plane:
#
# - The network predicts $v = \alpha\varepsilon - \sigma x_0$, whose determinant is never 0
#   (chapter 02).
# - The schedule is the cosine (chapter 01, and section 8 below).
# - Times are continuous. We draw one in each of $B$ equal intervals of $(0, 1)$, so that every batch of
#   $B$ images holds every noise level.
# - The network gets the digit's class as an input. We replace a tenth of the labels by "no label", so
#   that one network learns both $D_c = D(x, t \mid \text{class})$ and $D_u = D(x, t)$. Chapter 07 is
#   about this. Here we only use the scale $w$ of $D_u + w\,(D_c - D_u)$. With $w = 1$ it is the
#   conditional network as trained. With $w = 2$ it goes twice as far from the unlabelled one.
#
# For pictures during training we use a quick sampler: 50 steps of DDIM (chapter 06).

# %%
profile = course.profile
digits, unseen = data.load(profile.dataset), data.load(profile.dataset, split="test")
shape = digits.x.shape[1:]
recipe = replace(
    recipes.RECIPES["digits"], dataset=profile.dataset,
    steps=profile.train_steps, batch_size=profile.batch_size,
)  # fmt: skip
p_digits = weights.build_process(recipe.process)
generate = sampling.generator(p_digits, "v", samplers.ddim(p_digits), sampling.uniform(50), shape)
print(f"{len(digits)} images of shape {shape}; {recipe.steps * recipe.batch_size} seen in training")

# %% [markdown]
# **Predict, then run.** After how many images will you recognise the first digit?

# %% alt="Ten digits, drawn after 3,200, 6,400, 12,800 and 76,800 training images. In the first row a few shapes show, in the second all digits can be read; the later rows are cleaner."
stretch = recipe.steps // 24  # of the training
snapshots = {}


def look(step, model):
    if step // stretch in (1, 2, 4, 24):
        snapshots[step] = generate(model, jax.random.key(1), n=10, labels=np.arange(10), w=2.0)


trained = recipes.run(recipe, digits, dtype=profile.dtype, callbacks=[loop.Callback(stretch, look)])
rows_of = [f"{s * recipe.batch_size:,} images" for s in snapshots]
plots.image_grid(list(snapshots.values()), rows_of, scale=0.8)
plt.show()
first_loss = trained.history.loss[0]
expected = 0.5 + 0.5 * np.mean(digits.x**2)  # mean square of v; the squares of α and σ average ½
print(f"loss of the first batch {first_loss:.3f}, mean square of v {expected:.3f}")

# %% [markdown]
# After 3,200 images a few shapes show, and the judge that we meet below reads one digit of the ten. After twice
# as many it reads all ten. From then on they become cleaner.
#
# ### What a practitioner looks at
#
# **The loss over time says little.** It falls fast at first and then slowly, and it cannot tell which
# sample is a digit. The loss *by noise level* says more. It shows at which times the network still
# learns. It also shows whether the network is as good on images that it has never seen.


# %% alt="Left: the loss falls fast at first and then slowly, over 1,200 steps. Right: the squared error of v over time, largest near t = 0; the curve of unseen images lies a little above that of training images."
def error_of_v(model, x0, eps, t, labels):
    return losses.squared_error(model, p_digits, "v", x0, eps, t, labels)


errors = {}
grid_t = np.linspace(0.02, 0.98, 13)
for name, split in (("training images", digits), ("unseen images", unseen)):
    x, y = jnp.asarray(split.x[:360]), jnp.asarray(split.labels[:360])
    errors[name] = metrics.loss_by_time(
        error_of_v, trained.ema, x, y, grid_t, jax.random.key(9), repeats=2
    )
fig, axes = plt.subplots(1, 2, figsize=(9, 3))
trained.history.plot(axes[0])
plots.curves(grid_t, errors, xlabel="time $t$", ylabel="squared error of $v$", ax=axes[1])
plt.show()

# %% [markdown]
# Near $t = 0$ the target $v$ is nearly all noise, and a nearly clean image tells little about this noise.
# Our network has its largest error of $v$ there. This error does little harm, because an error
# of $v$ is multiplied by $\sigma$ in $x_0$ (chapter 02).
#
# The two curves lie close together. So after this short training the network has not memorised its
# images. We check the gap. Then we look at the states on the way, one row for each time. If you see no
# trace of a digit in the row of $t = 1/4$ after a long training, the network has not learned the middle
# of the schedule.

# %% alt="Ten samples on their way, at five times. At t = 1/2 hardly anything can be seen in the noise, at 1/4 shapes can be seen, and at 0 there are digits."
gap = errors["unseen images"].mean() / errors["training images"].mean()
print(f"error on unseen images / on training images: {gap:.2f} (360 images each)")


def ancestral(call):
    """Compiles 250 ancestral steps; call(model) is what stands for the network in them."""

    @jax.jit
    def run(model, start, labels, key):
        D = denoiser.denoiser(call(model), p_digits, "v", labels)
        return sampling.sample(samplers.ddpm(p_digits), D, start, sampling.uniform(250), key)[1]

    return run


noises = jax.random.normal(jax.random.key(12), (200, *shape))
wanted = jnp.arange(200) % 10
states_of = ancestral(lambda model: model)(trained.ema, noises, wanted, jax.random.key(13))
plots.image_grid(
    [noises[:10], *(states_of[k, :10] for k in (62, 124, 187, 249))], stages, scale=0.8
)
plt.show()

# %% [markdown]
# ### Are they digits?
#
# So far we have only looked at the samples. Now we measure. A classifier that was trained on real
# digits only is the judge. Of the 200 ancestral samples (the last row shows ten of them), how many does it
# recognise as the class that we asked for? For the numbers after that we draw 500 samples for each $w$,
# with 50 steps of DDIM (chapter 06), so that we need not wait long.

# %%
expert = recipes.judge_for(profile.dataset)
real_accuracy = metrics.class_accuracy(judge(expert, unseen.x)[0], unseen.labels)
print(f"the judge recognises {real_accuracy:.1%} of {len(unseen)} unseen real digits")
by_ancestral = metrics.class_accuracy(judge(expert, states_of[-1])[0], wanted)
print(f"ancestral sampling, 250 steps: {by_ancestral:.1%} of {len(wanted)} recognised")
quality = measure(
    trained.ema, p_digits, "v", expert, digits, unseen, scales=(1.0, 2.0), samples=profile.samples
)
for w, r in quality.items():
    print(f"w = {w}: {r.accuracy:.1%} of {r.samples} recognised, worst class {r.worst_class:.0%}")

# %% [markdown]
# Accuracy alone does not measure quality. A model that draws one perfect 7 for every "7" would have an
# accuracy of 100 %. So we also report
#
# - the **Fréchet distance** between the judge's features of samples and of training images,
#   $\|m_x-m_y\|^2+\operatorname{tr}(C_x+C_y-2(C_xC_y)^{1/2})$ of their means and covariances (Heusel et
#   al. 2017, eq. 6), beside its floor, the same distance for unseen real digits;
# - the **worst class**, because a mean can hide a class that fails;
# - the distance to the **nearest training image**, beside the same distance for unseen real digits. A
#   model that copies would have a much smaller distance.

# %%
for w, r in quality.items():
    print(
        f"w = {w}: Fréchet {r.frechet:.2f} (floor {r.frechet_floor:.2f}; {r.frechet_samples} images), "
        f"nearest {r.nearest:.2f} (unseen real {r.nearest_real:.2f}), copies {r.exact_copies:.1%}"
    )

# %% tags=["claims"]
# @title Checked: legible, not memorised; w = 2 is more legible and further from the data
assert gap < 1.25 and abs(first_loss - expected) < 0.05
assert all(by_time.argmax() == 0 for by_time in errors.values())
# If 98 % is right, the standard error of a share of 200 is 1 %; this is five of them.
assert by_ancestral >= 0.93
assert quality[1.0].accuracy >= 0.93 and quality[2.0].accuracy >= 0.98
assert quality[1.0].frechet < quality[2.0].frechet  # sharper is not closer to the data
assert quality[2.0].accuracy > quality[1.0].accuracy
assert all(r.worst_class >= 0.7 for r in quality.values())
assert all(0.75 < r.nearest / r.nearest_real < 1.25 for r in quality.values())
assert all(r.exact_copies == 0 for r in quality.values())
# Ten digits for each row of the pictures during training: by chance one of them is read.
in_row = [metrics.class_accuracy(judge(expert, x)[0], np.arange(10)) for x in snapshots.values()]
print("digits read in each row:", in_row)
assert in_row[0] <= 0.3 and min(in_row[1:]) >= 0.8

# %% [markdown]
# Guidance with $w = 2$ makes more digits legible, and it moves the samples *away* from the data. Both
# the accuracy and the Fréchet distance rise. One of these numbers alone would not show this. The
# network copies nothing: the samples are about as far from the training images as unseen real digits
# are.

# %% alt="Ten samples above their nearest training images. In each pair the digit is the same, and strokes and greys differ."
samples = generate(trained.ema, jax.random.key(1), n=10, labels=np.arange(10))
closest, _ = metrics.nearest(samples, digits.x)
plots.image_grid([samples, digits.x[closest]], ["samples, w = 1", "nearest in training"], scale=0.8)
plt.show()

# %% [markdown]
# ## 7 · Break it on purpose: the dead time input
#
# A mistake is easily made here: the code computes the time embedding, but the embedding never reaches
# the layers (or the code passes a constant time). The program runs, and the loss falls.
#
# **Predict, then run.** Such a network does not know how noisy its input is. What will its samples
# look like, in the plane and on digits? We begin with the plane.


# %%
def deaf(model):
    """The model with its time input cut: it always hears 1/2."""
    return lambda x, t, cond=None: model(x, jnp.full_like(t, 0.5), cond)


broken = fit_cloud(lambda model, x, labels, key: objective(deaf(model), x, labels, key))
D_broken = denoiser.denoiser(deaf(broken.ema), p, "eps")
failed, _ = sampling.sample(
    samplers.ddpm(p), D_broken, x_start, sampling.uniform(T), jax.random.key(6)
)

# %% alt="Two figures. The loss with the time cut is flat at about 0.17, and with the time at about 0.13. The samples of the network with time lie in the three clouds of data; those of the network without it spread between the clouds."
smooth = {
    name: np.convolve(np.pad(run.history.loss, (99, 0), "edge"), np.ones(100) / 100, "valid")
    for name, run in (("with time", fitted), ("time cut", broken))
}
plots.curves(np.arange(len(smooth["time cut"])), smooth, log="y",
             xlabel="training step", ylabel="loss, mean of 100")  # fmt: skip
plots.panels({"with time": learned, "time cut": failed}, behind=fresh, limits=(-1.5, 1.5),
             size=3, scale=3.2)  # fmt: skip
plt.show()
falls = np.mean(broken.history.loss[-100:])
failed_mmd = metrics.mmd(failed, fresh)
print(f"loss: {falls:.3f} with the time cut, {flat:.3f} with it")
print(f"MMD to data (2,000 points): {failed_mmd:.4f} with the time cut, {learned_mmd:.4f} with it")

# %% [markdown]
# If you have no other run to compare with, the loss does not show the bug. This test shows it: **change
# $t$ at a fixed $x$, and see whether the output changes.** Use it in every project.


# %%
def hears_the_time(model):
    x = jnp.ones((2, 2)) * 0.3
    return bool(jnp.abs(jnp.diff(model(x, jnp.array([0.2, 0.8])), axis=0)).max() > 1e-3)


print("hears the time:", hears_the_time(fitted.ema), "and, cut,", hears_the_time(deaf(broken.ema)))

# %% tags=["claims"]
# @title Checked: with the time cut the loss falls all the same, and the samples are wrong
assert falls < 0.25  # it fell from 1: without the other curve beside it, nothing looks alarming
assert failed_mmd > 10 * scatter
assert hears_the_time(fitted.ema) and not hears_the_time(deaf(broken.ema))

# %% [markdown]
# ### On images the bug hides
#
# **Predict, then run.** We train the U-Net of section 6 again, with the same recipe, but its time input is
# cut. Of its 200 samples, how many will the judge recognise?

# %% alt="Ten digits of the network with time, and ten of the one whose time is cut. Both rows can be read, and look alike."
recipe_loss = recipes.diffusion_objective(recipe)
cut = loop.fit(
    weights.build(recipe.model, recipe.seed, profile.dtype),
    lambda model, x, labels, key: recipe_loss(deaf(model), x, labels, key),
    data.batches(digits, size=recipe.batch_size, seed=recipe.seed), steps=recipe.steps,
    key=jax.random.key(recipe.seed), ema=recipe.ema,
    optimizer=update.adam(recipe.learning_rate, recipe.steps),
)  # fmt: skip
hidden = ancestral(deaf)(cut.ema, noises, wanted, jax.random.key(13))[-1]
by_cut = metrics.class_accuracy(judge(expert, hidden)[0], wanted)
last_losses = [np.mean(run.history.loss[-100:]) for run in (trained, cut)]
print(f"recognised, of 200: with time {by_ancestral:.1%}, time cut {by_cut:.1%}")
print("loss, last 100 steps: with time {:.3f}, time cut {:.3f}".format(*last_losses))
of_training = judge(expert, digits.x)[1]
to_training = {
    name: metrics.frechet(judge(expert, x)[1], of_training)
    for name, x in (("with time", states_of[-1]), ("cut", hidden), ("unseen", unseen.x[:200]))
}
print("Fréchet distance of 200 images:", {k: f"{d:.2f}" for k, d in to_training.items()})
plots.image_grid([states_of[-1, :10], hidden[:10]], ["with time", "time cut"], scale=0.8)
plt.show()

# %% [markdown]
# The digits are as legible, and their Fréchet distance is nearly the same: 1.85 beside 1.63, and 1.29 for as
# many real digits (one training each). The loss is only about 15 % higher. The bug is the same, but the network
# can read the noise level from the image. Its 64 pixels share one level, and the differences between
# neighbouring pixels show it. A point in the plane has two coordinates only.
#
# We measure this, with the cosine schedule for both. For points, the exact densities give the best guess at
# $t$ that anybody can make from $x_t$. For digits we use something crude: a linear fit on the logarithms of
# four averages over the image, and their powers. The fit sees training digits, and we test it on unseen
# ones. If nothing could be read, the error of $t$ would be $1/\sqrt{12} = 0.29$.


# %%
def roughness(x):
    """Logarithms of mean squares: of the pixels, of differences in 2 directions, and their powers."""
    parts = x, np.diff(x, axis=1), np.diff(x, axis=2), np.diff(np.diff(x, axis=1), axis=2)
    logs = np.stack([np.log(np.mean(part**2, axis=(1, 2, 3))) for part in parts], axis=1)
    return np.concatenate([np.ones((len(x), 1)), logs, logs**2, logs**3], axis=1)


rng, true_t, features = np.random.default_rng(0), {}, {}
for name, split in (("training", digits), ("unseen", unseen)):
    images = np.tile(split.x, (4, 1, 1, 1))
    true_t[name] = rng.random(len(images)).astype(np.float32)
    noise_of = rng.standard_normal(images.shape, np.float32)
    features[name] = roughness(np.asarray(
        process.add_noise(p_digits, images, noise_of, true_t[name])))  # fmt: skip
fit = np.linalg.lstsq(features["training"], true_t["training"])[0]
read = {"a digit, crudely": (true_t["unseen"], features["unseen"] @ fit)}

t_grid = np.linspace(0.005, 0.995, 100)
t_point = jnp.asarray(rng.random(2000), jnp.float32)
x_point = process.add_noise(p_digits, jnp.asarray(cloud.x[:2000]), eps[:2000], t_point)
exact_of = denoiser.gaussian_mixture(p_digits, *toy2d.MIXTURE)
log_density = np.stack([np.asarray(exact_of.log_prob(x_point, t)) for t in t_grid])
chance = np.exp(log_density - log_density.max(axis=0))
read["a point, at best"] = np.asarray(t_point), t_grid @ chance / chance.sum(axis=0)

# %% alt="The time as read from a noisy input, against the true time. For a digit the points follow the diagonal, off by 0.11. For a point in the plane they form a nearly level band, off by 0.25."
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.3), sharey=True)
errors_of_t = {}
for ax, (name, (true, guessed)) in zip(axes, read.items(), strict=True):
    errors_of_t[name] = np.sqrt(np.mean((guessed - true) ** 2))
    ax.plot(true, guessed, ".", ms=3, alpha=0.4, color=plots.PREDICTION)
    ax.plot([0, 1], [0, 1], color=plots.TRUTH, lw=1)
    ax.set(title=f"{name}: off by {errors_of_t[name]:.2f}", xlabel="true time $t$")
axes[0].set(ylabel="$t$, as read from $x_t$", ylim=(-0.1, 1.1))
plt.show()

# %% tags=["claims"]
# @title Checked: with the time cut digits stay legible; even a crude reader finds t in a digit
assert by_cut > 0.9  # 200 samples: a standard error of at most 2 %
assert to_training["cut"] < 1.5 * to_training["with time"]
assert to_training["unseen"] < to_training["with time"]
assert 1.05 < last_losses[1] / last_losses[0] < 1.3  # measured 1.15
# 1,440 noisy digits and 2,000 points: a root mean square is known to 2 or 3 %.
assert errors_of_t["a digit, crudely"] < 0.5 * errors_of_t["a point, at best"]
assert 0.2 < errors_of_t["a point, at best"] < 1 / np.sqrt(12)
image = 0.3 * jnp.ones((2, *shape))
assert hears_the_time(lambda _, t: trained.ema(image, t, jnp.zeros(2, int)))
assert not hears_the_time(lambda _, t: deaf(cut.ema)(image, t, jnp.zeros(2, int)))

# %% [markdown]
# Even the crude reader of digits makes less than half the error of the best reader of points. So legible
# samples do not prove that the time arrives. Sun et al. 2025 took the time input out of many published
# models on purpose, and most of them became only a little worse. The test above finds the bug in any
# dimension: change $t$ at a fixed $x$.
#
# ### A schedule that the network has never seen
#
# A related bug: the network was trained with one schedule, and the sampler uses another one. Some code
# trains on a table of $\beta$ and then samples with $\bar\alpha = 1 - t$, "since it also falls from 1 to
# 0". The network hears the time and expects the noise level of *its* schedule at that time.
#
# **Predict, then run.** We take a *perfect* predictor of $\varepsilon$ for the linear schedule, and draw
# with $\bar\alpha = 1 - t$, in 1,000 steps. Will the three clouds be there?

# %% alt="Samples over three clouds of data. With its own schedule they lie in the clouds. With another schedule the clouds are there, but wider."
straight = process.from_betas(1 / np.arange(T, 0, -1))  # ᾱ_n = 1 − n/T


def perfect(x, t, cond=None):
    """Predicts ε exactly, for points that were noised with the linear schedule."""
    return parameterization.to_eps("x0", p, oracle.denoise(x, t), x, t)


def spreads(x):
    """Spread of the points around each mode, over the right one, which is 1."""
    mode, x = nearest(x), np.asarray(x, np.float64)
    return np.array([np.sqrt(np.mean((x[mode == k] - means[k]) ** 2)) / stds[k] for k in range(3)])


trusting = {
    "its own schedule": denoiser.gaussian_mixture(straight, *toy2d.MIXTURE).denoise,
    "another schedule": denoiser.denoiser(perfect, straight, "eps"),
}
x_first = process.add_noise(straight, jnp.asarray(fresh), x_start, 1 - 1 / T)  # a fair start
drawn_with = {}
for name, guess_of in trusting.items():
    drawn_with[name], _ = sampling.sample(
        samplers.ddpm(straight), guess_of, x_first, sampling.uniform(T)[1:], jax.random.key(6)
    )
for name, x in drawn_with.items():
    print(f"{name}: spread of each cloud {spreads(x).round(2)}, share of the largest "
          f"{np.mean(nearest(x) == shares.argmax()):.1%} (right: {shares.max():.0%})")  # fmt: skip
plots.panels(drawn_with, behind=fresh, limits=(-1.5, 1.5), size=3, scale=3.2)
plt.show()

# %% tags=["claims"]
# @title Checked: with another schedule even a perfect network draws clouds that are too wide
assert np.allclose(straight.alpha(0.25) ** 2, 0.75, atol=1e-4)
# The smallest cloud has about 400 points: the standard error of its spread is 2.5 %.
own, mixed_up = drawn_with["its own schedule"], drawn_with["another schedule"]
assert np.all(spreads(own) < 1.05) and 0.78 < spreads(own).min() < 0.88
assert np.all(spreads(mixed_up) > 1.05) and np.sort(spreads(mixed_up))[1] > 1.15
assert abs(np.mean(nearest(own) == shares.argmax()) - shares.max()) < 0.05
# 2,000 points: the standard error of a share of one half is 1.1 %.
assert np.mean(nearest(mixed_up) == shares.argmax()) < shares.max() - 0.02

# %% [markdown]
# The clouds are there, so the bug is easy to overlook. But all three are too wide, two of them by a fifth,
# and the largest one gets too few points. (With its own schedule they come out too narrow, the smallest by
# 17 %. The last steps lose it, section 3, and those of this schedule are coarse.) The network is perfect, so no
# training repairs this. The remedy: keep the schedule with the weights. In this course the card of released weights names it.
#
# ## 8 · Linear against cosine
#
# Does the schedule matter if the network is perfect? It does if we take few steps. We use the *exact*
# denoiser, so that only the schedule differs. Then we draw 4,000 points with fewer and fewer ancestral
# steps.
#
# **Predict, then run.** The linear schedule destroys the data faster (chapter 01). Which of the two will
# need more steps for the same quality?

# %% alt="The Fréchet distance against the number of steps, from 5 to 50, both axes logarithmic. Both schedules fall, and the cosine lies below the linear one everywhere."
counts = (5, 10, 20, 50)
distance = {"linear": [], "cosine": []}
for name, made in (("linear", process.linear_betas(T)), ("cosine", process.cosine_betas(T))):
    chain = process.from_betas(made)
    ancestor = samplers.ddpm(chain)
    exact_chain = denoiser.gaussian_mixture(chain, *toy2d.MIXTURE)
    real = exact_chain.sample(jax.random.key(31), 4000)
    x = jax.random.normal(jax.random.key(32), (4000, 2))
    for count in counts:
        grid = sampling.uniform(count)
        drawn, _ = sampling.sample(ancestor, exact_chain.denoise, x, grid, jax.random.key(33))
        distance[name].append(metrics.frechet(drawn, real))
ax = plots.curves(
    counts, distance, xlabel="number of steps", ylabel="Fréchet distance", log="xy", label_at=0.5
)
ax.set_xticks(counts, counts)
ax.minorticks_off()
plt.show()
for count, linear, cosine in zip(counts, *distance.values(), strict=True):
    print(f"{count:3} steps: linear {linear:.4f}, cosine {cosine:.4f} (4,000 points)")
fresh_sets = [exact_chain.sample(jax.random.key(40 + i), 4000) for i in range(5)]
print(f"two sets of real points: at most {max(metrics.frechet(z, real) for z in fresh_sets):.4f}")

# %% tags=["claims"]
# @title Checked: up to 20 steps the linear schedule is at least twice as far from the data
ratio = np.array(distance["linear"]) / np.array(distance["cosine"])
assert (ratio[:3] > 2).all()  # up to 20 steps; at 50 the cosine is as close as real points are
assert distance["cosine"][-1] < 1.5 * max(metrics.frechet(z, real) for z in fresh_sets)
# Five steps on the cosine do what takes ten on the linear schedule.
assert distance["cosine"][0] < 1.2 * distance["linear"][1]

# %% [markdown]
# The linear schedule needs more steps. Why? An answer that comes to mind: with equal steps of $t$ it takes
# many of them at levels where almost only noise is left, and they are wasted. But a grid also has a *last
# stop*. From there the sampler jumps to the guess, and what the guess averages is lost.
#
# **Predict, then run.** We change the linear grid of five steps, one thing at a time. First we move the last stop
# alone. Then we take the other stops out of the noise as well. For the cosine we do the reverse: its last stop
# goes to where the linear one was (and the stop before must give way). Which change matters more?

# %%
trials = {
    "linear, equal steps": ("linear", (0.8, 0.6, 0.4, 0.2)),
    "linear, last stop moved": ("linear", (0.8, 0.6, 0.4, 0.1)),
    "… and none in the noise": ("linear", (0.6, 0.43, 0.27, 0.1)),
    "cosine, equal steps": ("cosine", (0.8, 0.6, 0.4, 0.2)),
    "cosine, last stop as linear": ("cosine", (0.8, 0.6, 0.5, 0.392)),
}
of_stops = {}
print("five steps                      log-SNR: first stop   last stop   Fréchet distance")
for name, (kind, inner) in trials.items():
    chain = process.from_betas(getattr(process, f"{kind}_betas")(T))
    exact_chain = denoiser.gaussian_mixture(chain, *toy2d.MIXTURE)
    grid = np.array([1, *inner, 0], np.float32)
    drawn, _ = sampling.sample(
        samplers.ddpm(chain), exact_chain.denoise, x, grid, jax.random.key(33)
    )
    of_stops[name] = metrics.frechet(drawn, real)
    first, last = chain.log_snr(grid[[1, -2]])
    print(f"{name:30} {first:21.2f} {last:11.2f} {of_stops[name]:18.4f}")

# %% tags=["claims"]
# @title Checked: the last stop halves the error, the steps out of the noise save a third of the rest
wasteful, moved, both, even, late = of_stops.values()
assert moved < 0.65 * wasteful and both < 0.8 * moved and moved - both < wasteful - moved
assert late > 3 * even and late > 0.7 * wasteful

# %% [markdown]
# The last stop matters most. Moved alone, it halves the error of the linear schedule, and the cosine, stopped as
# early as the linear, is nearly as bad. Once the last stop is good, the steps in the noise count as well: without
# them a good third of the rest is gone. So the schedules differ in the noise levels at which a *grid* of equal
# steps stops, and above all in the last one. The exact denoiser is equally good on both schedules. (Here the
# Fréchet distance compares the means and covariances of the points themselves.)

# %% [markdown]
# ## 9 · Recap
#
# **The question** was how a network that only removes noise can draw a digit that nobody wrote. The network
# knows only averages. Each short step needs nothing more than an average, because its mean is linear in
# $x_0$. The fresh noise of the step then decides what the average leaves open. After it fewer digits are
# possible, and the next average is sharper. The last one is a single digit. It is a new one: the
# network does not repeat its training set (section 6).

# %% [markdown]
# In five lines:
#
# 1. Training draws a step, adds noise, guesses the noise and squares the difference. The loss has a floor
#    above 0.
# 2. Sampling puts the guess into the posterior $q(x_s \mid x_t, x_0)$ and draws from it. The last step
#    adds no noise.
# 3. Sample from the average of the weights, and let its decay warm up.
# 4. Judge by accuracy, the worst class, Fréchet distance *and* nearest neighbours. Give each number
#    beside the same number for real data, and say how many samples you used. The loss says little.
# 5. With a dead time input the loss falls all the same, and digits even look right. Test that the output
#    changes with $t$. Sample with the schedule that the network was trained with.

# %% [markdown]
# **Try it yourself.** (a) `samplers.ddpm(p, variance="transition")` takes $\beta$ instead of
# $\tilde\beta$. With `oracle.denoise` and `sampling.uniform(20)`, which moments change? (b) Leave out the
# noise $z$ in `algorithm_2`. What is the standard deviation of each mode? (c) Train on
# `data.load("toy2d", kind="checkerboard")`. Some points fall into no square: where do they lie? (d) Cut the
# time input of a U-Net that predicts $\varepsilon$ on the linear schedule. Are its digits as good?
#
# **Words introduced.** Ancestral sampling, simple loss, exponential moving average, warm-up, dead time
# input, maximum mean discrepancy, Fréchet distance, judge.
#
# **Read on.** Ho, Jain & Abbeel 2020, *Denoising Diffusion Probabilistic Models*, NeurIPS
# ([arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). Nichol & Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, ICML
# ([arXiv:2102.09672](https://arxiv.org/abs/2102.09672)). Salimans & Ho 2022, *Progressive Distillation for Fast Sampling of Diffusion
# Models*, ICLR (arXiv:2202.00512), appendix D, for $v$. Sun, Jiang, Zhao & He 2025, *Is Noise
# Conditioning Necessary for Denoising Generative Models?* (arXiv:2502.13129). Gretton et al. 2012, *A
# Kernel Two-Sample Test*, JMLR 13. Heusel et al. 2017, *GANs Trained by a Two Time-Scale Update Rule*,
# NeurIPS (arXiv:1706.08500).
