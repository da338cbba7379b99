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
# # 07 · Guidance
#
# **The question.** We ask a model for a seven, and it draws something that might be a seven. How do we get a
# clear seven, and what does this cost?
#
# At the end of this chapter you will be able to
#
# - derive classifier guidance from Bayes' rule, and check it against an exact answer;
# - write classifier-free guidance from memory, with one evaluation of the network per step;
# - train a network for it, and recognise a network that was not trained for it;
# - convert the guidance scale of any paper into that of any other paper;
# - draw the curve of quality against diversity, find its elbow, and repair samples of a model that was guided
#   too hard;
# - say what a negative prompt does, and what it does not do.
#
# **You need** chapters 02 and 03; chapter 06 helps. **Time**: about 85 minutes of reading. The notebook
# itself runs for about two minutes on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from diffusion_course import data, denoiser, guidance, losses, parameterization, process, samplers
from diffusion_course import sampling, weights
from diffusion_course.data import toy2d
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.models.layers import Linear, TimeEmbedding
from diffusion_course.models.mlp import MLP
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import loop
from diffusion_course.weights import features

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# The picture has ten classes and ten noises. Each column starts from the same noise in all four rows, and
# goes through the same network. Only one number differs, the **guidance scale** $w$. At $w = 0$ the class
# is ignored. At $w = 1$ the network does what it was trained to do. Above 1 it exaggerates the class.
#
# One compiled program makes all MNIST pictures of this chapter, thirty at a time. In it $w$ is an array
# with one entry per image, so a new $w$ needs no new program. The solver is DPM-Solver++(2M) from chapter 06,
# with 12 steps.

# %% alt="Ten noises, one in each column, at four guidance scales. At w = 0 the digits are not those that were asked for. At 1 most of them are, some hard to read. At 3 one is still broken, and at 8 all ten are clear and bold."
mnist = weights.load("mnist")
p = mnist.process  # the cosine process; the digits and the points below use the same one
scales = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10], np.float32)


@jax.jit
def draw(model, x_start, labels, w):
    """Guided samples from this noise; w is one scale per image [B, 1, 1, 1]."""
    null = jnp.full_like(labels, model.null_label)
    D = guidance.classifier_free_batched(model, p, "v", labels, null, w)
    solver, times = samplers.dpm_solver_pp_2m(p), sampling.uniform(12)
    return sampling.sample(solver, D, x_start, times, jax.random.key(0))[0]


thirty = jax.random.normal(jax.random.key(2), (30, 28, 28, 1))
thrice = jnp.tile(jnp.arange(10), 3)
at = {
    float(w): np.asarray(draw(mnist.model, thirty, thrice, jnp.full((30, 1, 1, 1), w)))
    for w in scales
}
plots.image_grid([at[v][10:20] for v in (0, 1, 3, 8)], ["w = 0", "w = 1", "w = 3", "w = 8"])
plt.show()

# %% [markdown]
# ## 2 · Bayes' rule, once for every noise level
#
# Somebody gives us a model that knows nothing of classes, and a classifier. Can we draw a class with them?
# Bayes' rule holds for noisy states as well as for clean ones. Its denominator does not depend on $x_t$, so
# it disappears from the gradient:
#
# $$\nabla \log p(x_t \mid y) = \nabla \log p(x_t) + \nabla \log p(y \mid x_t) \tag{1}$$
#
# Tweedie's formula (chapter 02) turns scores into denoisers and noise predictions:
#
# $$D(x_t \mid y) = D(x_t) + \frac{\sigma^2}{\alpha}\,\nabla \log p(y \mid x_t), \qquad
#   \hat\varepsilon = \varepsilon - \sigma\,\nabla \log p(y \mid x_t) \tag{2}$$
#
# (Dhariwal & Nichol 2021, section 4 and eq. 14). This is **classifier guidance**: the classifier pushes the
# sample towards the class. With a factor $s = 2$ before the gradient, the push is twice as strong.

# %% [markdown]
# In the plane we know everything in (2) exactly: each of the three clouds is a class. The library's
# `guidance.classifier` takes any denoiser and any $\log p(y \mid x_t)$, and differentiates the latter.
#
# **Predict, then run.** With the exact classifier, how close does the result come to the exact denoiser of a
# class?

# %% tags=["comparison"]
means, stds, shares = toy2d.MIXTURE
mixture = denoiser.gaussian_mixture(p, means, stds, shares)
classes = [denoiser.gaussian_mixture(p, means[[k]], stds[[k]], [1.0]) for k in range(3)]


def log_class(k):
    """log p(class k | x_t) by Bayes' rule; logarithms all the way, so that nothing is log(0)."""
    return lambda x, t: jnp.log(shares[k]) + classes[k].log_prob(x, t) - mixture.log_prob(x, t)


points = 0.3 + 1.2 * jax.random.normal(jax.random.key(0), (300, 2))
for t in (0.05, 0.3, 0.6, 0.95):
    gap = 0.0
    for k in range(3):
        by_bayes = guidance.classifier(mixture.denoise, p, log_class(k))(points, t)
        gap = max(gap, float(jnp.abs(by_bayes - classes[k].denoise(points, t)).max()))
    print(f"t = {t:.2f}: largest difference {gap:.0e}")
    # Logits are of order |x|²/(2v): at t = 0.05 hundreds, in float32; near t = 1 alpha divides.
    assert gap < 1e-4

# %% [markdown]
# The two agree up to rounding, because Bayes' rule is an identity. In the picture below, the grey tone is
# $p(y \mid x_t)$ for the upper cloud. On the left is the move from $x_t$ to $D(x_t)$, without a class. In
# the middle is what the classifier adds. On the right is the sum of the two, which sends every point to the
# wanted cloud. (A quarter of each arrow is drawn. The blue points are the clouds' centres without noise,
# where $D$ points to. At this $t$ the centres of the noisy clouds lie nearer to 0.)

# %% alt="Arrows in the plane over three points, grey where the wanted cloud is probable. Without a class they lead to all three. The classifier's push leads upwards, into the grey. Their sum leads to the upper point from everywhere."
AT, WANTED = 0.4, 1  # a time in the middle, and the upper cloud
ticks = np.linspace(-1.7, 1.7, 61)
tail, fine = jnp.asarray(plots.plane(-1.5, 1.5, 10)), jnp.asarray(plots.plane(-1.7, 1.7, 61))
probability = np.exp(log_class(WANTED)(fine, AT)).reshape(61, 61)
without, with_class = mixture.denoise(tail, AT), classes[WANTED].denoise(tail, AT)
moves = {"no class: $D(x_t)$": without - tail, "the classifier's push": with_class - without,
         "the sum: $D(x_t | y)$": with_class - tail}  # fmt: skip
centres = dict.fromkeys(moves, means)
fig = plots.panels(centres, color=plots.DATA, size=60, alpha=1, limits=(-1.7, 1.7), scale=3.4)
for ax, (title, move) in zip(fig.axes, moves.items(), strict=True):
    grey = {"cmap": "Greys", "alpha": 0.45, "zorder": 0}
    ax.contourf(ticks, ticks, probability, np.linspace(0, 1, 6), **grey)
    colour = plots.TRUTH if "push" in title else plots.PREDICTION
    plots.arrows(ax, tail, tail + move, colour, scale=0.25)
plt.show()

# %% [markdown]
# ### Three ways to get it wrong
#
# None of these three raises an error, and all three are easy to write.
#
# - **A missing $\sigma$**: the gradient itself is subtracted from $\varepsilon$.
# - **A batch mean**: in deep learning one usually averages over the batch. But the gradient of a mean is
#   divided by the batch size.
# - **A raw logit**: the gradient of the class's own logit, here $\log\big(p(y)\,p(x_t|y)\big)$, without the
#   softmax that makes it a probability.
#
# **Predict, then run.** What happens to the second one when the batch grows from 4 to 400?

# %%
alpha, sigma = float(p.alpha(AT)), float(p.sigma(AT))


def pushed(x, log_p, total, factor):
    push = jax.grad(lambda x: total(log_p(x, AT)))(x)
    return mixture.denoise(x, AT) + factor * push


def raw_logit(x, t):
    return jnp.log(shares[WANTED]) + classes[WANTED].log_prob(x, t)


tries = {
    "right": (log_class(WANTED), jnp.sum, sigma**2 / alpha),
    "missing sigma": (log_class(WANTED), jnp.sum, sigma / alpha),
    "batch mean": (log_class(WANTED), jnp.mean, sigma**2 / alpha),
    "raw logit": (raw_logit, jnp.sum, sigma**2 / alpha),
}

# %%
rms = lambda difference: float(jnp.sqrt(jnp.mean(difference**2)))
error = {}
for size in (4, 400):
    x = 0.3 + 0.8 * jax.random.normal(jax.random.key(1), (size, 2))
    wanted = classes[WANTED].denoise(x, AT)
    for name, settings in tries.items():
        error[name, size] = rms(pushed(x, *settings) - wanted)
    error["no guidance", size] = rms(mixture.denoise(x, AT) - wanted)
for name in (*tries, "no guidance"):
    print(f"{name:14s} error {error[name, 4]:.5f} in a batch of 4, {error[name, 400]:.5f} of 400")

# %% tags=["claims"]
# @title Checked: only the right one is right, and the batch mean fades with the batch
push = error["no guidance", 400]
# Exact but for rounding; the others are wrong by a good share of the whole push.
assert max(error["right", 4], error["right", 400]) < 1e-5
assert error["missing sigma", 400] > 0.3 * push and error["raw logit", 400] > 0.3 * push
# In a batch of 400 a 400th of the push is left: the class is all but ignored.
np.testing.assert_allclose(error["batch mean", 400], (1 - 1 / 400) * push, rtol=1e-3)
np.testing.assert_allclose(error["batch mean", 4], 3 / 4 * error["no guidance", 4], rtol=1e-3)

# %% [markdown]
# The batch mean is the most dangerous mistake. It works in a test with one example, and its push becomes
# weaker as the batch grows. The remedy is to differentiate the **sum**. Each term depends on its own
# example only, so each example gets its own gradient. This test finds the mistake: the result must not
# depend on the other examples in the batch.

# %% [markdown]
# ## 3 · The classifier must have seen noise
#
# Classifiers are usually trained on clean images. But (2) asks for $p(y \mid x_t)$ *at the noise level
# $t$*. We train the same small network twice. One network gets points at all noise levels together with
# their time, and the other one gets clean points only.


# %%
class PointClassifier(nnx.Module):
    """Points [B, 2] and times [B] -> logits of the three classes [B, 3]."""

    def __init__(self, width=64, *, rngs):
        self.time = TimeEmbedding(width, rngs=rngs)
        self.first, self.hidden = Linear(2, width, rngs=rngs), Linear(width, width, rngs=rngs)
        self.last = Linear(width, 3, rngs=rngs)

    def __call__(self, x, t):
        h = jax.nn.silu(self.first(x) + self.time(t))
        return self.last(jax.nn.silu(self.hidden(h)))


cloud = data.load("toy2d", kind="mixture", n=20_000)


def fit(model, loss):
    return loop.fit(
        model, loss, data.batches(cloud, size=512, seed=0), steps=1500,
        key=jax.random.key(0), optimizer=optax.adam(3e-3),
    ).ema  # fmt: skip


# %%
def cross_entropy(noisy):
    def loss(model, x, y, key):
        key_t, key_eps = jax.random.split(key)
        t = losses.stratified_times(key_t, len(x)) if noisy else jnp.zeros(len(x))
        x = process.add_noise(p, x, jax.random.normal(key_eps, x.shape), t)
        return optax.softmax_cross_entropy_with_integer_labels(model(x, t), y).mean()

    return loss


trained = {
    name: fit(PointClassifier(rngs=nnx.Rngs(0)), cross_entropy(noisy=name == "noise-aware"))
    for name in ("noise-aware", "clean only")
}


def learned_log_class(model, k, clean):
    """log p(class k | x_t) of a network; the clean one knows no other time than 0."""

    def log_p(x, t):
        t = jnp.zeros(len(x)) if clean else jnp.broadcast_to(t, len(x))
        return jax.nn.log_softmax(model(x, t))[:, k]

    return log_p


# %% [markdown]
# First we compare the gradients with the exact ones at noisy points. The number is the size of the error,
# divided by the size of the exact gradient. Then we draw 2,000 samples of the upper cloud with the exact
# denoiser and each classifier.
#
# **Predict, then run.** A classifier of clean points is very sure of its answers, and it is just as sure at
# noisy points. What will its push be like at $t = 0.9$, where one can hardly know the class?


# %%
def slope(log_p, x, t):
    return jax.grad(lambda x: log_p(x, t).sum())(x)


eps = jax.random.normal(jax.random.key(5), (2000, 2))
gradients = {}
for t in (0.1, 0.3, 0.5, 0.7, 0.9):
    x = process.add_noise(p, jnp.asarray(cloud.x[:2000]), eps, t)
    exact = slope(log_class(WANTED), x, t)
    for name, model in trained.items():
        log_p = learned_log_class(model, WANTED, clean=name == "clean only")
        gradients[name, t] = rms(slope(log_p, x, t) - exact) / rms(exact)
    print(f"t = {t}: error of the gradient / its size: noise-aware "
          f"{gradients['noise-aware', t]:.2f}, clean only {gradients['clean only', t]:.1f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the clean classifier's gradient is many times too large
# Measured with three seeds: noise-aware .1 to .5, the clean one 5 at t = .3 and 145 at t = .9.
assert all(gradients["noise-aware", t] < 1 for t in (0.1, 0.3, 0.5, 0.7, 0.9))
assert gradients["clean only", 0.5] > 5 and gradients["clean only", 0.9] > 50
# As t grows the exact gradient goes to 0, and the clean classifier's does not.
longer = {name: [rms(slope(log_p, process.add_noise(p, jnp.asarray(cloud.x[:2000]), eps, t), t))
                 for t in (0.3, 0.9)]
          for name, log_p in (("exact", log_class(WANTED)), ("clean", learned_log_class(
              trained["clean only"], WANTED, clean=True)))}  # fmt: skip
assert longer["exact"][1] < 0.1 * longer["exact"][0]
assert longer["clean"][1] > 0.3 * longer["clean"][0]


# %% alt="Samples over the wanted cloud, guided by three classifiers. With the exact one and with the one that has seen noise, they lie on the cloud. With the one that knows clean points only, many fly far away in two wings."
def points_from(D, x_start, steps=100):
    times = sampling.uniform(steps)
    return np.asarray(sampling.sample(samplers.ddim(p), D, x_start, times, jax.random.key(0))[0])


noise_2d = jax.random.normal(jax.random.key(1), (2000, 2))
drawn = {"exact": points_from(classes[WANTED].denoise, noise_2d)}
for name, model in trained.items():
    log_p = learned_log_class(model, WANTED, clean=name == "clean only")
    drawn[name] = points_from(guidance.classifier(mixture.denoise, p, log_p), noise_2d)

upper_cloud = np.asarray(classes[WANTED].sample(jax.random.key(9), 2000))
fig, axes = plt.subplots(1, 3, figsize=(11, 3.7))
for ax, (name, x) in zip(axes, drawn.items(), strict=True):
    plots.points(ax, upper_cloud, plots.DATA, size=4, alpha=0.3)
    plots.points(ax, x, plots.PREDICTION, size=4, alpha=0.4)
    xlim, ylim = ((-4, 5), (-1, 8)) if name == "clean only" else ((-1, 2), (-1, 2))
    ax.set(title=f"{name} classifier", xlim=xlim, ylim=ylim, xlabel="$x_1$", ylabel="$x_2$")
plt.show()

# %%
stray = lambda x: np.mean(np.linalg.norm(x - means[WANTED], axis=1) > 4 * stds[WANTED])
distance = {name: metrics.frechet(x, upper_cloud) for name, x in drawn.items()}
for name, x in drawn.items():
    print(f"{name:12s} Fréchet distance to the cloud {distance[name]:.4f}, "
          f"outside it {stray(x):.1%}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the clean classifier throws points out of their cloud
# 2,000 points; a Gaussian has 0.03 % beyond 4 standard deviations. Three seeds of the clean one
# gave 63 to 68 % and distances above 8, of the noise-aware one at most 0.1 % and 0.001.
assert stray(drawn["noise-aware"]) < 0.01 and stray(drawn["clean only"]) > 0.5
assert distance["noise-aware"] < 0.01 < 1 < distance["clean only"]
# The wedge: a sixth of a round cloud lies within 30° of straight down, with a standard error of .8 %.
down = {name: np.mean(np.abs(x - means[WANTED])[:, 0] < (means[WANTED] - x)[:, 1] * np.tan(np.pi / 6))
        for name, x in drawn.items()}  # fmt: skip
assert abs(down["exact"] - 1 / 6) < 4 * 0.0083 and down["noise-aware"] > 1 / 6 + 4 * 0.0083

# %% [markdown]
# With the clean classifier, most points end far outside their cloud: look at the scale of the right panel.
# The exact *gradient* goes to 0 as $t \to 1$, because nothing can be known of the class there. The factor
# $\sigma^2/\alpha$ in (2) grows, and both together give a finite push. The clean classifier's gradient does
# not go to 0. It is more than fifty times too large, and the same factor multiplies it.
#
# (The noise-aware panel is good, but not perfect: a wedge below the centre is denser than it should be. The
# Fréchet distance does not show this, because it uses only means and covariances.)
#
# Classifier guidance needs a second network, trained for this process and this noise. So we look for a method
# without a classifier.

# %% [markdown]
# ## 4 · Guidance without a classifier
#
# A network that knows labels also contains a classifier. To see it, we solve (1) for the classifier's
# gradient: $\nabla \log p(y|x_t) = \nabla\log p(x_t|y) - \nabla\log p(x_t)$. This is the **implicit
# classifier**. We put it into (1) with strength $w$ and turn scores into denoisers. With $w = 2$ we go
# twice as far along the difference between the guess with the label and the guess without it:
#
# $$D_w(x_t) = D(x_t) + w\,\big(D(x_t \mid y) - D(x_t)\big) \tag{3}$$
#
# At $w=0$ this is the unconditional denoiser, at $w=1$ the conditional one. Ho & Salimans (2022, eq. 6)
# write it for the noise, and count the scale from the conditional network:
#
# $$\tilde\varepsilon = (1 + w')\,\varepsilon(x_t, y) - w'\,\varepsilon(x_t), \qquad w = 1 + w' \tag{4}$$
#
# Both say the same. The reason: $\varepsilon$, $v$ and the score are $x_0$ times a common factor plus a
# common term (chapter 02), and the weights add up to 1.

# %% tags=["comparison"]
some = points[:50]
c, u = classes[WANTED].denoise(some, AT), mixture.denoise(some, AT)
guided = guidance.classifier_free(classes[WANTED].denoise, mixture.denoise, 3.0)(some, AT)
for kind in ("eps", "v", "score"):
    # Every kind is a function of x0 and x_t; eps and x0 give the others (chapter 02).
    y_c, y_u = (
        parameterization.target(kind, p, x0, parameterization.to_eps("x0", p, x0, some, AT), AT)
        for x0 in (c, u)
    )
    mixed = (1 + 2.0) * y_c - 2.0 * y_u  # equation (4) with w' = 2
    # float32, with errors that w and the conversion magnify.
    np.testing.assert_allclose(parameterization.to_x0(kind, p, mixed, some, AT), guided, atol=1e-4)
by_classifier = guidance.classifier(mixture.denoise, p, log_class(WANTED), scale=3.0)(some, AT)
np.testing.assert_allclose(by_classifier, guided, atol=1e-4)
print("guiding eps, v, score or x0 is the same; and so is the exact classifier with s = w = 3")

# %% [markdown]
# ### The algorithm
#
# Here is sampling as in the paper (algorithm 2), with the step of DDIM. Our network predicts $v$, so we mix
# $v$ and compute $\hat x_0$ and $\hat\varepsilon$ from it. The network is the released one for the 8×8
# digits.
#
# The paper counts its scale $w'$ from the conditional network. So the library's $w$ must be one more.


# %%
def algorithm_2(model, x, labels, w_paper, steps=20):
    """Sampling with classifier-free guidance (Ho & Salimans 2022, algorithm 2): two calls."""
    null = jnp.full_like(labels, model.null_label)
    predict = jax.jit(lambda model, x, t, labels: model(x, jnp.full(len(x), t), labels))
    times = sampling.uniform(steps)
    for t, s in pairwise(times):
        alpha_t, sigma_t, alpha_s, sigma_s = p.alpha(t), p.sigma(t), p.alpha(s), p.sigma(s)
        v_conditional = predict(model, x, t, labels)
        v_unconditional = predict(model, x, t, null)
        v = (1 + w_paper) * v_conditional - w_paper * v_unconditional
        x0, eps = alpha_t * x - sigma_t * v, sigma_t * x + alpha_t * v
        x = alpha_s * x0 + sigma_s * eps
    return x


# %% tags=["comparison"]
digits = weights.load("digits")
noise_8x8, label_8x8 = jax.random.normal(jax.random.key(3), (20, 8, 8, 1)), jnp.arange(20) % 10


@jax.jit
def library(model, x, labels, w):
    null = jnp.full_like(labels, model.null_label)
    D = guidance.classifier_free_batched(model, p, "v", labels, null, w)
    return sampling.sample(samplers.ddim(p), D, x, sampling.uniform(20), jax.random.key(0))[0]


written_out = algorithm_2(digits.model, noise_8x8, label_8x8, w_paper=2.0)
compiled = library(digits.model, noise_8x8, label_8x8, w=3.0)
print(f"largest difference {jnp.abs(written_out - compiled).max():.1e}")
# Two float32 programs that add in another order, over 20 steps; guidance magnifies threefold.
np.testing.assert_allclose(written_out, compiled, atol=2e-3)

# %% [markdown]
# ### One evaluation, not two
#
# The loop calls the network twice per step. The library calls it once, with twice the batch: it repeats the
# states, and puts as many null labels after the labels. The arithmetic is the same. But one large call uses
# a processor better than two small ones, above all on an accelerator.

# %% tags=["comparison"]
toy = weights.load("toy2d")
batches = []


def recorded(x, t, cond):
    batches.append(len(x))
    return toy.model(x, t, cond)


forty, y40, null40 = points[:40], jnp.arange(40) % 3, jnp.full(40, toy.model.null_label)
D_c, D_u = (denoiser.denoiser(recorded, p, "v", cond) for cond in (y40, null40))
twice = guidance.classifier_free(D_c, D_u, 3.0)(forty, 0.5)
once = guidance.classifier_free_batched(recorded, p, "v", y40, null40, 3.0)(forty, 0.5)
print("batches that the network saw:", batches)
assert batches == [40, 40, 80]
np.testing.assert_allclose(once, twice, atol=1e-4)  # float32

# %% [markdown]
# ## 5 · Drop the label in training
#
# We have only one network. So where does $D(x_t)$ come from? It comes from training: we replace a tenth of
# the labels by a **null class**, which is a label of its own (Ho & Salimans 2022, algorithm 1). For the
# null class the network learns the average over all classes.

# %%
drop = losses.drop_labels(jax.random.key(0), jnp.asarray(cloud.labels), 3, 0.1)
dropped = float(jnp.mean(drop == 3))
print(f"{dropped:.2%} of {len(drop):,} labels dropped; the others are unchanged: "
      f"{bool(jnp.all((drop == 3) | (drop == cloud.labels)))}")  # fmt: skip


def fit_with(rate):
    """A conditional network of the points; this share of its labels is dropped."""

    def loss(model, x, y, key):
        key_drop, key_loss = jax.random.split(key)
        y = losses.drop_labels(key_drop, y, null=3, rate=rate)
        return losses.diffusion_loss(model, p, "v", x, y, key_loss)

    return fit(MLP(num_classes=3, rngs=nnx.Rngs(0)), loss)


# %% tags=["claims"]
# @title Checked: a tenth of the labels is dropped, and the others are unchanged
assert abs(dropped - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(drop))
assert bool(jnp.all((drop == 3) | (drop == cloud.labels)))

# %% [markdown]
# ### Break it on purpose: forget to drop
#
# We train two networks that differ in one line: ten per cent of the labels dropped, or none. The second
# network has a row for the null class as well, but no gradient ever reached this row. It still holds the
# random numbers that it began with.
#
# **Predict, then run.** Below are samples of both networks (orange), over the exact ones from the same
# noise (blue). At which $w$ does the second network look perfectly good?

# %%
networks = {"10 % dropped": fit_with(0.1), "none dropped": fit_with(0.0)}
y, null = jnp.full(2000, WANTED), jnp.full(2000, 3)


@jax.jit
def both(model, w):
    """The network's samples of the upper cloud and, from the same noise, the exact ones."""
    learned = guidance.classifier_free_batched(model, p, "v", y, null, w)
    exact = guidance.classifier_free(classes[WANTED].denoise, mixture.denoise, w)
    times, key = sampling.uniform(50), jax.random.key(0)
    run = lambda D: sampling.sample(samplers.ddim(p), D, noise_2d, times, key)[0]
    return run(learned), run(exact)


shown = (0.0, 1.0, 2.0, 3.0)
clouds = {(name, w): np.asarray(both(model, w)) for name, model in networks.items() for w in shown}

# %% alt="Samples of two networks over the exact ones, at four scales. With 10 % of the labels dropped they agree at every w. With none dropped they agree at w = 1 only: at 0 they miss the clouds, and at 2 and 3 they lie too far up."
rows = {name: {f"w = {w:g}": clouds[name, w][0] for w in shown} for name in networks}
exact_ones = {f"w = {w:g}": clouds["none dropped", w][1] for w in shown}
plots.panels(rows, behind=exact_ones, limits=((-1.6, 2.2), (-1.2, 3)), size=3)
plt.show()

# %%
off = {}
for name in networks:
    for w in shown:
        learned, exact = clouds[name, w]
        off[name, w] = np.linalg.norm(learned - exact, axis=1).mean()
    print(f"{name}: distance to the exact sample of the same noise, 2,000 points: "
          + ", ".join(f"w = {w:g} {off[name, w]:.3f}" for w in shown))  # fmt: skip

# %% tags=["claims"]
# @title Checked: without dropped labels only w = 1 is right
# Measured with three seeds: .01 for both at w = 1; at w = 3 below .05 against above 1.1.
assert max(off[name, 1.0] for name in networks) < 0.05
assert off["none dropped", 3.0] > 0.5 and off["none dropped", 0.0] > 0.3
assert max(off["10 % dropped", w] for w in shown) < 0.15

# %% [markdown]
# It looks good at $w = 1$. There the null class has weight 0, and the two networks are equally good. At any
# other $w$ the "unconditional" half of the broken network is a random embedding, and guidance pushes in a
# meaningless direction. (Where no blue is seen, the orange points cover it.)
#
# **What to inspect**: look at samples at $w = 0$. They must look like the whole data set. And check that
# the null row of the embedding has moved during training.

# %%
initial = MLP(num_classes=3, rngs=nnx.Rngs(0)).embed.label.embedding[...]
row_moves = {
    name: np.linalg.norm(model.embed.label.embedding[...] - initial, axis=1)
    for name, model in networks.items()
}
for name, rows_moved in row_moves.items():
    print(f"{name}: the rows of the embedding moved by", rows_moved.round(2), "(the last is null)")

# %% tags=["claims"]
# @title Checked: the null row moved only where labels were dropped
assert row_moves["none dropped"][3] < 1e-5 < row_moves["10 % dropped"][3]
assert all((rows_moved[:3] > 0.1).all() for rows_moved in row_moves.values())

# %% [markdown]
# ### Zeros are not the null class
#
# Some guides put zeros where the embedding of the label stands, and call the result "unconditional". This
# is right only for a network that was *trained* with zeros there. A trained null row is not zero: it is a
# code for "any class", which training found. And a network that never had a null class knows no code for it.
#
# **Predict, then run.** We replace the trained null row of the good network by zeros, and do the same with
# the network that never dropped a label. How far will they be from the exact samples at $w = 3$?

# %%
for name, network in networks.items():
    zeroed = nnx.clone(network)
    rows_of_labels = zeroed.embed.label.embedding
    rows_of_labels[...] = rows_of_labels[...].at[3].set(0.0)
    learned, exact = both(zeroed, 3.0)
    off[name, "zeros"] = float(jnp.linalg.norm(learned - exact, axis=1).mean())
    print(f"{name}, w = 3: off by {off[name, 3.0]:.3f} with its null row, "
          f"by {off[name, 'zeros']:.3f} with zeros")  # fmt: skip

# %% tags=["claims"]
# @title Checked: with zeros for the null row, guidance is wrong in both networks
# Three seeds of both trainings: zeros are off by .5 to 1.4, the trained row by at most .05.
assert off["10 % dropped", "zeros"] > 5 * off["10 % dropped", 3.0]
assert min(off[name, "zeros"] for name in networks) > 0.3

# %% [markdown]
# With zeros, guidance is wrong in both networks. Use the same "no label" in sampling that the network saw in
# training. (Text-to-image models often take the empty text for it, and its code is not zero either.)

# %% [markdown]
# ## 6 · How w bends the field
#
# Below is the exact guided denoiser of the upper cloud, at one time and four scales. The arrows point from
# $x_t$ to $D_w(x_t)$. (They would cover each other: three tenths of each is drawn at $w = 0$ and 1, a fifth
# at 3, and less than a tenth at 8.) The lower row shows samples (orange) from the same noise, over real
# points of that cloud.
#
# **Predict, then run.** At $w = 8$, will the samples gather at the centre of their cloud?

# %%
noise_6 = jax.random.normal(jax.random.key(6), (1000, 2))


@jax.jit
def plane_sweep(x_start, scales):
    """Exact guided samples for every scale, with two samplers: [W, 1000, 2] each."""

    def one(w):
        D = guidance.classifier_free(classes[WANTED].denoise, mixture.denoise, w)
        run = lambda s: sampling.sample(s, D, x_start, sampling.uniform(100), jax.random.key(7))[0]
        return run(samplers.ddim(p)), run(samplers.ddpm(p))

    return jax.lax.map(one, scales)


by_ddim, by_ddpm = (np.asarray(x) for x in plane_sweep(noise_6, jnp.asarray(scales)))
own = np.asarray(classes[WANTED].sample(jax.random.key(9), 1000))


# %% alt="Above, arrows to the guided guess at w = 0, 1, 3 and 8, which first lead to three points, then to one, and then beyond it. Below, the samples: all three clouds, the upper cloud, and then a small cloud that moves to its far edge."
def bent_field(ax, w, t=0.3):
    D = guidance.classifier_free(classes[WANTED].denoise, mixture.denoise, w)
    starts = jnp.asarray(plots.plane(-1.5, 1.9, 12))
    plots.arrows(ax, starts, D(starts, t), scale=0.3 / max(1, w / 2))
    plots.points(ax, means, plots.DATA, size=40, alpha=1)
    ax.set(xlim=(-1.6, 2), ylim=(-1.6, 2), title=f"$w$ = {w:g}")


def bent_samples(ax, w):
    plots.points(ax, own, plots.DATA, size=4, alpha=0.3)
    plots.points(ax, by_ddim[list(scales).index(w)], plots.PREDICTION, size=4)
    ax.set(xlim=(-1.6, 2), ylim=(-1.6, 2))


fig, axes = plt.subplots(2, 4, figsize=(11, 5.8))
for (above, below), w in zip(axes.T, (0, 1, 3, 8), strict=True):
    bent_field(above, w)
    bent_samples(below, w)
    below.set_xlabel("$x_1$")
axes[0, 0].set_ylabel("arrows to $D_w$, $t = 0.3$\n\n$x_2$")
axes[1, 0].set_ylabel("samples\n\n$x_2$")
plt.show()

# %% [markdown]
# At $w = 8$ the samples do not gather at the centre of their cloud. They move to its far edge, because
# at high noise guidance pushes *away from the other classes*, and DDIM does not bring them back later.
#
# **Explorer.** The same slider works for digits and for points: choose one of them in the menu. When do the
# digits stop getting clearer, and what do they lose from there on?


# %%
def digit_frame(w):
    shown = at[float(w)]
    return plots.image_grid([shown[:10], shown[10:20], shown[20:]], title=f"w = {w:g}", scale=0.7)


def plane_frame(w):
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 4))
    bent_field(left, w)
    bent_samples(right, w)
    left.set(xlabel="$x_1$", ylabel="$x_2$")
    right.set(xlabel="$x_1$", title="samples over the real cloud")
    return fig


frames = {
    "MNIST": widgets.render(digit_frame, scales),
    "plane": widgets.render(plane_frame, scales),
}
widgets.explorer(frames, [f"w = {w:g}" for w in scales], slider="w", choice="world", start=2)

# %% [markdown]
# Here is the same without a kernel: two noises per class, at six scales.

# %% alt="Two times ten digits at six scales. At w = 0.5 several are broken; from 2 on nearly all are clear; at 10 they are bold."
pick = (0.5, 1, 2, 4, 6, 10)
plots.image_grid(
    [np.concatenate([at[v][:10], at[v][20:]]) for v in pick],
    [f"w = {v:g}" for v in pick],
    scale=0.45,
)
plt.show()

# %% [markdown]
# ### What does guidance sample from?
#
# A common answer is: from the **sharpened** density $p(x)\,p(y|x)^w$, normalised. At each noise level the
# score that belongs to (3) is indeed that of $p_t(x)\,p_t(y|x)^w$. But these densities, for all $t$
# together, are not the noisy versions of *one* density. So the chain does not end in the sharpened one.
#
# The mixture shows this clearly. Its clouds hardly overlap. So on the cloud $p(y|x)$ is 1, and every power
# of it is 1 too. The sharpened density is then the cloud itself, for every $w \ge 1$. We compute its
# moments by summing over a grid, in float64.
#
# **Predict, then run.** By how many standard deviations does guidance at $w = 3$ miss the mean of the
# sharpened density? And does DDPM, with fresh noise, end in the same place as DDIM?

# %%
cells = plots.plane(-3, 3, 601).astype(np.float64)
log_joint = np.stack([
    np.log(share) - 2 * np.log(s) - np.sum((cells - m) ** 2, axis=1) / (2 * s**2)
    for m, s, share in zip(means, stds, shares, strict=True)
])  # fmt: skip
log_data = np.logaddexp.reduce(log_joint)
print("   w   sharpened: mean, std    DDIM: mean off by, std    DDPM: mean off by, std")
moments = {}
for i, w in enumerate(scales):
    sharp = log_data + w * (log_joint[WANTED] - log_data)
    sharp = np.exp(sharp - sharp.max()) / np.exp(sharp - sharp.max()).sum()
    centre = sharp @ cells
    width = np.sqrt(sharp @ (cells - centre) ** 2)
    x, z = by_ddim[i], by_ddpm[i]
    moved = [np.linalg.norm((y.mean(0) - centre) / width) for y in (x, z)]
    moments[float(w)] = centre, width, *moved, x.std(0).mean(), z.std(0).mean()
    print(f"{w:4g}   ({centre[0]:.3f}, {centre[1]:.3f}) {width.mean():.3f} {moved[0]:14.2f} std "
          f"{x.std(0).mean():.3f} {moved[1]:17.2f} std {z.std(0).mean():.3f}")  # fmt: skip

# %%
finer, _ = sampling.sample(
    samplers.ddpm(p), classes[WANTED].denoise, noise_6, sampling.uniform(400), jax.random.key(7)
)
with_100, with_400 = by_ddpm[list(scales).index(1)].std(0).mean(), np.asarray(finer).std(0).mean()
print(f"DDPM at w = 1: std {with_100:.3f} with 100 steps, {with_400:.3f} with 400; "
      f"the cloud's {stds[WANTED]:.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: guidance leaves the sharpened density, and the two samplers differ
for scale in scales[scales >= 0.5]:
    centre, width, *_ = moments[float(scale)]
    # The cloud itself, to a thousandth: the classes hardly overlap.
    np.testing.assert_allclose(centre, means[WANTED], atol=1e-3)
    np.testing.assert_allclose(width, stds[WANTED], atol=1e-3)
assert min(moments[0.5][4:]) > 1.4 * stds[WANTED]  # at w = 1/2 the samples are spread over more
# The far edge: the mean moves straight away from the mean of the other two clouds.
moved_by = by_ddim[list(scales).index(8)].mean(0) - means[WANTED]
away_from = means[WANTED] - shares[[0, 2]] @ means[[0, 2]] / shares[[0, 2]].sum()
assert moved_by @ away_from > 0.9 * np.linalg.norm(moved_by) * np.linalg.norm(away_from)
assert max(moments[1.0][2:4]) < 0.15  # w = 1 is exact: 1,000 points, a standard error of .03
assert 1.2 < moments[3.0][2] < 1.6 and moments[8.0][2] > 2
assert moments[3.0][4] < 0.85 * stds[WANTED].mean()
assert moments[3.0][3] < 0.6 * moments[3.0][2]  # the other sampler, another distribution
# 2,000 numbers: a standard deviation is known to 1.6 %.
assert with_100 < 0.95 * stds[WANTED] < with_400

# %% [markdown]
# DDIM at $w = 3$ misses the mean by 1.4 standard deviations. The two samplers end in different places,
# although they use the same $D_w$. (At $w=0$ the sharpened density is all three clouds. At $w=\tfrac12$ it
# is already one cloud, while the samples are spread over more. The standard deviations at $w = 1$ are a
# little too small, and DDPM's more so. This is the error of 100 steps, not of guidance.) Bradley & Nakkiran
# (2024) show with Gaussians that neither sampler draws from the sharpened density.
#
# On the cloud $p(y|x)$ is 1. So where does the push come from? We compare the two denoisers at noisy
# versions of the cloud's own points.

# %%
apart = {}
for t in (0.05, 0.2, 0.35, 0.5, 0.7):
    noisy = process.add_noise(p, own, jax.random.normal(jax.random.key(4), own.shape), t)
    apart[t] = rms(classes[WANTED].denoise(noisy, t) - mixture.denoise(noisy, t))
    print(f"t = {t:.2f}: D(x_t|y) and D(x_t) are {apart[t]:.4f} apart (rms of 1,000 points)")

# %% tags=["claims"]
# @title Checked: near the data the two denoisers agree
assert apart[0.05] < 0.1 * apart[0.5]

# %% [markdown]
# The push comes from high noise levels, where the clouds overlap. Near the data the two denoisers agree, so
# guidance changes nothing there. It cannot correct what it did before. DDIM carries the shift to the end.
# DDPM's fresh noise removes a part of it on the way.

# %% [markdown]
# ## 7 · Quality against diversity
#
# Now we measure the whole curve, on real images. The judge of chapter 03 gives three numbers, always with
# the sample count:
#
# - **accuracy**: the share of samples that it recognises as the class asked for;
# - **Fréchet distance** between the features of samples and of the training set;
# - **spread**: how different the samples of one class are. It is the root of the mean variance of the
#   features within a class.
#
# A fourth number comes from the pixels: the share beyond ±1.05. No training image has such pixels.


# %%
def spread(f, labels):
    return float(np.sqrt(np.mean([f[labels == c].var(0, ddof=1).sum() for c in range(10)])))


def report(x, labels, expert, real):
    predicted, f = (np.asarray(a) for a in judge(expert, x))
    return {
        "accuracy": metrics.class_accuracy(predicted, labels),
        "Fréchet": metrics.frechet(f, real),
        "spread": spread(f, labels),
        "beyond": float(np.mean(np.abs(x) > 1.05)),
    }


expert = weights.load("digits_classifier")
real = features.load("digits", expert.card)
labels = np.arange(480) % 10
x_digits = jax.random.normal(jax.random.key(100), (480, 8, 8, 1))
ws = (0, 0.5, 1, 1.5, 2, 3, 5, 7)
made, curve = {}, {}
for w in ws:
    scale = jnp.full((480, 1, 1, 1), w, jnp.float32)
    made[w] = np.asarray(draw(digits.model, x_digits, jnp.asarray(labels), scale))
    curve[w] = report(made[w], labels, expert.model, real)

# %% [markdown]
# We do the same for MNIST, with 300 samples per scale and the network of the first picture.
#
# **Predict, then run.** Which of the first three numbers has its best value at some $w$ inside the range,
# and which only rise or fall with $w$? And the fourth?

# %%
mnist_expert = weights.load("mnist_classifier")
mnist_real = features.load("mnist", mnist_expert.card)
mnist_labels = np.arange(300) % 10
x_mnist = jax.random.normal(jax.random.key(101), (300, 28, 28, 1))
mnist_ws = (1, 2, 5, 7)
mnist_curve = {}
for w in mnist_ws:
    scale = jnp.full((30, 1, 1, 1), w, jnp.float32)
    x = np.concatenate([draw(mnist.model, z, thrice, scale) for z in jnp.split(x_mnist, 10)])
    mnist_curve[w] = report(x, mnist_labels, mnist_expert.model, mnist_real)

for title, found, count in (("8×8 digits", curve, 480), ("MNIST", mnist_curve, 300)):
    print(f"{title}, {count} samples per w, 12 steps of DPM-Solver++(2M)")
    for w, r in found.items():
        print(f"  w = {w:<3g}  accuracy {r['accuracy']:6.1%}  Fréchet {r['Fréchet']:5.2f}  "
              f"spread {r['spread']:.2f}  beyond ±1.05 {r['beyond']:.1%}")  # fmt: skip

# %% alt="Three measurements against w, for 8×8 digits and MNIST. The accuracy rises to 1 by w = 2. The Fréchet distance is lowest at w = 1, and then rises to about six times that. The spread falls."
fig, axes = plt.subplots(1, 3, figsize=(11, 3.3))
for ax, name in zip(axes, ("accuracy", "Fréchet", "spread"), strict=True):
    for found, colour, dash, label in ((curve, plots.DATA, "o-", "8×8 digits, 480"),
                                       (mnist_curve, plots.PREDICTION, "s--", "MNIST, 300")):  # fmt: skip
        values = np.array([r[name] for r in found.values()])
        values = values if name == "accuracy" else values / found[1][name]
        ax.plot(list(found), values, dash, color=colour, ms=4, label=label)
    title = name if name == "accuracy" else f"{name} / that at w = 1"
    ax.set(xlabel="guidance scale $w$", title=title)
axes[0].set_ylabel("share recognised")
axes[0].legend(loc="lower right")
plt.show()

# %%
d, m = (({n: np.array([r[n] for r in c.values()]) for n in c[1]}) for c in (curve, mnist_curve))
print(f"digits: Fréchet least at w = {ws[d['Fréchet'].argmin()]}; spread at w = 7 is "
      f"{d['spread'][-1] / d['spread'][2]:.0%} of that at w = 1")  # fmt: skip
print(f"MNIST: accuracy {m['accuracy'][0]:.1%} at w = 1, {m['accuracy'][1]:.1%} at w = 2; spread at "
      f"w = 7 is {m['spread'][-1] / m['spread'][0]:.0%} of that at w = 1")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the Fréchet distance has its least value at w = 1, and the spread only falls
assert np.abs(data.load("digits").x).max() == 1  # no training image has pixels beyond ±1.05
assert ws[d["Fréchet"].argmin()] == 1  # three seeds; w = 0.5 and 1.5 are at least 1.5 times as far
assert (np.diff(d["Fréchet"][2:]) > 0).all() and d["Fréchet"][-1] > 3 * d["Fréchet"].min()
assert d["accuracy"][1] < 0.9 and d["accuracy"][2:].min() > 0.97
assert d["spread"][4:].max() < 0.93 * d["spread"][2]  # three seeds: at most .88
assert d["beyond"][-1] > 5 * d["beyond"][2] and (np.diff(d["beyond"][2:]) > 0).all()
# With 300 samples, the standard error of an accuracy of 94 % is 1.4 %; the noise is the same.
assert m["accuracy"][1:].min() > 0.97 and m["accuracy"][1:].mean() > m["accuracy"][0]
assert (np.diff(m["spread"]) < 0).all() and (np.diff(m["Fréchet"]) > 0).all()

# %% [markdown]
# On the digits, the Fréchet distance has its best value inside the range, at $w = 1$. For larger $w$
# variety is missing. At $w = \tfrac12$ even exact denoisers draw between the classes (section 6). At $w = 0$ a
# perfect network would draw the classes in their right shares, and would be as near to the data as at $w = 1$.
# But without a label this network is less sure of its strokes. The accuracy rises until it is nearly 100 %. The
# spread falls and does not come back, and from $w = 1$ on more and more pixels leave the range.
#
# **The elbow** is the point where the accuracy stops rising. Below the elbow, guidance improves the
# accuracy and costs variety. Above it, guidance costs variety and improves nothing. We take the smallest
# $w$ within two points of the best accuracy.

# %%
elbows, price = {}, {}
for title, found in (("8×8 digits", curve), ("MNIST", mnist_curve)):
    best = max(r["accuracy"] for r in found.values())
    elbow = min(w for w, r in found.items() if r["accuracy"] >= best - 0.02)
    elbows[title], price[title] = elbow, found[5]["Fréchet"] / found[elbow]["Fréchet"]
    print(f"{title}: elbow at w = {elbow:g}; at w = 5 the Fréchet distance is "
          f"{price[title]:.1f} times that")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the elbows are low, and w = 5 lies far beyond them
assert min(price.values()) > 1.5
assert elbows["8×8 digits"] <= 1.5 and elbows["MNIST"] <= 2

# %% [markdown]
# The elbow belongs to a model, not to the method. If a model is good at $w=1$, its elbow lies there, and
# guidance improves nothing. If a model blurs its classes, guidance improves much. Text-to-image models are
# of the second kind: the library diffusers uses 7.5 as the default for Stable Diffusion.
#
# So a quality number without its $w$ and its sample count says little. Report the curve.

# %% [markdown]
# ## 8 · Guided too hard, and four cures
#
# Suppose that you need $w = 5$. What can be repaired?
#
# - **Interval** (Kynkäänniemi et al. 2024): guide only at middle noise levels, here $0.1 \le t \le 0.6$. At
#   high noise the push drives all samples of a class to one place.
# - **Rescale** (Lin et al. 2024, section 3.4): scale the standard deviation of the estimate back towards
#   that of the conditional one. (They rescale the network's output; the course rescales $\hat x_0$.)
# - **Static clip** (Saharia et al. 2022, section 2.3): cut the estimate at $\pm 1$, where the data end. This is
#   the simplest cure, and the baseline of the next one.
# - **Dynamic threshold** (the same): take the size $s$ that a share $q$ of an image's pixels do not exceed. If
#   $s > 1$, cut the image at $\pm s$ and divide it by $s$.

# %% [markdown]
# Which $q$? The library diffusers has .995 as its default, for large pictures. Our pictures have 64 pixels:
# only the largest one lies above this $s$, and this single pixel decides how grey the whole picture becomes.
# With $q = .9$ seven pixels are larger than $s$. We try both.
#
# The differences are small, so every method draws the same 480 digits from the same noise, three times. The
# three noises show how large the scatter is.
#
# **Predict, then run.** Which cure will bring the samples nearest to the data again? Will the dynamic
# threshold beat the static clip?


# %%
def cured(cure):
    """A compiled sampler: guidance by `cure(D_cond, D_uncond, w)`."""

    @jax.jit
    def run(model, x_start, labels, w):
        null = jnp.full_like(labels, model.null_label)
        D_c, D_u = (denoiser.denoiser(model, p, "v", y) for y in (labels, null))
        solver, times = samplers.dpm_solver_pp_2m(p), sampling.uniform(12)
        return sampling.sample(solver, cure(D_c, D_u, w), x_start, times, jax.random.key(0))[0]

    return run


def threshold(quantile):
    """Guidance and a dynamic threshold at this quantile."""
    plain = guidance.classifier_free
    return lambda c, u, w: denoiser.dynamic_threshold(plain(c, u, w), quantile)


# %%
cures = {
    "interval": lambda c, u, w: guidance.interval(c, u, w, 0.1, 0.6),
    "rescale": lambda c, u, w: guidance.rescale(c, u, w, share=0.7),
    "static clip": lambda c, u, w: denoiser.clip(guidance.classifier_free(c, u, w)),
    "dynamic, .9": threshold(0.9),
    "dynamic, .995": threshold(0.995),
}
noises = [x_digits, *(jax.random.normal(jax.random.key(k), x_digits.shape) for k in (101, 102))]
asked, results = jnp.asarray(labels), {}
for w in (1, 5):  # section 7 has drawn from the first noise
    one_w = jnp.full((480, 1, 1, 1), float(w))
    plain = [draw(digits.model, x, asked, one_w) for x in noises[1:]]
    results[f"w = {w}"] = [made[w], *plain]
for name, cure in cures.items():
    run = cured(cure)
    results[name] = [run(digits.model, x, asked, jnp.float32(5)) for x in noises]

# %% alt="Sixteen digits in seven rows: w = 1, w = 5, and w = 5 with the cures. At w = 5 the contrast is hard. The dynamic threshold at .995 makes the digits grey."
reports = {name: [report(np.asarray(x), labels, expert.model, real) for x in drawn_thrice]
           for name, drawn_thrice in results.items()}  # fmt: skip
table = {n: {key: np.array([r[key] for r in rs]) for key in rs[0]} for n, rs in reports.items()}
print("8×8 digits, 3 × 480 samples, 12 steps; cures at w = 5; the range is that of three noises")
for name, r in table.items():
    r["grey"] = np.array([np.mean(np.abs(np.asarray(x)) < 0.8) for x in results[name]])
    r["share"] = r["Fréchet"] / table["w = 5"]["Fréchet"]
    print(f"{name:13s} Fréchet {r['Fréchet'].mean():.2f} ({r['share'].min():.0%} to "
          f"{r['share'].max():.0%} of w = 5)  spread {r['spread'].mean():.2f}  beyond ±1.05 "
          f"{r['beyond'].mean():5.1%}  within ±0.8 {r['grey'].mean():.0%}")  # fmt: skip
strips = [x[0][20:36] for x in results.values()]
plots.image_grid(strips, list(results), scale=0.5)
plt.show()

# %% tags=["claims"]
# @title Checked: the interval helps most, and a threshold helps if its quantile suits 64 pixels
ranks = np.arange(64)
assert [np.sum(ranks > np.quantile(ranks, q)) for q in (0.995, 0.9)] == [1, 7]
assert all((r["accuracy"] > 0.97).all() for r in table.values())
weak = [n for n in table if n not in ("w = 1", "w = 5", "interval")]
# Paired: the same three noises for every method. Shares of the plain distance, four noises:
# interval .43 to .56; rescale .79 to .88, static .83 to .94, .9 .78 to .92, .995 .90 to 1.04.
assert all((table["interval"]["share"] < 0.8 * table[n]["share"]).all() for n in weak)
assert (table["interval"]["share"] < 0.65).all() and (table["interval"]["share"] > 0.3).all()
assert all((table[n]["share"] > 0.7).all() for n in weak)
assert all((table[n]["share"] < 0.97).all() for n in weak[:3])
assert (table["dynamic, .9"]["Fréchet"] < table["static clip"]["Fréchet"]).all()  # 2 to 6 % nearer
assert (table["dynamic, .995"]["Fréchet"] > 1.03 * table["static clip"]["Fréchet"]).all()
assert (table["interval"]["spread"] > 1.1 * table["w = 5"]["spread"]).all()
assert (table["w = 5"]["beyond"] > 0.15).all()
assert (table["rescale"]["beyond"] < 0.7 * table["w = 5"]["beyond"]).all()
assert all((table[n]["beyond"] == 0).all() for n in weak[1:])
assert (table["dynamic, .995"]["grey"] > 1.5 * table["w = 1"]["grey"]).all()
assert (table["dynamic, .9"]["grey"] < 1.3 * table["w = 1"]["grey"]).all()
assert (table["dynamic, .995"]["spread"] > table["w = 1"]["spread"]).all()

# %% [markdown]
# The interval brings the samples nearest: it about halves the distance to the data. It leaves guidance out at both
# ends, at high noise and in the last steps. Which of the two matters more, this table does not say: see (b) at
# the end. (`guidance.limited` is the interval written as a scale that depends on time. With it the cures combine,
# in one batched evaluation as well.)
#
# Rescaling, the static clip and the dynamic threshold with $q = .9$ each help a little. The dynamic threshold
# beats the static clip with all three noises, but only by a few per cent.
#
# With $q = .995$ the threshold is worse than the clip. Black has become grey, as the last row shows. Its
# spread is larger than at $w = 1$, and yet the samples are not nearer to the data. If the spread grows and
# the distance does not fall, this is not variety but a different distortion. This is why one looks at more
# than one number.
#
# The cheapest cure is in the first row: a smaller $w$.

# %% [markdown]
# ## 9 · A negative prompt
#
# Many text-to-image programs let the user write a second text: what the picture should *not* show. They take
# the guess for this unwanted text, $D(x_t \mid n)$, in place of the unconditional guess:
#
# $$D(x_t \mid n) + w\,\big(D(x_t \mid y) - D(x_t \mid n)\big) \tag{5}$$
#
# Nothing has to be trained for it. What is it mathematically? We turn denoisers into scores again, as in
# section 4. Then (5) is the score of
#
# $$p_t(x_t \mid y)\; \Big(\frac{p_t(x_t \mid y)}{p_t(x_t \mid n)}\Big)^{w-1}.$$
#
# So the push goes from one class to the other one, along the difference of the two. But the user wanted
# something else: a picture that is not $n$.

# %% [markdown]
# What would "not $n$" be? Without a class, $D(x_t)$ is the average of all classes' guesses, each with the
# weight of its probability. We take the class $n$ out of this average. With $r = p(n \mid x_t)$,
#
# $$D(x_t \mid \text{not } n) = \frac{D(x_t) - r\,D(x_t \mid n)}{1 - r}
#   = D(x_t \mid n) + \frac{1}{1 - r}\,\big(D(x_t) - D(x_t \mid n)\big). \tag{6}$$
#
# For example, if half of the average is $n$, the scale is 2. So (6) has the form of (5), with no label as the
# wish and a scale of $1/(1-r)$. This scale depends on the state. Where $x_t$ cannot be $n$, it is 1, and
# nothing is pushed. A negative prompt uses one $w$ everywhere.

# %% tags=["comparison"]
rest = np.array([0, 2])  # without the upper cloud
two_clouds = denoiser.gaussian_mixture(
    p, means[rest], stds[rest], shares[rest] / shares[rest].sum()
)
for t in (0.4, 0.8):
    r = jnp.exp(log_class(WANTED)(points, t))[:, None]  # what was wanted before is unwanted now
    everything, only_upper = mixture.denoise(points, t), classes[WANTED].denoise(points, t)
    by_equation_6 = only_upper + (everything - only_upper) / (1 - r)
    # r is at most .9993 at these points: 1 − r has lost three digits of float32.
    np.testing.assert_allclose(by_equation_6, two_clouds.denoise(points, t), atol=1e-3)
    print(f"t = {t}: (6) is the denoiser of the other two clouds; 1/(1-r) goes from "
          f"{1 / (1 - r.min()):.2f} to {1 / (1 - r.max()):.0f}")  # fmt: skip

# %% [markdown]
# **Predict, then run.** The upper cloud is unwanted, and nothing is wished for. On the left, the exact "not".
# Then (5) with $w = 2$ and $w = 3$. Will the two lower clouds (blue) stay where they are?


# %% alt="Samples over two clouds. The exact “not” fills both. With a negative prompt the samples lie outside of them, further away from the unwanted cloud above, more so at w = 3 than at 2; a few are left in the unwanted one."
@jax.jit
def not_upper(w):
    D = guidance.classifier_free(mixture.denoise, classes[WANTED].denoise, w)
    times, key = sampling.uniform(100), jax.random.key(7)
    return sampling.sample(samplers.ddim(p), D, noise_2d, times, key)[0]


avoided = {"exactly not": points_from(two_clouds.denoise, noise_2d)}
avoided |= {f"negative, w = {w}": np.asarray(not_upper(float(w))) for w in (2, 3)}
lower = np.asarray(two_clouds.sample(jax.random.key(9), 2000))
plots.panels(avoided, behind=lower, limits=((-2, 1.6), (-2, 1.6)), size=3, scale=3)
plt.show()
inside = {}
for name, x in avoided.items():
    to_centre = np.linalg.norm(x[:, None] - means[rest], axis=2) / stds[rest]
    inside[name] = np.mean(to_centre.min(1) < 4)
    print(f"{name}: {inside[name]:.1%} of 2,000 points lie in one of the two clouds")

# %%
left_points = classes[0].sample(jax.random.key(9), 1000)
noise_9 = jax.random.normal(jax.random.key(4), left_points.shape)
near_data = process.add_noise(p, left_points, noise_9, 0.05)
its_own = classes[0].denoise(near_data, 0.05)
still_pushed = {
    "no class": rms(its_own - mixture.denoise(near_data, 0.05)),
    "the upper cloud": rms(its_own - classes[WANTED].denoise(near_data, 0.05)),
}
for name, size in still_pushed.items():
    print(f"left cloud, t = 0.05: its own denoiser and that of {name} are {size:.4f} apart")

# %% tags=["claims"]
# @title Checked: "not" keeps the other clouds, a negative prompt drives them away
# 2,000 points; a Gaussian in the plane has 0.03 % beyond 4 standard deviations.
assert inside["exactly not"] > 0.99
assert inside["negative, w = 2"] < 0.4 and inside["negative, w = 3"] < 0.1
assert still_pushed["no class"] < 0.01 and still_pushed["the upper cloud"] > 0.1

# %% [markdown]
# They do not stay. In section 6 the push ended near the data, because there the denoisers of (3) agree.
# The two denoisers of (5) agree only in the very last steps: the guess "upper cloud" is far away even when the
# state lies in the left cloud and nothing has to be avoided. So the push goes on almost to the end.
#
# Now the digits. We wish for nothing, and an 8 is unwanted. An exact "not 8" would remove the eights, a tenth
# of all digits. It would make each other digit more frequent by a ninth.
#
# **Predict, then run.** Which digits become more frequent, and which ones less?


# %%
@jax.jit
def draw_away(model, x_start, wanted, unwanted, w):
    """As `draw`, with a label to avoid in the place of the null label; w is one number."""
    D = guidance.classifier_free_batched(model, p, "v", wanted, unwanted, w)
    solver, times = samplers.dpm_solver_pp_2m(p), sampling.uniform(12)
    return sampling.sample(solver, D, x_start, times, jax.random.key(0))[0]


nothing, eights = jnp.full(480, digits.model.null_label), jnp.full(480, 8)
frequency, with_wish = {}, {}
for w in (1, 2, 3):
    drawn_away = [draw_away(digits.model, x, nothing, eights, float(w)) for x in noises]
    judged = np.concatenate([judge(expert.model, x)[0] for x in drawn_away])
    frequency[w] = np.bincount(judged, minlength=10) / len(judged)
    print(
        f"w = {w}, 1,440 samples: " + ", ".join(f"{k}: {n:.0%}" for k, n in enumerate(frequency[w]))
    )
for name, other in (("no label", nothing), ("8", eights)):
    x = [draw_away(digits.model, x, asked, other, 2.0) for x in noises]
    each = [report(np.asarray(x), labels, expert.model, real) for x in x]
    with_wish[name] = np.array([(r["Fréchet"], r["accuracy"]) for r in each])
    print(f"each digit asked for, w = 2, away from {name}: Fréchet distance "
          f"{with_wish[name][:, 0].mean():.2f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: a negative 8 removes more than eights, and costs more than guidance away from null
# 1,440 samples: a share near 10 % has a standard error of 0.8 %.
assert frequency[1][8] > 0.07 and frequency[2][8] < 0.02
assert frequency[2][4] > 2 * frequency[1][4] and frequency[3][4] > 2.5 * frequency[1][4]
assert frequency[2][1] < 0.7 * frequency[1][1] and frequency[2][9] < 0.7 * frequency[1][9]
# With each of three noises 3.4 to 3.8 against 1.5 to 1.7.
assert (with_wish["8"][:, 0] > 1.6 * with_wish["no label"][:, 0]).all()
assert min(wish[:, 1].min() for wish in with_wish.values()) > 0.98

# %% [markdown]
# The eights are gone. But ones and nines became rare as well, and fours became more than twice as frequent.
# Guidance moved the digits towards what is most *unlike* an 8, as this network sees it. If every digit has a
# label, the samples are still recognised. But at $w = 2$ they lie twice as far from the data as with the null
# label in the place of the 8.
#
# A negative prompt is a useful tool, and a rough one. It does not say "not this", it says "further from this".
# Use it with a small $w$, and look at what else it moves. (Liu et al. 2022 treat "not" and "and" of several
# conditions as such products of densities.)

# %% [markdown]
# ## 10 · The same number under other names
#
# | source | what it writes | course's $w$ |
# |---|---|---|
# | Dhariwal & Nichol 2021, on an unconditional network | $\varepsilon - s\,\sigma\nabla\log p(y \mid x_t)$ | $s$ |
# | the same, on a conditional network | $\varepsilon_c - s\,\sigma\nabla\log p(y \mid x_t)$ | $1 + s$ |
# | Ho & Salimans 2022, eq. 6 | $(1 + w')\,\varepsilon_c - w'\,\varepsilon_u$ | $1 + w'$ |
# | GLIDE, Nichol et al. 2022 | $\varepsilon_u + s\,(\varepsilon_c - \varepsilon_u)$ | $s$ |
# | Imagen, Saharia et al. 2022 | $w\,\varepsilon_c + (1-w)\,\varepsilon_u$ | $w$ |
# | `guidance_scale` of diffusers | as GLIDE | the same |
# | Kynkäänniemi et al. 2024 | $w\,D_c - (w-1)\,D_u$ | $w$ |
#
# Plain conditional sampling, $w = 1$, is a scale of 0 in the second and third row, and a scale of 1 in the
# others. We check every row on the mixture, with the exact classifier.

# %% tags=["comparison"]
third, at_t, course_w = 2, 0.35, 2.5
oracle_c, oracle_u, noise_level = classes[third], mixture, float(p.sigma(at_t))
guess_c, guess_u = oracle_c.denoise(points, at_t), oracle_u.denoise(points, at_t)
eps_c, eps_u = (parameterization.to_eps("x0", p, g, points, at_t) for g in (guess_c, guess_u))
gradient = slope(log_class(third), points, at_t)
course_says = guidance.classifier_free(oracle_c.denoise, oracle_u.denoise, course_w)(points, at_t)
in_papers = {
    "Dhariwal & Nichol": eps_u - course_w * noise_level * gradient,
    "on a conditional network": eps_c - (course_w - 1) * noise_level * gradient,
    "Ho & Salimans": (1 + (course_w - 1)) * eps_c - (course_w - 1) * eps_u,
    "GLIDE": eps_u + course_w * (eps_c - eps_u),
    "Imagen": course_w * eps_c + (1 - course_w) * eps_u,
}
for predicted in in_papers.values():
    x0 = parameterization.to_x0("eps", p, predicted, points, at_t)
    np.testing.assert_allclose(x0, course_says, atol=1e-4)  # float32, times sigma·w/alpha
interval_paper = course_w * guess_c - (course_w - 1) * guess_u
np.testing.assert_allclose(interval_paper, course_says, atol=1e-5)
print(f"all rows agree with the course's w = {course_w}")

# %% [markdown]
# ### Two sentences of many guides
#
# - "$w = 1$ means no guidance, that is, unconditional." It means *plainly conditional*: nothing is
#   exaggerated, but the label counts. Unconditional is $w = 0$.
# - "$\varepsilon_u + w(\varepsilon_c - \varepsilon_u)$ is the same as
#   $(1 + w)\varepsilon_c - w\varepsilon_u$." The second one goes one step further: it is the first one
#   with $w + 1$. A setting of 2 from one program is a 3 in the other one.
#
# Section 7 has drawn digits at all these scales. How often was the label obeyed, and what does one step more
# cost?

# %%
too_hard = (1 + course_w) * eps_c - course_w * eps_u  # 1 + w with the course's own w
too_hard = parameterization.to_x0("eps", p, too_hard, points, at_t)
one_more = guidance.classifier_free(oracle_c.denoise, oracle_u.denoise, course_w + 1)(points, at_t)
print(f"(1 + w) with the course's own w: off by up to {jnp.abs(too_hard - course_says).max():.2f}")
print(f"the label was obeyed by {curve[0]['accuracy']:.0%} of 480 digits at w = 0, "
      f"by {curve[1]['accuracy']:.0%} at w = 1")  # fmt: skip
print(f"Fréchet distance {curve[1]['Fréchet']:.2f} at w = 1, {curve[2]['Fréchet']:.2f} at 2, "
      f"{curve[3]['Fréchet']:.2f} at 3")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the wrong convention is one step further, and w = 1 is not unconditional
assert jnp.abs(too_hard - course_says).max() > 0.1
np.testing.assert_allclose(too_hard, one_more, atol=1e-4)  # float32, times sigma·w/alpha
# Ten classes, 480 digits: a label that is ignored is right by chance in 10 %, ± 1.4 %.
assert abs(curve[0]["accuracy"] - 0.1) < 0.06 and curve[1]["accuracy"] > 0.97
# w = 1 read as w' = 1 draws at 2, and 2 at 3. Three noises: at least 2.3 and 1.3 times as far.
assert curve[2]["Fréchet"] > 1.8 * curve[1]["Fréchet"]
assert curve[3]["Fréchet"] > 1.15 * curve[2]["Fréchet"]

# %% [markdown]
# ## 11 · Recap
#
# 1. Bayes' rule: the conditional score is the score plus the gradient of $\log p(y|x_t)$. This is exact if
#    the classifier knows the noise.
# 2. A network that was trained with some labels dropped is its own classifier: $D_u + w\,(D_c - D_u)$, in
#    one batched evaluation.
# 3. If you forget to drop labels, $w = 1$ looks good and every other scale is wrong. Look at
#    $w = 0$.
# 4. For $w > 1$ the samples do not follow a sharpened density. They leave the centre of their class for the
#    far side, and the distance depends on the sampler. A negative prompt goes further from a class, and does
#    not sample from "not this class".
# 5. Quality against $w$ is a curve. Find the elbow, give the sample count, and say which convention your
#    $w$ follows.

# %% [markdown]
# Now do the [exercises](../exercises/07_guidance.ipynb).
#
# **Try it yourself.** (a) In section 3, what strength $s$ of the noise-aware classifier makes the samples
# resemble `by_ddim` at $w = 3$ most? (b) At $w = 5$, vary the interval's upper end from 0.3 to 1, and
# then its lower end from 0 to 0.3. Which of the two changes the Fréchet distance more? (c) Draw at a *negative*
# $w$. What does the model draw as the opposite of a seven?
#
# **Words introduced.** Classifier guidance, classifier-free guidance, guidance scale, null class, label
# dropout, implicit classifier, sharpened density, elbow, guidance interval, static clip, dynamic threshold,
# negative prompt.

# %% [markdown]
# **Read on.** Dhariwal & Nichol 2021, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS
# ([arXiv:2105.05233](https://arxiv.org/abs/2105.05233)). Ho & Salimans 2022, *Classifier-Free Diffusion
# Guidance* ([arXiv:2207.12598](https://arxiv.org/abs/2207.12598)). Nichol et al. 2022, *GLIDE*, ICML
# (arXiv:2112.10741). Saharia et al. 2022, *Photorealistic Text-to-Image Diffusion Models with Deep Language
# Understanding*, NeurIPS (arXiv:2205.11487). Lin, Liu, Li & Yang 2024, *Common Diffusion Noise Schedules
# and Sample Steps Are Flawed*, WACV (arXiv:2305.08891). Kynkäänniemi et al. 2024, *Applying Guidance in a
# Limited Interval Improves Sample and Distribution Quality in Diffusion Models*, NeurIPS
# (arXiv:2404.07724). Liu, Li, Du, Torralba & Tenenbaum 2022, *Compositional Visual Generation with
# Composable Diffusion Models*, ECCV (arXiv:2206.01714). Bradley & Nakkiran 2024, *Classifier-Free Guidance Is a
# Predictor-Corrector* (arXiv:2408.09000). Karras et al. 2024, *Guiding a Diffusion Model with a Bad Version of
# Itself*, NeurIPS (arXiv:2406.02507): it replaces $D_u$ by a worse version of the same model.
