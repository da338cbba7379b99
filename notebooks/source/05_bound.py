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
# # 05 · The bound
#
# **The question.** How many bits is a digit worth to a diffusion model, and at which noise levels
# are these bits spent?
#
# We can read a diffusion model as a code: it sends an image as a chain of ever cleaner versions of
# it. The length of this code is an upper bound on $-\log p(x_0)$. This is the number that
# likelihood-based models compete in. The chapter takes the bound apart, term by term.

# %% [markdown]
# **You will be able to**
#
# - derive the bound in three steps, and say what each of its terms costs;
# - say exactly how far the bound is from the truth, and which choice closes the gap;
# - derive the best variance of a reverse step, and train a network that learns it;
# - turn the simple loss into the bound and back, and say which errors each of them weighs most;
# - report bits per dimension that mean something, and recognise those that do not.
#
# **You need** chapters 02 (the posterior mean, doubt) and 03 (DDPM), and logarithms.
#
# **Time:** about 75 minutes of reading. The cells run for about a minute on two CPU cores.

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

from diffusion_course import bound, data, denoiser, losses, process, sampling, weights
from diffusion_course.data import toy2d
from diffusion_course.models.classifier import judge
from diffusion_course.models.mlp import MLP
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import loop

plots.use_style()

# %% [markdown]
# Below is a digit that the released model has never seen, under less and less noise. Under each
# noisy digit stands the model's guess. The titles say how many bits per pixel the code has sent by
# then, as a share of its whole length. When you can read the digit, most of the bits have not been
# sent yet. What are these other bits for?

# %%
released = weights.load("digits")
q = released.process  # the cosine process; the network predicts v
digits, unseen = data.load("digits"), data.load("digits", split="test")
shown = (0, 4, 8, 10, 12, 13, 14, 15)  # of 16 steps


@jax.jit
def first_look(model, x0, times, key):
    D = denoiser.denoiser(model, q, "v")
    terms = bound.evaluate(bound.fixed(q, D, times[-2]), q, x0, times, key, levels=17)
    t, six = times[jnp.array(shown)], jnp.repeat(x0[13:14], 8, axis=0)
    noisy = process.add_noise(q, six, jax.random.normal(key, six.shape), t)
    return terms.steps.mean(1), noisy, D(noisy, t)


arguments = unseen.x[:100], sampling.uniform(16), jax.random.key(3)
steps, noisy, guesses = first_look(released.model, *arguments)

# %% alt="A digit under less and less noise, and the model's guess below it. The titles say which share of the bits has been sent: 0, 1, 6, 10, 17, 24, 34 and 57 %. The guess can be read when 10 % are sent."
sent = np.cumsum(np.concatenate([[0], steps])) / np.sum(steps)
fig, axes = plt.subplots(2, 8, figsize=(9, 2.7))
for column, i in enumerate(shown):
    axes[0, column].set_title(f"{sent[i]:.0%}")
    for ax, pictures in zip(axes[:, column], (noisy, guesses), strict=True):
        ax.imshow(pictures[column, ..., 0], vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("noisy $x_t$")
axes[1, 0].set_ylabel("guess")
plt.show()

# %% tags=["claims"]
# @title Checked: a judge reads the digit in the guess before a quarter of the bits is sent
read = np.asarray(judge(weights.load("digits_classifier").model, guesses)[0]) == unseen.labels[13]
assert read[4:].all() and sent[shown[4]] < 0.25

# %% [markdown]
# ## 1 · Three steps to the bound
#
# The model draws $x_T$ from noise and goes back: $p(x_{0:T}) = p(x_T)\prod_n p(x_{n-1}|x_n)$. We
# want $p(x_0)$. It is an integral over all the ways that lead to $x_0$, and nobody can compute it.
#
# **Step 1.** We write the integral as an average over the *forward* process. Then we use that $-\log$
# is convex (Jensen's inequality):
#
# $$-\log p(x_0) = -\log \mathbb E_q\!\left[\frac{p(x_{0:T})}{q(x_{1:T}|x_0)}\right]
# \le \mathbb E_q\!\left[\log\frac{q(x_{1:T}|x_0)}{p(x_{0:T})}\right] =: L \tag{1}$$
#
# (Ho, Jain & Abbeel 2020, eq. 3). $-L$ is called the **evidence lower bound** (ELBO). We chose the
# forward process ourselves, so we can draw from it as often as we like.

# %% [markdown]
# **Step 2.** We turn each forward step around with Bayes' rule. If $x_{n-1}$ is known, then $x_0$
# adds nothing to what we know about $x_n$. So
#
# $$q(x_n|x_{n-1}) = q(x_{n-1}|x_n, x_0)\;\frac{q(x_n|x_0)}{q(x_{n-1}|x_0)}. \tag{2}$$
#
# In the product over $n = 2 \dots T$ nearly all fractions cancel. Only $q(x_T|x_0)/q(x_1|x_0)$ is
# left. Its denominator $q(x_1|x_0)$ cancels against the first forward step, which we do not turn around.
#
# **Step 3.** We collect the terms:
#
# $$L = \mathbb E_q\Big[ \underbrace{\mathrm{KL}\big(q(x_T|x_0)\,\|\,p(x_T)\big)}_{\text{prior } L_T}
# + \sum_{n=2}^{T} \underbrace{\mathrm{KL}\big(q(x_{n-1}|x_n,x_0)\,\|\,p(x_{n-1}|x_n)\big)}_{\text{transition } L_{n-1}}
# \underbrace{-\log p(x_0|x_1)}_{\text{reconstruction } L_0} \Big] \tag{3}$$
#
# (eq. 5; appendix A of the paper has the same steps).

# %% [markdown]
# **The same model as an autoencoder.** A *variational autoencoder* (VAE) has an encoder from the data to
# latent variables and a decoder back to the data. It is trained on a bound like (1). It is called
# *hierarchical* if there are several layers of latent variables, and *Markovian* if each layer depends on
# its neighbour only. A diffusion model is a Markovian hierarchical VAE with three peculiarities (Luo 2022,
# section "Variational Diffusion Models"): each layer has as many numbers as the data; the encoder is the
# forward process, so there is nothing to train in it; and the top layer is noise. In the figure, the arrows
# above belong to the encoder, and the arrows below to the decoder.

# %% alt="A chain of six pictures, from a digit to noise. Arrows to the right, above, are the encoder, which is fixed. Arrows to the left, below, are the decoder, which is trained."
layers = jnp.linspace(0, 1, 6)
digit, its_noise = jnp.asarray(unseen.x[13]), jax.random.normal(jax.random.key(14), (8, 8, 1))
latents = [q.alpha(t) * digit + q.sigma(t) * its_noise for t in layers]
fig, axes = plt.subplots(1, 6, figsize=(9, 2.1), gridspec_kw={"wspace": 0.4})
fig.get_layout_engine().set(wspace=0.25)
under = (
    "data $x_0$",
    "latent $x_1$",
    "latent $x_2$",
    "latent $x_3$",
    "latent $x_4$",
    "noise $x_T$",
)
for ax, picture, name in zip(axes, latents, under, strict=True):
    ax.imshow(picture[..., 0], vmin=-1.5, vmax=1.5)
    ax.set(xticks=[], yticks=[], xlabel=name)
for ax in axes[:-1]:
    for begin, end, color in (((1.05, 0.75), (1.4, 0.75), plots.TRUTH),
                              ((1.4, 0.25), (1.05, 0.25), plots.PREDICTION)):  # fmt: skip
        arrow = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", end, begin, xycoords="axes fraction", arrowprops=arrow,
                    annotation_clip=False)  # fmt: skip
fig.suptitle("above: encoder $q(x_n|x_{n-1})$, fixed;  below: decoder $p(x_{n-1}|x_n)$, trained")
plt.show()

# %% [markdown]
# Read (3) as a code. The *prior* term is the cost of $x_T$. Each *transition* term is the cost of
# making the image a little cleaner. The *reconstruction* is the cost of the last step, from the
# faintest noise to the exact pixels.
#
# Each KL compares two Gaussians, so it has a closed form. For example, the first line below compares
# two equal Gaussians and costs 0 nats. For one coordinate, in nats,
#
# $$\mathrm{KL} = \tfrac12\Big(\frac{v_q}{v_p} - 1 - \log\frac{v_q}{v_p} + \frac{(m_q - m_p)^2}{v_p}\Big). \tag{4}$$
#
# The formula has two parts: one is the cost of a wrong variance, the other the cost of a wrong mean.
# We divide nats by $\log 2$ and by the number of coordinates. This gives **bits per dimension**, the
# unit of this chapter.

# %% tags=["comparison"]
line = np.linspace(-12, 12, 200_001)
bell = lambda m, v: np.exp(-0.5 * (line - m) ** 2 / v) / np.sqrt(2 * np.pi * v)
for m_q, v_q, m_p, v_p in ((0.3, 0.4, 0.3, 0.4), (0.3, 0.4, -0.5, 0.4), (0.3, 0.4, -0.5, 1.7)):
    by_us = 0.5 * (v_q / v_p - 1 - np.log(v_q / v_p) + (m_q - m_p) ** 2 / v_p)
    density, other = bell(m_q, v_q), bell(m_p, v_p)
    ratio = np.log(density, where=density > 0, out=np.zeros_like(line)) - np.log(other)
    integral = np.sum(density * ratio) * (line[1] - line[0])
    by_library = bound.gaussian_kl(m_q, np.log(v_q), m_p, np.log(v_p))
    print(f"KL by (4) {by_us:.6f}, by integration {integral:.6f}, library {by_library:.6f} nats")
    np.testing.assert_allclose([integral, by_library], by_us, atol=1e-5)  # float32

# %% [markdown]
# ## 2 · The bound, written out
#
# Our data are again three unequal clouds in the plane. We know their exact denoiser, and also the
# exact $-\log p$. The chain is short: $T = 40$ steps. The model's mean is the posterior's mean, with
# the guess in the place of $x_0$ (chapter 03, equation 2). Its variance is $\beta_n$, one of DDPM's
# two choices.

# %%
T = 40
betas = process.linear_betas(T, 1e-3, 0.3)
chain = process.from_betas(betas)


def the_bound(D, x0, noises):
    """Equation (3) in bits per dimension: prior, transitions, reconstruction, each [B]."""
    abar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    kl = lambda m_q, v_q, m_p, v_p: (v_q / v_p - 1 - np.log(v_q / v_p) + (m_q - m_p) ** 2 / v_p) / 2
    # p(x_T) has the noise's own variance, here .999; papers round it to 1.
    terms = [kl(np.sqrt(abar[T]) * x0, 1 - abar[T], 0.0, 1 - abar[T])]
    for n in range(T, 0, -1):
        x_n = np.sqrt(abar[n]) * x0 + np.sqrt(1 - abar[n]) * noises[T - n]
        beta, beta_tilde = betas[n - 1], betas[n - 1] * (1 - abar[n - 1]) / (1 - abar[n])
        on_x0 = np.sqrt(abar[n - 1]) * beta / (1 - abar[n])
        on_x_n = np.sqrt(1 - beta) * (1 - abar[n - 1]) / (1 - abar[n])
        true, model = (on_x0 * guess + on_x_n * x_n for guess in (x0, np.asarray(D(x_n, n / T))))
        if n > 1:
            terms.append(kl(true, beta_tilde, model, beta))
        else:
            terms.append((x0 - model) ** 2 / (2 * beta) + np.log(2 * np.pi * beta) / 2)
    return np.stack(terms).mean(-1) / np.log(2)


# %% [markdown]
# The library keeps the bound apart from the model. A *reverse model* is any function
# `reverse(x, t, s)` that returns mean and log-variance of $p(x_s|x_t)$. `bound.evaluate` adds up the
# terms of such a model over any grid of times, in one compiled loop. With the same noise it must give
# the same numbers as our own code.

# %% tags=["comparison"]
clouds = denoiser.gaussian_mixture(chain, *toy2d.MIXTURE)
drawn = clouds.sample(jax.random.key(0), 2000)
key = jax.random.key(1)
noises = [jax.random.normal(jax.random.fold_in(key, i), drawn.shape) for i in range(T)]
written_out = the_bound(clouds.denoise, np.asarray(drawn, np.float64), np.asarray(noises))

reverse = bound.fixed(chain, clouds.denoise, first=1 / T, variance="transition")
library = bound.evaluate(reverse, chain, drawn, sampling.uniform(T), key)
# float32 against float64. The terms are differences of numbers near 1, a few of them large.
np.testing.assert_allclose(library.prior, written_out[0], atol=1e-5)
np.testing.assert_allclose(library.steps, written_out[1:], rtol=2e-3, atol=2e-3)
truth = -clouds.log_prob(drawn, 0.0) / (2 * np.log(2))
parts = [float(v.mean()) for v in (library.prior, library.steps[:-1].sum(0), library.steps[-1])]
print(f"prior {parts[0]:.4f} + transitions {parts[1]:.3f} + reconstruction {parts[2]:.3f}"
      f" = {sum(parts):.3f} bits/dim (2,000 points)")  # fmt: skip
print(f"exact -log p: {truth.mean():.3f} bits/dim")

# %% tags=["claims"]
# @title Checked: even with the exact denoiser the bound lies above the truth
assert library.total.mean() > truth.mean() + 0.1

# %% [markdown]
# Notice two things. First, a density can exceed 1, so these bits may be negative. For continuous data
# only *differences* of bits mean something. (Section 6 changes that for pixels.) Second, even with a
# perfect denoiser the bound is larger than the exact value. Why?
#
# ## 3 · The gap, exactly
#
# We average (3) over the data, and sort the same logarithms in another way:
#
# $$\mathbb E[L] = \underbrace{\mathbb E[-\log q(x_0)]}_{\text{entropy of the data}}
# + \mathrm{KL}\big(q(x_T)\,\|\,p(x_T)\big)
# + \sum_{n=1}^{T}\mathbb E\,\mathrm{KL}\big(q(x_{n-1}|x_n)\,\|\,p(x_{n-1}|x_n)\big) \tag{5}$$
#
# (Ho et al. 2020, end of appendix A). Nobody can compute these terms for images, but they tell us what
# the gap *is*. The model goes back with a Gaussian. The true $q(x_{n-1}|x_n)$ does not know $x_0$, and
# in general it is not a Gaussian.
#
# **Predict, then run.** Let the data themselves be Gaussian. With how many steps is the bound tight?

# %%
mean0, std0 = 0.4, 0.35


def gaussian_reverse(x, t, s):
    """The exact q(x_s | x_t) for data N(mean0, std0²): all are jointly Gaussian."""
    scale, added = process.transition(q, t, s)
    var_t, var_s = ((q.alpha(u) * std0) ** 2 + q.sigma(u) ** 2 for u in (t, s))
    mean = q.alpha(s) * mean0 + scale * var_s / var_t * (x - q.alpha(t) * mean0)
    return mean, jnp.broadcast_to(jnp.log(var_s * added / var_t), x.shape)


entropy = 0.5 * np.log2(2 * np.pi * np.e * std0**2)
draws = mean0 + std0 * jax.random.normal(jax.random.key(2), (20_000, 1))
tight = {}
for n in (1, 5, 50):
    found = bound.evaluate(gaussian_reverse, q, draws, sampling.uniform(n), jax.random.key(3))
    tight[n] = found.total.mean(), found.total.std() / np.sqrt(len(draws)), found.prior.max()
    print(f"{n:2} steps: {tight[n][0]:+.4f} ± {tight[n][1]:.4f}; entropy {entropy:+.4f} bits/dim")

# %% tags=["claims"]
# @title Checked: on Gaussian data the bound is the entropy, with 1, 5 or 50 steps
for value, se, prior in tight.values():
    assert abs(value - entropy) < 4 * se and prior == 0

# %% [markdown]
# The bound is tight with any number of steps, even with one. For Gaussian data the true reverse step
# *is* Gaussian, however long it is. (The prior term is exactly 0, because the cosine process keeps no
# signal at $t = 1$.)
#
# The other extreme is an oracle that knows $x_0$. Its mean is right. If we also give it the variance
# $\tilde\beta$ of the posterior, its variance is right too. Then every KL in (3) is 0.

# %%
answer = jnp.asarray(unseen.x[:50])
knows = bound.fixed(q, lambda x, t: answer, first=1 / 20, variance="posterior")
sure = bound.evaluate(knows, q, answer, sampling.uniform(20), jax.random.key(4), levels=17)
print(f"largest KL {sure.steps[:-1].max():.1e}, "
      f"reconstruction {sure.steps[-1].mean():.3f} bits/dim")  # fmt: skip
wider = bound.fixed(q, lambda x, t: answer, first=1 / 20, variance="transition")
unsure = bound.evaluate(wider, q, answer, sampling.uniform(20), jax.random.key(4), levels=17)
print(f"with the variance of the transition: largest KL {unsure.steps[:-1].max():.3f}")

# %% tags=["claims"]
# @title Checked: an oracle pays nothing for the transitions, if its variance is right
assert float(jnp.abs(sure.steps[:-1]).max()) < 1e-4  # float32 cancellation
assert (unsure.steps[:-1] > sure.steps[:-1]).all()

# %% [markdown]
# The oracle pays nothing for the transitions, because it knows the answer. If such a model were allowed,
# it would win every contest. Use it as a test, not as a model. If an implementation has a KL that is
# not 0 here, its mean or its variance is wrong.
#
# ## 4 · The best variance
#
# A real model does not know $x_0$. Which Gaussian is nearest to $q(x_s|x_t)$? It is the one with the
# same mean and the same variance. The posterior mean is $c\,x_0 + (\dots)\,x_t$. So the law of total
# variance (chapter 02) gives
#
# $$v^*(x_t) = \tilde\beta + c^2\,\operatorname{Var}(x_0 \mid x_t), \qquad
# c = \alpha_s\Big(1 - \tfrac{\mathrm{SNR}(t)}{\mathrm{SNR}(s)}\Big) \tag{6}$$
#
# (Bao et al. 2022, theorem 1, for the mean over $x_t$). The first part is the noise of the step. The
# second part is the doubt about $x_0$, as far as the step carries it along.

# %% [markdown]
# Both of DDPM's choices are extreme cases of (6):
#
# - If the data are one single point, there is no doubt. Then $v^* = \tilde\beta$, the variance of the
#   *posterior*.
# - If the data are $\mathcal N(0, I)$, the doubt is $\sigma_t^2$. Then $v^*$ becomes $\beta$, the
#   variance of the *transition* $q(x_t|x_s)$
#
# (Ho et al. 2020, section 3.2). Other data whose variance is at most 1 lie between these two, averaged over
# $x_t$. At a single $x_t$ between two clouds, $v^*$ can be larger than $\beta$. Equation (6) is a reverse model in
# five lines. For our clouds the doubt is known exactly.


# %%
def matched(p, D, doubt):
    """A reverse model with the best variance; doubt(x, t) is Var(x0 | x_t), coordinate-wise."""

    def reverse(x, t, s):
        mean, beta_tilde = process.posterior(p, D(x, t), x, t, s)
        c = process.expand(p.alpha(s) * (1 - jnp.exp(p.log_snr(t) - p.log_snr(s))), x)
        return mean, jnp.log(beta_tilde + c**2 * doubt(x, t))

    return reverse


gm = denoiser.gaussian_mixture(q, *toy2d.MIXTURE)


def doubt(x, t):
    """Var(x0 | x_t) of the mixture: within the components, and between them."""
    r = gm.responsibilities(x, t)[..., None]
    alpha, sigma = q.alpha(t), q.sigma(t)
    total = (alpha * gm.stds) ** 2 + sigma**2  # [K]
    gap = x[:, None] - alpha * gm.means
    centre = gm.means + (alpha * gm.stds**2 / total)[:, None] * gap
    within = (gm.stds**2 * sigma**2 / total)[:, None]
    return jnp.sum(r * (within + (centre - gm.denoise(x, t)[:, None]) ** 2), axis=1)


# %% tags=["comparison"]
one = jnp.ones((1, 1))
for t, s in ((1.0, 0.6), (0.5, 0.45), (0.2, 0.1)):
    beta_tilde, beta = (float(np.exp(v)) for v in bound.variance_limits(q, t, s, first=0.01))
    no_doubt = matched(q, lambda x, t: x, lambda x, t: 0.0)(one, t, s)[1]
    normal = matched(q, lambda x, t: x, lambda x, t: q.sigma(t) ** 2)(one, t, s)[1]
    print(f"t = {t}, s = {s}: from {beta_tilde:.4f} (a point) to {beta:.4f} (standard normal)")
    np.testing.assert_allclose(np.exp([no_doubt, normal]).ravel(), [beta_tilde, beta], rtol=1e-4)

# Averaged over x_t the clouds lie between; at 10 to 25 % of all x_t, v* is larger than β.
noisy_points = gm.sample(jax.random.key(3), 4000)
noisy_points = process.add_noise(
    q, noisy_points, jax.random.normal(jax.random.key(4), noisy_points.shape), 0.25
)
of_draws = np.asarray(doubt(noisy_points, 0.25) / q.sigma(0.25) ** 2)  # above 1: v* is above β
assert of_draws.mean() < 1 and 0.1 < (of_draws > 1).mean() < 0.25
points = jnp.array([[0.1, -0.2], [-0.3, 0.4]])
jacobian = jax.vmap(jax.jacfwd(lambda x: gm.denoise(x[None], 0.4)[0]))(points)
by_slope = q.sigma(0.4) ** 2 / q.alpha(0.4) * jnp.diagonal(jacobian, axis1=1, axis2=2)
np.testing.assert_allclose(doubt(points, 0.4), by_slope, rtol=1e-3)  # exercise 02.7, float32

# %% [markdown]
# Now we take the exact denoiser of the clouds, three variances, and more and more steps. Nothing is
# trained. So by (5) the gap that we see is the price of using a Gaussian.
#
# **Predict, then run.** In a long chain $\beta$ and $\tilde\beta$ nearly agree at almost every step
# (Nichol & Dhariwal 2021, figure 1). So which of the three gaps go to 0?

# %%
x0 = gm.sample(jax.random.key(5), 10_000)
exact = -gm.log_prob(x0, 0.0) / (2 * np.log(2))


@jax.jit
def three_gaps(times):
    models = (bound.fixed(q, gm.denoise, times[-2], "posterior"),
              bound.fixed(q, gm.denoise, times[-2], "transition"),
              matched(q, gm.denoise, doubt))  # fmt: skip
    key = jax.random.key(6)
    return jnp.stack([bound.evaluate(r, q, x0, times, key).total - exact for r in models])


counts = (4, 8, 16, 32, 64, 128)
gaps = np.stack([np.asarray(three_gaps(sampling.uniform(n))) for n in counts])  # [T, 3, B]
gap, gap_se = gaps.mean(2).T, gaps.std(2).T / np.sqrt(gaps.shape[2])
for n, row in zip(counts, gap.T, strict=True):
    print(
        f"{n:3} steps: gap {row[0]:.3f} (posterior)  {row[1]:.3f} (transition)  {row[2]:.3f} (best)"
    )
print(f"standard errors: at most {gap_se.max():.3f} bits/dim (10,000 points)")

# %% alt="The gap of the bound against the number of steps, for three variances, both axes logarithmic. The gap of the best variance falls fastest, and that of the transition's steadily. The gap of the posterior's variance falls at first, and then rises."
names = ("posterior", "transition", "best")
fig, ax = plt.subplots(figsize=(5.6, 3.4))
ax.set(ylim=(0.012, 2))  # lines that leave below are lost in the sampling error
plots.curves(counts, dict(zip(names, gap, strict=True)), log="xy", label_at=0.3, ax=ax,
             xlabel="number of steps $T$", ylabel="bound − exact, bits/dim")  # fmt: skip
ax.axhspan(0.012, 2 * gap_se[2, 4:].max(), color="0.9", lw=0)
ax.text(4, 0.015, "within two standard errors of 0", size="small", color="0.4")
ax.set_xticks(counts, counts)
ax.minorticks_off()
plt.show()

# %% tags=["claims"]
# @title Checked: the best variance closes the gap first, and the posterior's does not close it
# The same points and noise for all three; a standard error of "best" is 0.01.
assert (gap[2] < gap[1] - 0.05).all() and gap[2, -1] < 0.05
assert gap[2, -1] < 3 * gap_se[2, -1]  # no gap that we can measure
halved = gap[1, 1:] / gap[1, :-1]
assert ((halved > 0.4) & (halved < 0.7)).all()  # measured .67, .62, .56, .51 and .57
assert gap[0].min() > 0.4 and gap[0, -1] > gap[0, 2] + 0.1 and gap[0, -1] > 4 * gap[1, -1]

# %% [markdown]
# The gap of the best variance closes first (in the grey band, only sampling error is left). The gap of
# $\beta$ roughly halves each time we double the number of steps. The gap of $\tilde\beta$ **does not
# close** on these grids, which are uniform in time.
#
# The cause lies in the steps next to the data. There the noise is smaller than anything in the clouds,
# so the density looks flat at that scale. To go back from a flat density, a step needs the variance
# $\beta$. But $\beta/\tilde\beta \approx \sigma_t^2/\sigma_s^2$ is far from 1 there. From step 2 to step 1
# of a uniform grid the noise loses half of its variance or more, *however many steps there are*.
#
# For samples this hardly matters: Ho et al. found both variances alike (section 3.2). Noise this faint cannot
# be seen. The bound does measure it.

# %%
mismatch = {}
for n in (32, 64, 128):
    mismatch[n] = [float(q.sigma(k / n) / q.sigma((k - 1) / n)) ** 2 for k in (2, 3, 4)]
    price = [0.5 * (r - 1 - np.log(r)) / np.log(2) for r in mismatch[n]]  # (4), flat data
    print(f"{n} steps: β/β̃ of steps 2, 3, 4 is " + ", ".join(f"{r:.2f}" for r in mismatch[n])
          + "; the wrong variance costs " + ", ".join(f"{c:.2f}" for c in price) + " bits")  # fmt: skip

print("the exact gap of β̃ on a grid that is uniform in log-SNR down to t = 1/128:")
even = {}
for n in (32, 128):
    in_log_snr = sampling.log_snr_uniform(q, n, t_min=1 / 128, t_max=0.999)
    even[n] = np.asarray(three_gaps(in_log_snr)).mean(1)
    print(f"{n:3} steps: {even[n][0]:.2f} (uniform in time: {gap[0, counts.index(n)]:.2f})")

# %% tags=["claims"]
# @title Checked: steps 2 to 1 halve the variance of the noise; with even steps of log-SNR β̃ closes
assert min(ratios[0] for ratios in mismatch.values()) > 2
assert even[128][0] < 0.35 * even[32][0] and even[128][0] < 0.5 * gap[0, -1]

# %% [markdown]
# The condition matters. On a grid with equal steps of *log-SNR*, $\beta/\tilde\beta$ is nearly the same at
# all steps next to the data, and with more steps it goes to 1. There the gap of $\tilde\beta$ shrinks.
#
# ### A schedule that is learned
#
# So the bound depends on where the steps lie. Then we can *learn* their places: the bound is a function of
# the times, and it has a gradient. The times of 8 steps are 8 shares of the whole way, which stay positive
# through a softmax. (On a uniform grid, one would move the levels $\alpha, \sigma$ instead. This is the
# same thing.) The denoiser is exact and nothing else is trained.
#
# **Predict, then run.** How many uniform steps are as good as 8 learned ones?


# %%
def times_from(places):
    """Falling times from 1 to 0: step n goes the n-th share of the way."""
    way = jnp.cumsum(jax.nn.softmax(places))
    return jnp.concatenate([jnp.ones(1), 1 - way]).at[-1].set(0.0)


@jax.jit
def move(places, memory, key):
    """One step of Adam on the bound of 1,000 points, which are not those of the table above."""
    points = gm.sample(jax.random.key(15), 1000)
    reverse = matched(q, gm.denoise, doubt)
    cost = lambda s: bound.evaluate(reverse, q, points, times_from(s), key).total.mean()
    change, memory = adam.update(jax.grad(cost)(places), memory)
    return optax.apply_updates(places, change), memory


adam, places = optax.adam(0.05), jnp.zeros(8)
memory = adam.init(places)
for i in range(200):
    places, memory = move(places, memory, jax.random.fold_in(jax.random.key(16), i))
learned_times = times_from(places)
of_learned = np.asarray(three_gaps(learned_times))[2]
print("learned times:", np.round(np.asarray(learned_times), 2))
print(f"gap with the best variance: 8 learned steps {of_learned.mean():.3f}, 8 uniform "
      f"{gap[2, 1]:.3f}, 16 uniform {gap[2, 2]:.3f} bits/dim (10,000 points)")  # fmt: skip


# %%
@jax.jit
def best_gap(times, key):
    return bound.evaluate(matched(q, gm.denoise, doubt), q, x0, times, key).total - exact


# With one draw of the noise the difference is 0.034 ± 0.013. Ten draws for each point settle it.
by_grid = {
    name: np.mean([best_gap(grid, jax.random.key(60 + k)) for k in range(10)], axis=0)
    for name, grid in (("8 learned", learned_times), ("16 uniform", sampling.uniform(16)))
}
further = by_grid["16 uniform"] - by_grid["8 learned"]
further_se = further.std() / np.sqrt(len(further))
print(", ".join(f"{name} {v.mean():.3f}" for name, v in by_grid.items())
      + f": {further.mean():.3f} ± {further_se:.3f} bits/dim apart")  # fmt: skip

# %% tags=["claims"]
# @title Checked: 8 learned steps are better than 16 uniform ones
assert further.mean() > 4 * further_se  # the same points; measured six standard errors
assert float(learned_times[1]) < 0.5  # the first step goes more than half of the way
# One long step, 0.6, and all others are short: the longest of them is 0.1.
assert float(-jnp.diff(learned_times)[1:].min()) < 0.3 * float(1 - learned_times[1])

# %% [markdown]
# More than 16: sixteen uniform steps are still worse than 8 learned ones. The learned grid makes one long step
# through the noise, and short steps next to the data.
# *Variational diffusion models* learn their schedule together with the network (Kingma et al. 2021). In the
# limit of many steps the bound depends only on the SNR at both *ends* of the schedule. Our table agrees: at
# 128 steps even the uniform grid has no gap that we can measure. Then the schedule between the ends changes
# only the scatter of the estimate, and this is what their network learns it for.

# %% [markdown]
# ## 5 · A network that learns its variance
#
# For images we cannot use (6) directly: it needs a number for each pixel and each $x_t$. Nichol &
# Dhariwal let the network predict the variance. The network says where between the two extremes it
# lies, **on a logarithmic scale**. For example, a share $\rho = \tfrac12$ means the geometric mean of
# both:
#
# $$\log v = \rho\,\log\beta + (1 - \rho)\,\log\tilde\beta \tag{7}$$
#
# (2021, eq. 15, who write $v$ for our share $\rho$). The network gets a second output $u$ for this, and
# $\rho = (u+1)/2$. So an untrained network, with $u = 0$, starts in the middle. Nothing keeps $\rho$ between 0 and 1.
#
# **A trap.** At the last step $\tilde\beta = 0$, and its logarithm is $-\infty$. The library does the
# same as the authors' code: it takes $\tilde\beta$ from the step before.

# %% tags=["comparison"]
first = 1 / 32
model = lambda u: lambda x, t, cond: jnp.concatenate([0.3 * x, jnp.full_like(x, u)], axis=-1)
x = jnp.array([[0.4, -0.7]])
for t in (1.0, 0.5, first):
    lower, upper = bound.variance_limits(q, t, t - first, first)
    found = [bound.learned(model(u), q, "v", first)(x, t, t - first)[1][0, 0] for u in (-1, 0, 1)]
    print(f"t = {t:.3f}: log v = {found[0]:.3f}, {found[1]:.3f}, {found[2]:.3f} for u = -1, 0, 1")
    np.testing.assert_allclose(found, [lower, (lower + upper) / 2, upper], rtol=1e-5, atol=1e-6)
assert jnp.log(process.posterior(q, x, x, first, 0.0)[1]) == -jnp.inf  # the trap

# %% [markdown]
# What trains $u$? The simple loss does not depend on the variance, but the bound does. So the **hybrid**
# objective adds a small multiple of the bound:
#
# $$L_\text{hybrid} = L_\text{simple} + \lambda\, L, \qquad \lambda = 0.001 \tag{8}$$
#
# (eq. 16). In $L$ the mean is held fixed by a *stop-gradient*, so the bound trains $u$ only. The simple
# loss trains the mean, because it makes good samples. The bound trains the variance. For each example
# we draw one step at random, and multiply its term by $T$.
#
# We check the stop-gradient in this way: we shift the network's outputs a little, and compute the slope
# of the loss.

# %% tags=["comparison"]
two_headed = MLP(width=64, learned_variance=True, rngs=nnx.Rngs(0))
cloud = data.load("toy2d", kind="mixture", n=50_000)


def nudged(shift, weight):
    """The hybrid loss if the four outputs (two for the mean, two for u) are moved by `shift`."""
    model = lambda x, t, cond: two_headed(x, t, cond) + shift
    return bound.hybrid_loss(model, q, "v", jnp.asarray(cloud.x[:512]), None, jax.random.key(7),
                             T=32, levels=None, weight=weight)  # fmt: skip


slope = jax.jit(jax.grad(nudged))
without, small, large = (np.asarray(slope(jnp.zeros(4), w)) for w in (0.0, 1e-3, 1.0))
for name, s in (("λ = 0", without), ("λ = 0.001", small), ("λ = 1", large)):
    print(f"{name:10} slope along the mean {s[:2].round(4)}, along u {s[2:].round(4)}")
np.testing.assert_allclose(small[:2], without[:2], rtol=1e-5)  # no gradient of L into the mean
np.testing.assert_allclose(large[:2], without[:2], rtol=1e-5)
assert (without[2:] == 0).all() and np.allclose(large[2:], 1000 * small[2:], rtol=1e-3)

# %%
fitted = loop.fit(
    two_headed,
    lambda model, x, _, key: bound.hybrid_loss(model, q, "v", x, None, key, T=32, levels=None),
    data.batches(cloud, size=512, seed=0), steps=3000, key=jax.random.key(0),
)  # fmt: skip
net = fitted.ema
D_net = denoiser.denoiser(lambda *a: bound.split_output(net(*a))[0], q, "v")
learned = bound.learned(net, q, "v", first)

# %% [markdown]
# **Predict, then run.** We compare three variances with one network and one mean: $\tilde\beta$, $\beta$,
# and the learned one. The row "32 steps" of the table above has the gaps of the exact denoiser. Where
# will the learned variance end: near $\beta$, or near the best?


# %%
@jax.jit
def gap_of_network(times):
    models = (bound.fixed(q, D_net, first, "posterior"),
              bound.fixed(q, D_net, first, "transition"), learned)  # fmt: skip
    key = jax.random.key(6)
    return jnp.stack([bound.evaluate(r, q, x0, times, key).total - exact for r in models])


of_net = np.asarray(gap_of_network(sampling.uniform(32))).mean(1)
of_exact = gap[:, counts.index(32)]
for name, a, b in zip(("posterior", "transition", "learned / best"), of_net, of_exact, strict=True):
    print(f"{name:15} gap of the network {a:.3f}, of the exact denoiser {b:.3f} bits/dim")

# %% tags=["claims"]
# @title Checked: the learned variance has less than a third of the transition's gap
# The points and the noise are the same: what differs is the variance. Standard errors 0.01.
assert of_net[2] < 0.35 * of_net[1] and of_net[1] < 0.65 * of_net[0]
assert (of_net > of_exact - 0.03).all()


# %%
@jax.jit
def log_variances(net, t, s):
    """Exact and learned log v at 2,000 draws of x_t, and the two ends."""
    x_t = process.add_noise(q, x0[:2000], jax.random.normal(jax.random.key(8), (2000, 2)), t)
    models = matched(q, gm.denoise, doubt), bound.learned(net, q, "v", first)
    return [model(x_t, t, s)[1] for model in models], bound.variance_limits(q, t, s, first)


at = np.arange(2, 33) / 32
rows = [log_variances(net, t, t - first) for t in at]
rise = {name: [np.mean(v[k] - lower) for v, (lower, _) in rows]
        for k, name in enumerate(("exact (6)", "learned"))}  # fmt: skip
rise["transition"] = [upper - lower for _, (lower, upper) in rows]


def shares(row):
    """Exact and learned share rho of every draw."""
    found, (lower, upper) = row
    return [np.ravel((log_v - lower) / (upper - lower)) for log_v in found]


middle, late = 12, 27  # t = 0.44 and t = 0.91

# %% alt="Left: the logarithm of three variances over that of the posterior, over time; the learned one lies close to the exact one, far below the transition's. Right: the learned share against the exact share; the points follow the diagonal."
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2))
plots.curves(at, rise, xlabel="time $t$", ylabel=r"$\log v - \log\tilde\beta$",
             ax=axes[0], label_at=0.3)  # fmt: skip
axes[1].plot(*shares(rows[middle]), ".", ms=2, alpha=0.3, color=plots.PREDICTION)
axes[1].plot([0, 1], [0, 1], color=plots.TRUTH, lw=1)
axes[1].set(xlabel=r"exact share $\rho$", ylabel=r"learned share $\rho$",
            title=f"2,000 draws, t = {at[middle]:.2f}")  # fmt: skip
plt.show()
agreement = {k: np.corrcoef(*shares(rows[k]))[0, 1] for k in (middle, late)}
for k, value in agreement.items():
    print(f"t = {at[k]:.2f}: correlation of exact and learned share {value:.2f} (2,000 points), "
          f"the ends {rows[k][1][1] - rows[k][1][0]:.3f} apart in log v")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the network has learned the share, less well at large t, where it hardly matters
assert agreement[middle] > 0.75 and agreement[late] < agreement[middle] - 0.2
width = {k: float(rows[k][1][1] - rows[k][1][0]) for k in (middle, late)}
assert width[late] < 0.2 * width[middle]

# %% [markdown]
# Nobody gave formula (6) to the network. It has learned from the bound alone at which points the doubt
# is large. At large $t$ the two extremes nearly coincide. There the share hardly matters, and the network
# learns less of it.
#
# ## 6 · Pixels are not real numbers
#
# A digit of our data set has 64 pixels, and each pixel has one of 17 grey levels. For such data $p(x_0)$
# is a probability, not a density. So the reconstruction must be a probability too. DDPM gives each level
# the Gaussian's mass in a *bin* around this level. The first and the last bin reach to infinity:
#
# $$p(x_0|x_1) = \prod_i \int_{\delta_-(x_0^i)}^{\delta_+(x_0^i)} \mathcal N\big(u;\ \mu^i,\ v^i\big)\,du \tag{9}$$
#
# (Ho et al. 2020, eq. 13), with edges half-way between the levels. Now the number of bits is the length
# of a real code.

# %% tags=["comparison"]
LEVELS = jnp.linspace(-1, 1, 17)
for mean, std in ((0.1, 0.3), (-1.2, 0.05), (0.99, 2.0)):
    log_p = bound.discretized_log_likelihood(LEVELS, mean, 2 * jnp.log(std), 17)
    print(f"mean {mean}, std {std}: the 17 probabilities add up to {jnp.exp(log_p).sum():.6f}")
    assert abs(float(jnp.exp(log_p).sum()) - 1) < 1e-5  # 17 roundings of float32

grey = lambda images: np.rint((images.x.reshape(len(images.x), 64) + 1) * 8).astype(int)
count = np.stack([(grey(digits) == k).sum(0) for k in range(17)]) + 1  # one of each to begin with
pixel_code = -np.log2(count / count.sum(0))[grey(unseen), np.arange(64)].mean()
anywhere = count.sum(1) / count.sum()
shared_code = -np.log2(anywhere)[grey(unseen)].mean()
print(f"without a model {np.log2(17):.2f}, one histogram for all pixels {shared_code:.2f}, "
      f"one for each pixel {pixel_code:.2f} bits/dim (360 unseen digits)")  # fmt: skip

# %% tags=["claims"]
# @title Checked: one histogram for each pixel is the best of the trivial codes
assert pixel_code < shared_code < np.log2(17)
by_pixel = -np.log2(count / count.sum(0))[grey(unseen), np.arange(64)].mean(0)
assert by_pixel[[0, 7, 56, 63]].mean() < 0.2 * pixel_code  # the corners

# %% [markdown]
# A number in bits means something only beside such trivial codes. The last one knows how often each
# pixel has each grey level, and it knows nothing about strokes. Still it is not easy to beat: the corners
# are nearly always black, so they cost almost nothing.
#
# Now we take the released network with four reverse models:
#
# - *posterior* and *transition*: the fixed variances;
# - *matched*: equation (6). The doubt of each pixel at each time is measured on **training** images, as
#   $\mathbb E\,(x_0 - \hat x_0)^2$. This needs no retraining, only one table. If the guess is the exact mean,
#   this number is the doubt. The network's guess is not exact, and then the number also holds the error of
#   the guess. This is what we want: for a *given* mean it is the best variance (Bao, Li, Sun et al. 2022);
# - *matched, rounded*: the same, but below $t = 0.01$ we do not use the network. Guess and doubt follow
#   from one fact: a pixel has one of 17 levels. Section 7 shows what this is good for.


# %%
def rounding(x, t):
    """Mean and variance of x0 given x_t, for a pixel whose 17 levels are equally likely."""
    alpha, sigma = (level[..., None] for level in process.levels(q, t, x))
    weights = jax.nn.softmax(-((x[..., None] - alpha * LEVELS) ** 2) / (2 * sigma**2))
    mean = weights @ LEVELS
    return mean, jnp.sum(weights * (LEVELS - mean[..., None]) ** 2, axis=-1)


clock = np.linspace(0.04, 1, 48).astype(np.float32) ** 2
ROUND_BELOW = 0.01
noise = 8 * float(q.sigma(ROUND_BELOW))  # in grey levels, which are 2/16 apart
missed = 2 * float(jax.scipy.stats.norm.sf(0.5 / noise))
print(f"noise at t = {ROUND_BELOW}: {noise:.2f} grey levels; {missed:.1%} would be rounded wrongly")


@jax.jit
def measure_doubt(model, images, key):
    """E(x0 - guess)² of each pixel at each time, [48, 64]."""
    D = denoiser.denoiser(model, q, "v")

    def at_time(inputs):
        t, key = inputs
        x_t = process.add_noise(q, images, jax.random.normal(key, images.shape), t)
        return ((images - D(x_t, t)) ** 2).mean(0).ravel()

    return jax.lax.map(at_time, (clock, jax.random.split(key, len(clock))))


table = measure_doubt(released.model, digits.x[:360], jax.random.key(8))

# %% tags=["claims"]
# @title Checked: below t = 0.01 few pixels would be rounded wrongly
assert noise < 0.22 and missed < 0.02
assert table.shape == (48, 64) and table[0].mean() < 1e-3 < table[-1].mean()

# %% [markdown]
# The bound of a chain of $T$ steps needs $T$ evaluations for each image. We want to compare chains of
# different lengths at equal cost. So we always evaluate 6,144 pairs of an image and a step: 16 steps with
# 384 images each, for example, or 256 steps with 24 images each. Each step takes the next images from the
# list of the 360 unseen ones.


# %%
def looked_up(table, t, like):
    """The doubt of each pixel at times t [B], from the table."""
    column = lambda c: jnp.interp(t, clock, jnp.log(c + 1e-7))
    return jnp.exp(jax.vmap(column, 1, 1)(table)).reshape(like.shape)


def four_models(x_t, t, guess, table, first):
    """The reverse models for states x_t whose guess is already known."""
    known, of_table = lambda x, t: guess, looked_up(table, t, x_t)
    late, (mean, spread) = process.expand(t, x_t) < ROUND_BELOW, rounding(x_t, t)
    rounded = lambda x, t: jnp.where(late, mean, guess)
    doubt = lambda x, t: jnp.where(late, spread + 1e-7, of_table)
    return {
        "posterior": bound.fixed(q, known, first, "posterior"),
        "transition": bound.fixed(q, known, first, "transition"),
        "matched": matched(q, known, lambda x, t: of_table),
        "matched, rounded": matched(q, rounded, doubt),
    }


# %%
@jax.jit
def all_terms(model, table, x0, eps, t, s, first):
    """The term of each pair for each reverse model, and the squared error of the guess."""
    D = denoiser.denoiser(model, q, "v")

    def chunk(pair):
        x0, eps, t, s = pair
        x_t = process.add_noise(q, x0, eps, t)
        guess = D(x_t, t)  # one evaluation serves all four
        models = four_models(x_t, t, guess, table, first)
        terms = {k: bound.step_term(r, q, x0, x_t, t, s, levels=17) for k, r in models.items()}
        return terms | {"error": ((x0 - guess) ** 2).mean((1, 2, 3))}

    split = lambda a: a.reshape(24, 256, *a.shape[1:])
    return jax.tree.map(jnp.ravel, jax.lax.map(chunk, tuple(map(split, (x0, eps, t, s)))))


# %%
PAIRS = 6144
fresh = jax.random.normal(jax.random.key(9), (PAIRS, 8, 8, 1))
copies = jnp.asarray(unseen.x)[np.arange(PAIRS) % len(unseen.x)]


def chain_of(times, table=table):
    """Name -> the terms of the T steps, [T, PAIRS/T], in bits per dimension."""
    T = len(times) - 1
    step = np.arange(PAIRS) // (PAIRS // T)
    pairs = copies, fresh, times[step], times[step + 1]
    found = all_terms(released.model, table, *pairs, times[-2])
    return {name: np.asarray(v).reshape(T, -1) for name, v in found.items()}


lengths = (4, 8, 16, 32, 64, 128, 256)
chains = {T: chain_of(sampling.uniform(T)) for T in lengths}
methods = ("posterior", "transition", "matched", "matched, rounded")
total = {m: np.array([chains[T][m].mean(1).sum() for T in lengths]) for m in methods}
squared = [(c[m].var(1) / c[m].shape[1]).sum() for c in chains.values() for m in methods]
for i, length in enumerate(lengths):
    print(f"{length:3} steps: " + ", ".join(f"{m} {total[m][i]:.2f}" for m in methods))
print(f"standard errors at most {np.sqrt(max(squared)):.2f} bits/dim")

# %% [markdown]
# **Predict, then run.** By (5), more steps bring a perfect denoiser closer to the entropy. The figure
# below shows the bound on unseen digits against the number of steps. What will a real network do?
#
# A uniform grid changes two things at once. With more steps, its *last time* $1/T$ moves closer to the
# data too. So the right panel has other grids: their last time is $1/32$, and only the number of steps
# before it changes.

# %% alt="The bound against the number of steps. On uniform grids each line falls at first and then rises, and the rounded one stops rising at 128 steps. With the last time held, all fall."
held = {
    T: chain_of(np.append(np.linspace(1, 1 / 32, T), 0).astype(np.float32)) for T in lengths[3:]
}
total_held = {m: np.array([c[m].mean(1).sum() for c in held.values()]) for m in methods[:3]}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for ax, counted, series in zip(axes, (lengths, lengths[3:]), (total, total_held), strict=True):
    plots.curves(counted, series, ax=ax, log="x", xlabel="number of steps $T$", ylabel="",
                 label_at=0.5)  # fmt: skip
    ax.axhline(pixel_code, color=plots.NOISE, lw=1)
    ax.set_xticks(counted, counted)
    ax.minorticks_off()
axes[0].set(ylabel="bound, bits/dim", title="uniform grids")
axes[1].set_title("last time held at $t$ = 1/32")
axes[1].text(1.01, pixel_code, "a histogram\nfor each pixel", size="small", color="0.4", va="center",
             transform=axes[1].get_yaxis_transform())  # fmt: skip
plt.show()
for i, length in enumerate(held):
    print(f"{length:3} steps, the last from 1/32: "
          + ", ".join(f"{m} {values[i]:.2f}" for m, values in total_held.items()))  # fmt: skip

# %%
best = lengths[int(np.argmin(total["matched"]))]
print(f"best number of steps: {best} (matched), "
      f"{lengths[int(np.argmin(total['matched, rounded']))]} (matched, rounded)")  # fmt: skip

# %% tags=["claims"]
# @title Checked: uniform grids get worse again, held ones do not; matched is best, rounding helps
assert all(total[m][-1] > total[m].min() + 0.2 for m in methods[:3])  # many standard errors
# With the last time held more steps only help. One value's standard error is up to .02.
assert all((np.diff(values) < 0.02).all() for values in total_held.values())
assert all(values[-1] < values[0] - 0.05 for values in total_held.values())
fixed_held = np.minimum(total_held["posterior"], total_held["transition"])
saved_held = fixed_held - total_held["matched"]  # measured .42, .21, .12 and .08
assert (np.diff(saved_held) < 0).all() and 0.03 < saved_held[-1] < 0.15 < 0.35 < saved_held[0]
assert (total["matched"] < np.minimum(total["posterior"], total["transition"]) - 0.05).all()
fixed_best = min(total["posterior"].min(), total["transition"].min())
assert total["matched"].min() < min(fixed_best - 0.3, pixel_code - 0.25)
assert abs(fixed_best - pixel_code) < 0.1  # no better than the histograms
assert total["matched, rounded"][-1] < total["matched"][-1] - 0.3
# The matched variance is the best multiple of itself: the same images and noise for the three.
for factor in (0.6, 1.6):
    other = chain_of(sampling.uniform(32), factor * table)["matched"].mean(1).sum()
    assert other > total["matched"][lengths.index(32)] + 0.01

# %% [markdown]
# On uniform grids the bound gets *worse* again. On the right, more steps lower it. So more steps do not
# hurt. What hurts is that the last step, the one with the bins, comes too late. Between $t = 1/32$ and $1/T$
# the network's guess is not good enough, and each step there costs bits.
#
# How much is the right variance worth? With few steps much: 0.4 bits at 32 steps. On uniform grids, where
# each variance may choose its best number of steps, it is still more than 0.3 bits. With the fixed variances
# the network is then hardly better than a table of histograms. With the last time held and 256 steps, it is
# only 0.08 bits: all three variances nearly agree in short steps.

# %% [markdown]
# ## 7 · Which steps cost the bits?
#
# **Explorer.** On the left are the bits of every step, against the noise that is on the image before the
# step. The noise is measured in *grey levels*. On the right is the sum of the bits so far, from pure noise
# to the pixels. Choose a reverse model, and move the slider through the number of steps. Which steps cost
# most bits? Which steps cost nothing with rounding?


# %%
def step_bits(T, method, axes):
    """Bits of each step, and their sum so far, against the noise in grey levels (2/16 apart)."""
    bits = chains[T][method].mean(1)
    edges = np.maximum(np.asarray(q.sigma(sampling.uniform(T))) * 8, 0.05)
    axes[0].bar(edges[1:], bits, edges[:-1] - edges[1:], align="edge", color=plots.DATA,
                edgecolor="white", lw=0.5)  # fmt: skip
    axes[0].set(ylim=(0, 1.0), ylabel="bits/dim of the step")
    axes[1].plot(edges, np.cumsum([0, *bits]), color=plots.PREDICTION, marker=".", ms=4)
    axes[1].axhline(pixel_code, color=plots.NOISE, lw=1)
    axes[1].text(7.5, pixel_code + 0.05, "a histogram for each pixel", size="small", color="0.4")
    axes[1].set(ylim=(0, 3.3), ylabel="bits/dim so far", title=f"in all {bits.sum():.2f} bits/dim")
    for ax in axes:
        ax.axvline(1, color=plots.TRUTH, lw=0.6, ls=":")
        ax.set(xscale="log", xlim=(8.5, 0.045), xlabel=r"noise $\sigma_t$, in grey levels")
    axes[0].set_title(f"{method}, {T} steps")


def frame(setting):
    fig, axes = plt.subplots(1, 2, figsize=(8.5, 3))
    step_bits(*setting, axes)
    return fig


frames = {m: widgets.render(frame, [(T, m) for T in lengths]) for m in methods}
widgets.explorer(frames, [f"T = {T}" for T in lengths], slider="steps", choice="model", start=3)

# %% [markdown]
# Here is the same figure for 256 steps, without a slider.

# %% alt="Bits of each step, and bits so far, over the noise in grey levels, with 256 steps. Most bits are sent once the noise is below one grey level. Without rounding the last step costs the most; with rounding it costs hardly anything."
fig, axes = plt.subplots(2, 2, figsize=(8.5, 5.6))
for row, method in zip(axes, ("matched", "matched, rounded"), strict=True):
    step_bits(256, method, row)
plt.show()
at_the_end = {}
for length in (32, 64, 128, 256):
    paid = chains[length]["matched"].mean(1)
    begin = np.argmax(np.asarray(q.sigma(sampling.uniform(length)[:-1])) * 8 < 2)
    rms = np.sqrt(chains[length]["error"].mean(1)[begin]) * 8
    at_the_end[length] = paid[begin:].sum() / paid.sum(), rms
    print(f"{length} steps: {at_the_end[length][0]:.0%} of the bits are sent once the noise is "
          f"below 2 grey levels; the guess is then {rms:.1f} levels off")  # fmt: skip
saved = chains[256]["matched"].mean(1).sum() - chains[256]["matched, rounded"].mean(1).sum()
print(f"256 steps: rounding saves {saved:.2f} bits/dim")

# %% tags=["claims"]
# @title Checked: most bits are sent below a noise of 2 grey levels
assert all(part > 0.5 and rms < 1.5 for part, rms in at_the_end.values())

# %% [markdown]
# **Rate and distortion.** A receiver who has got a part of the bits can already guess the digit. The *rate*
# is the number of bits so far, and the *distortion* is the error of the guess at this point, as the root of
# the mean square (rms). The next figure shows one against the other (Ho et al. 2020, figure 5).
#
# **Predict, then run.** After a fifth of all bits, how much of the error has gone?

# %% alt="The error of the guess, in grey levels, against the bits so far. It falls from above 4 to 2 within the first 0.25 bits, and then ever more slowly."
rate = np.concatenate([[0], np.cumsum(chains[32]["matched"].mean(1))])
distortion = 8 * np.sqrt(chains[32]["error"].mean(1))  # in grey levels, before each step
fig, ax = plt.subplots(figsize=(5.6, 3.2))
ax.plot(rate[:-1], distortion, ".-", color=plots.PREDICTION)
ax.set(xlabel="rate: bits/dim so far", ylabel="distortion: rms error, grey levels", ylim=0,
       title="32 steps, matched variance")  # fmt: skip
plt.show()
after = {part: float(np.interp(part * rate[-1], rate[:-1], distortion)) for part in (0, 0.2, 0.5)}
print(", ".join(f"after {part:.0%} of the bits {d:.2f}" for part, d in after.items())
      + f", before the last step {distortion[-1]:.2f} grey levels")  # fmt: skip

# %% tags=["claims"]
# @title Checked: a fifth of the bits removes two thirds of the error
assert after[0.2] < after[0] / 3 and 0.4 < after[0.5] < 0.75 and 0.25 < distortion[-1] < 0.5
assert (np.diff(distortion) < 0.1).all()  # it falls, but for sampling error

# %% [markdown]
# The first fifth of the bits removes two thirds of the error. The second half of the bits only works on an
# error of about half a grey level.

# %% [markdown]
# This answers the question of the first picture. Most of the bits are sent at the end, when the guess is
# already off by only about one grey level of 16. These bits describe the exact grey levels, not the shape
# of the digit. DDPM's code on CIFAR-10 has a similar structure: more than half of it describes the
# smallest distortions, of about one grey level of 255 (Ho et al. 2020, section 4.3). That these cannot be
# seen is their finding; our coarse grey levels do not show it. A model can be good at bits and bad at
# pictures, and the other way round.
#
# The last bits are wasted. Below a fifth of a grey level the pixel *is* known: one only has to round it.
# But nobody told the network about the 17 levels. It takes part of the remaining noise for signal, and this
# costs bits at every further step. A few lines of arithmetic avoid it.

# %% [markdown]
# ## 8 · The simple loss against the bound
#
# Now we turn to training. If the model's variance is $\tilde\beta$, a transition costs, in nats
# (chapter 02, equation 7),
#
# $$L_{n-1} = \tfrac12\big(\mathrm{SNR}(s) - \mathrm{SNR}(t)\big)\,\|x_0 - \hat x_0\|^2
# = \tfrac12\Big(\tfrac{\mathrm{SNR}(s)}{\mathrm{SNR}(t)} - 1\Big)\|\varepsilon - \hat\varepsilon\|^2 \tag{10}$$
#
# (Kingma et al. 2021, section 4; Ho et al. 2020, eq. 12). The simple loss of DDPM replaces the factor
# before $\|\varepsilon - \hat\varepsilon\|^2$ by 1. One and the same error can be given in three units: an
# error $\delta$ of the target $v$ is an error $\sigma\delta$ of $x_0$ and $\alpha\delta$ of $\varepsilon$.
# The released network was trained on $\|v - \hat v\|^2$ with weight 1. So its loss has weight
# $1/\sigma^2$ on the squared error of $x_0$. DDPM's simple loss has weight $\alpha^2/\sigma^2$.
#
# First we check (10) against the bits of 64 steps.

# %% tags=["comparison"]
STEPS = 64
times = sampling.uniform(STEPS)
t_64, s_64 = times[:-1], times[1:]
snr = lambda u: np.float64(q.alpha(u)) ** 2 / np.maximum(np.float64(q.sigma(u)) ** 2, 1e-12)
on_x0 = 0.5 * (snr(s_64) - snr(t_64)) / np.log(2)
error = chains[STEPS]["error"]
by_weight = on_x0[:-1, None] * error[:-1]
# float32 differences of log-SNR, whose steps are a hundredth of it.
np.testing.assert_allclose(chains[STEPS]["posterior"][:-1], by_weight, rtol=2e-3, atol=1e-5)
print(f"equation (10) gives all {by_weight.size:,} transition terms")

# %% alt="Left: the weight on the error of x0 over time, for the bound and two simple losses; the bound's is the largest near the data. Right: the share of the loss below each time. The bound has more than four fifths of its loss below t = 0.2, simple (v) less than a third."
alpha, sigma = np.asarray(q.alpha(t_64)), np.asarray(q.sigma(t_64))
on_error = {  # the weight of each loss on the squared error of x0
    "bound": on_x0,
    "simple (ε)": (alpha / sigma) ** 2,
    "simple (v)": 1 / sigma**2,
}
simple = error * on_error["simple (v)"][:, None]  # the squared error of v
spent = {"bound": chains[STEPS]["posterior"], "simple (v)": simple}
spent["simple (ε)"] = error * on_error["simple (ε)"][:, None]
share = {k: np.cumsum(spent[k].mean(1)[::-1]) / spent[k].mean(1).sum() for k in on_error}
weight = {k: (w / w[32])[1:-1] for k, w in on_error.items()}

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2))
plots.curves(t_64[1:-1], weight, ax=axes[0], log="y", xlabel="time $t$",
             ylabel="weight on the error of $x_0$")  # fmt: skip
plots.curves(t_64[::-1], share, ax=axes[1], xlabel="time $t$", ylabel="share of the loss below $t$",
             label_at=0.3)  # fmt: skip
plt.show()

# %%
near_data = {name: v.mean(1)[t_64 <= 0.1].sum() / v.mean(1).sum() for name, v in spent.items()}
for name, part in near_data.items():
    print(f"{name}: {part:.0%} of it comes from the tenth of the times next to the data")

# %% tags=["claims"]
# @title Checked: the bound spends most next to the data, and the simple loss of v least
assert near_data["bound"] > 1.5 * near_data["simple (ε)"]
assert near_data["simple (ε)"] > 1.5 * near_data["simple (v)"]
# Errors of ε are large next to the data and small in pure noise. Measured .5, .33, .12, .03 and .002.
of_eps = spent["simple (ε)"].mean(1)
assert of_eps[t_64 <= 0.1].mean() > 20 * of_eps[t_64 > 0.9].mean()
assert 2 * of_eps[:21].mean() < of_eps[21:43].mean() < of_eps[43:].mean() / 2
tenths = [simple.mean(1)[(t_64 > k / 10) & (t_64 <= (k + 1) / 10)].sum() for k in range(10)]
assert max(tenths) < 4 * min(tenths)  # v: almost evenly over time

# %% [markdown]
# On the left, the weights are scaled so that they agree at $t = ½$. Why does the bound put so much weight
# next to the data? Look at the $\varepsilon$ form of (10): for small steps the weight is half the fall of the
# log-SNR. So errors of $\varepsilon$ count equally per unit of *log-SNR*. And these errors are large next to
# the data, because faint noise is hard to tell from texture. In pure noise, $\varepsilon$ is easy to see.
#
# Both simple losses spend less on the smallest noise than the bound does. Ho et al. (2020, section 3.4)
# give this as the reason why the simple loss of $\varepsilon$ draws better pictures. The simple loss of $v$
# goes further: it spreads its effort almost evenly over time, including the times where digits take shape.

# %% [markdown]
# The two losses differ in a second way: in their noise. To estimate the bound, we draw one step at random
# and take $T\,L_n$. This number is very different from step to step. Nichol & Dhariwal (2021, eq. 18)
# therefore draw steps in proportion to $\sqrt{\mathbb E[L_n^2]}$, and divide by that probability. A step that
# is drawn twice as often counts half as much. So the mean stays the same, and the scatter becomes smaller.

# %%
bits = chains[STEPS]["transition"]
times_of, weight_of = losses.importance_times((bits**2).mean(1)[::-1])  # in increasing time
rng = np.random.default_rng(0)
estimates = {}
for name, draw in (("uniform", losses.stratified_times), ("importance", times_of)):
    u = np.asarray(draw(jax.random.key(10), 20_000))
    # The step to which a time belongs; the steps fall in time.
    row = STEPS - 1 - np.minimum((u * STEPS).astype(int), STEPS - 1)
    w = np.asarray(weight_of("v", q, u)) if name == "importance" else 1.0
    one_draw = STEPS * bits[row, rng.integers(bits.shape[1], size=len(row))]
    estimates[name] = w * one_draw
    average, scatter = estimates[name].mean(), estimates[name].std()
    print(f"{name:10} steps: mean {average:.3f} bits/dim, "
          f"scatter of one draw {scatter / average:.0%}")  # fmt: skip
print(f"simple loss: scatter of one draw {simple.std() / simple.mean():.0%}")
print(f"importance steps without the weight: mean {one_draw.mean():.1f} bits/dim")

# %% tags=["claims"]
# @title Checked: both ways to draw steps have the same mean, importance sampling less scatter
for e in estimates.values():
    assert abs(e.mean() - bits.mean(1).sum()) < 4 * e.std() / np.sqrt(len(e))
assert estimates["importance"].std() < 0.5 * estimates["uniform"].std()
assert one_draw.mean() > 5 * bits.mean(1).sum()  # measured 6.4: another number altogether
assert 14 < one_draw.mean() < 17 and 2.3 < bits.mean(1).sum() < 2.5

# %% [markdown]
# The division is not optional. Some guides draw the steps by their loss and stop there. Then the mean is
# another number: here 15 bits instead of 2.4. A network that is trained like this has a different objective,
# which counts the steps with a large loss twice: once because their loss is large, and once more because they
# are drawn more often.

# %% [markdown]
# ## 9 · Break it on purpose: pixels without bins
#
# There is an easy way to report very few bits: forget (9), and take the Gaussian *density* at the pixel, as
# we did in the plane. In code this is one argument less. And it seems to have a benefit. We can continue the
# chain towards the data, $t = 1/128, 1/256, 1/512, \dots$, and the numbers improve each time.
#
# **Predict, then run.** How good can these numbers get?

# %%
images = jnp.asarray(unseen.x)
head = chains[128]["matched, rounded"].mean(1)[:-1].sum()  # up to t = 1/128


@jax.jit
def tail(t, key):
    """From t on by rounding: the transition to t/2, and the last step, with bins and without."""
    x_t = process.add_noise(q, images, jax.random.normal(key, images.shape), t)
    mean, doubt = (lambda x, t, part=part: rounding(x, t)[part] for part in (0, 1))
    last = bound.fixed(q, mean, t, "posterior")
    ends = [bound.step_term(last, q, images, x_t, t, 0 * t, levels).mean() for levels in (17, None)]
    return bound.step_term(matched(q, mean, doubt), q, images, x_t, t, t / 2).mean(), *ends


probability, as_density = [], []
for k in range(9):
    transition, with_bins, bare = map(float, tail(2.0 ** -(7 + k), jax.random.key(k)))
    probability.append(head + with_bins)
    as_density.append(head + bare)
    head += transition
for k in (0, 2, 4, 6, 8):
    print(f"last step from t = 1/{2 ** (7 + k)}: {probability[k]:.2f} bits/dim with bins, "
          f"{as_density[k]:+.2f} without")  # fmt: skip

# %% alt="Bits per dimension against the time of the last step, which gets ever closer to the data. With bins the line is level, above 2. The density falls in a straight line, from −2 to below −6."
ends = 2.0 ** -(7 + np.arange(9))
ax = plots.curves(ends, {"with bins": probability, "density": as_density}, log="x",
                  xlabel="time $t$ of the last step", ylabel="“bits/dim”", label_at=0.75)  # fmt: skip
ax.invert_xaxis()
ax.axhline(0, color=plots.TRUTH, lw=0.6)
plt.show()
half = denoiser.gaussian_mixture(
    q, toy2d.MIXTURE.means / 2, toy2d.MIXTURE.stds / 2, toy2d.MIXTURE.weights
)
gain = (half.log_prob(x0 / 2, 0.0) - gm.log_prob(x0, 0.0)) / (2 * np.log(2))
print(f"the same clouds at half the size: {gain.mean():+.3f} bits/dim 'better'")

# %% tags=["claims"]
# @title Checked: without bins the number falls without end, with bins it stays
# The noise halves its variance at least with each k, and a density doubles with half the width.
assert as_density[-1] < -1 and np.allclose(np.diff(as_density[2:]), -0.5, atol=0.1)
assert np.ptp(probability[2:]) < 0.1 and min(probability) > 1.5
assert abs(float(gain.mean()) - 1) < 1e-4

# %% [markdown]
# The numbers become as good as you like: half a bit better for each halving of $t$, without end. (With bins
# they stay where they are.) All images lie on a grid of points, and the density on a point has no limit. The
# digits are not predicted any better. Only the last Gaussian becomes narrower and higher: each halving of $t$ halves
# its variance, and this gives half a bit per pixel. In a similar way, halving the *scale* of continuous data
# gives one bit per dimension for free.
#
# **The lesson.** Before you compare two numbers in bits per dimension, ask three questions. Is it a
# probability or a density? How many grey levels are there? On which scale are the data? If noise was added
# to the pixels (dequantisation, chapter 10), ask a fourth: was the cost of this noise counted? If two
# papers give different answers, their numbers cannot be compared.

# %% [markdown]
# ## 10 · What to inspect
#
# 1. **The prior term.** It must be near 0. If it is not, the chain ends with signal left.
# 2. **Bits by step**, as in section 7. A spike at one step means a wrong variance or a broken guess there.
# 3. **The share of the reconstruction.** If it is large, the last step is too long. If it is zero, steps are
#    spent on noise below the grey levels.
# 4. **The bound against the number of steps, with the last time held.** It must fall. If it rises on uniform
#    grids only, the last step comes too late.
# 5. **Training images beside unseen ones**, and the trivial codes beside both.
#
# The last point is worth a look even for released weights.

# %%
grid = sampling.uniform(32)
step = np.arange(PAIRS) // (PAIRS // 32)
own = jnp.asarray(digits.x)[360 + np.arange(PAIRS) % 1000]  # not those that the table was made from
pairs = own, fresh, grid[step], grid[step + 1]
seen = np.asarray(all_terms(released.model, table, *pairs, grid[-2])["matched"]).reshape(32, -1)
new = chains[32]["matched"]
both_se = np.sqrt(sum((c.var(1) / c.shape[1]).sum() for c in (seen, new)))
difference = new.mean(1).sum() - seen.mean(1).sum()
print(f"training digits {seen.mean(1).sum():.3f}, unseen digits {new.mean(1).sum():.3f} bits/dim: "
      f"{difference:.3f} ± {both_se:.3f} apart")  # fmt: skip
print(f"32 steps: prior {float(bound.prior_term(q, own[:1])[0]):.0e}, "
      f"reconstruction {new[-1].mean() / new.mean(1).sum():.0%} of the bits")  # fmt: skip

# %% tags=["claims"]
# @title Checked: unseen digits cost more bits than training digits
assert 4 * both_se < difference < 0.4
on_card = released.card.metrics["w=1"]
assert round(on_card["nearest"], 2) == 1.98 and round(on_card["nearest_real"], 2) == 2.05

# %% [markdown]
# The network needs fewer bits for its own training digits than for unseen ones. So it has learned them a
# little too well. Its samples hardly show this: their median distance to the nearest training image is 1.98,
# and unseen digits have 2.05 (from the card of these weights, 500 samples). Bits are a sensitive measure of
# overfitting.

# %% [markdown]
# ## Recap
#
# 1. The bound is the sum of a prior term, one KL of Gaussians per step, and a reconstruction. Its gap is the
#    difference between the true reverse steps and Gaussians.
# 2. An oracle that knows $x_0$ pays nothing for the transitions. On Gaussian data the exact reverse process
#    is tight with any number of steps.
# 3. The best variance is $\tilde\beta$ plus the doubt that the step carries along. A network learns it from
#    the bound, while a stop-gradient leaves the mean to the simple loss.
# 4. The bound weighs errors of $\varepsilon$ evenly in log-SNR, and most bits describe exact grey levels. The
#    simple losses spend less on them.
# 5. Bits per dimension need bins, a scale and a trivial code beside them.
#
# Now do the [exercises](../exercises/05_bound.ipynb).

# %% [markdown]
# **Try it yourself.** (a) Which grid of 32 times gives the fewest bits on digits? Put another falling grid
# into `chain_of`, for example one that is uniform in log-SNR down to 1/32. (b) Where
# should rounding begin? What happens with 0.02 instead of 0.01, and why? (c) Tell the network the digit's
# class: `denoiser.denoiser(model, q, "v", labels)`. How many bits does this save, and how many would the
# label itself cost?
#
# **Words introduced.** Evidence lower bound (the bound), prior term, transition term, reconstruction,
# bits per dimension, hybrid objective, stop-gradient, learned variance, discretised likelihood,
# importance sampling, hierarchical VAE, rate, distortion.

# %% [markdown]
# **Read on.** Ho, Jain & Abbeel 2020, *Denoising Diffusion Probabilistic Models*, NeurIPS
# ([arXiv:2006.11239](https://arxiv.org/abs/2006.11239)), sections 2, 3 and 4.3. Nichol & Dhariwal 2021,
# *Improved Denoising Diffusion Probabilistic Models*, ICML
# ([arXiv:2102.09672](https://arxiv.org/abs/2102.09672)), section 3. Kingma, Salimans, Poole & Ho 2021,
# *Variational Diffusion Models*, NeurIPS ([arXiv:2107.00630](https://arxiv.org/abs/2107.00630)): the
# bound in continuous time. Bao, Li, Zhu & Zhang 2022, *Analytic-DPM*, ICLR
# ([arXiv:2201.06503](https://arxiv.org/abs/2201.06503)): equation (6). Kingma & Gao 2023, *Understanding
# Diffusion Objectives as the ELBO with Simple Data Augmentation*, NeurIPS
# ([arXiv:2303.00848](https://arxiv.org/abs/2303.00848)). Theis, van den Oord & Bethge 2016, *A Note on
# the Evaluation of Generative Models*, ICLR
# ([arXiv:1511.01844](https://arxiv.org/abs/1511.01844)): likelihood and pictures can disagree.
# Bao, Li, Sun, Zhu & Zhang 2022, *Estimating the Optimal Covariance with Imperfect Mean in Diffusion
# Probabilistic Models*, ICML ([arXiv:2206.07309](https://arxiv.org/abs/2206.07309)): the best variance
# for a mean that is not exact. Luo 2022, *Understanding Diffusion Models: A Unified Perspective*
# ([arXiv:2208.11970](https://arxiv.org/abs/2208.11970)): from the VAE to diffusion.
