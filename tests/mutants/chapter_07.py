"""Wrong answers to the exercises of chapter 07."""

from mutants import Mutant

MIX = "unconditional + w * (conditional - unconditional)\n    ###"
LOGITS = "jnp.log(weights) - x.shape[1] / 2 * jnp.log(variance) - squared / (2 * variance)"
SOFTMAX = "jax.nn.softmax(logits, axis=-1)"
AVERAGE = " - jnp.sum(share[:, :, None] * scores, axis=1)"
FACTOR = "scale * sigma**2 / alpha * gradient"
LEVELS = "alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)"
DROP = "jnp.where(u < rate, null, labels)"
LABELS = "jnp.concatenate([labels, nobody])"
STATES = "jnp.concatenate([x, x])"
GUIDED = "of_all + w * (of_class - of_all)"
NOISE = "(x - alpha_t * x0)"
SCALED = "share * wanted / found + 1 - share"
ESTIMATE = "unconditional + w * (conditional - unconditional)\n    axes"
AXES = "axes = tuple(range(1, estimate.ndim))"

MUTANTS = [
    Mutant(
        "07.1", MIX, "conditional + w * (unconditional - conditional)\n    ###", "are exchanged"
    ),
    Mutant("07.1", '"ho-salimans": 1 + scale', '"ho-salimans": scale', "its scale 0 is the course"),
    Mutant(
        "07.1",
        '{"course": scale, "ho-salimans": 1 + scale, "imagen": scale}[convention]',
        "1 + scale",
        "yours has gone beyond it",
    ),
    Mutant("07.1", '"ho-salimans": 1 + scale', '"ho-salimans": scale - 1', "1 was taken off"),
    Mutant("07.1", MIX, "unconditional + w * conditional\n    ###", "is missing its unconditional"),
    Mutant("07.1", MIX, "w * conditional + (w - 1) * unconditional\n    ###", "has the wrong sign"),
    Mutant("07.2", AVERAGE, "", "normalised over classes"),
    Mutant(
        "07.2",
        f"scores[jnp.arange(len(x)), y]{AVERAGE}",
        f"(scores[jnp.arange(len(x)), y]{AVERAGE}) / len(x)",
        "by the size of the batch",
    ),
    Mutant(
        "07.2",
        f"return scores[jnp.arange(len(x)), y]{AVERAGE}",
        f"mine = jnp.arange(len(x)), y\n    return share[mine][:, None] * (scores[mine]{AVERAGE})",
        "its logarithm is asked for",
    ),
    Mutant("07.2", "gap / variance", "-gap / variance", "the sign"),
    Mutant("07.2", "(alpha * stds) ** 2 + sigma**2", "(alpha * stds) ** 2", "noise widens"),
    Mutant("07.2", "(alpha * stds) ** 2 + sigma**2", "(alpha * stds + sigma) ** 2", "not their"),
    Mutant("07.2", "alpha * means", "means", "α times its mean"),
    Mutant("07.2", "jnp.log(weights) - x.shape", "-x.shape", "needs the shares"),
    Mutant("07.2", "jnp.log(weights)", "weights", "and so must the classes' shares be"),
    Mutant("07.2", LOGITS, "jnp.log(weights) - squared / (2 * variance)", "factor is missing"),
    Mutant("07.2", "x.shape[1] / 2 *", "1 / 2 *", "that of one dimension"),
    Mutant(
        "07.2",
        f"squared / (2 * variance)\n    share = {SOFTMAX}  # p(class | x_t), which never divides "
        "0 by 0\n    scores = gap / variance[:, None]",
        f"squared / variance\n    share = {SOFTMAX}\n    scores = 2 * gap / variance[:, None]",
        "the Gaussian's exponent",
    ),
    Mutant(
        "07.2",
        SOFTMAX,
        "jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True)",
        "expected finite numbers",
    ),
    Mutant("07.3", "(x_t - alpha * pushed)", "(x_t - alpha * x0)", "no longer add up to x_t"),
    Mutant("07.3", FACTOR, "scale * sigma / alpha * gradient", "a σ is missing"),
    Mutant("07.3", FACTOR, "scale * sigma**2 * gradient", "the division by α is missing"),
    Mutant("07.3", FACTOR, "scale * (sigma / alpha)**2 * gradient", "one division by α too many"),
    Mutant("07.3", FACTOR, "scale * sigma * gradient", "σ alone is the gradient's factor in ε"),
    Mutant("07.3", FACTOR, "scale * gradient", "Tweedie's formula"),
    Mutant("07.3", "x0 + scale", "x0 - scale", "along the gradient"),
    Mutant("07.3", FACTOR, "sigma**2 / alpha * gradient", "the scale is never used"),
    Mutant("07.3", FACTOR, "(1 + scale) * sigma**2 / alpha * gradient", "1 was added"),
    Mutant(
        "07.3",
        "pushed, (x_t - alpha * pushed) / sigma",
        "(x_t - alpha * pushed) / sigma, pushed",
        "in the wrong order",
    ),
    Mutant(
        "07.3",
        LEVELS,
        "alpha, sigma = (jnp.resize(v, (x0.shape[2],))[:, None] for v in (alpha, sigma))",
        "they must multiply whole images",
    ),
    Mutant("07.4", DROP, "jnp.where(u < rate, labels, null)", "below the rate a label is dropped"),
    Mutant("07.4", DROP, "jnp.where(u > rate, null, labels)", "above the rate a label is kept"),
    Mutant("07.4", DROP, "jnp.where(u <= rate, null, labels)", "equals the rate is not below it"),
    Mutant("07.4", DROP, "jnp.where(u < rate, 10, labels)", "not always 10"),
    Mutant("07.4", DROP, "jnp.where(u[0] < rate, null, labels)", "decides for itself"),
    Mutant("07.4", DROP, "jnp.where(u < rate, 0, labels)", "0 is a class like any other"),
    Mutant("07.4", DROP, "jnp.where(u < rate, -1, labels)", "−1 is no class"),
    Mutant("07.4", DROP, "labels", "no label was dropped"),
    Mutant("07.4", DROP, "jnp.where(u < rate, null, labels) * 1.0", "whole numbers"),
    Mutant("07.5", LABELS, "jnp.concatenate([nobody, labels])", "the halves are exchanged"),
    Mutant(
        "07.5",
        f"{STATES}, jnp.concatenate([t, t]), {LABELS}",
        "jnp.repeat(x, 2, 0), jnp.repeat(t, 2), jnp.stack([labels, nobody], 1).ravel()",
        "side by side",
    ),
    Mutant("07.5", LABELS, "jnp.concatenate([labels, labels])", "the second half still has labels"),
    Mutant("07.5", LABELS, "jnp.concatenate([nobody, nobody])", "has lost its labels"),
    Mutant("07.5", "jnp.concatenate([t, t])", "t", "expected shape"),
    Mutant("07.6", GUIDED, "(1 + w) * of_class - w * of_all", "from the conditional network"),
    Mutant("07.6", NOISE, "(x - alpha_t * of_class)", "not that of the guided estimate"),
    Mutant(
        "07.6",
        f"x0 = {GUIDED}\n        eps = {NOISE}",
        "x0 = (1 + w) * of_class - w * of_all\n        eps = (x - alpha_t * of_class)",
        "both bugs are still there",
    ),
    Mutant("07.6", NOISE, "(x - alpha_t * of_all)", "the unconditional estimate's"),
    Mutant("07.6", GUIDED, "of_class + w * (of_all - of_class)", "two denoisers are exchanged"),
    Mutant("07.6", "len(alphas) - 1", "len(alphas) - 2", "the last step is missing"),
    Mutant("07.6", "sigma_s * eps", "sigma_t * eps", "keeps its old level"),
    Mutant("07.7", AXES, "axes = None", "not that of the whole batch"),
    Mutant("07.7", SCALED, "(1 - share) * wanted / found + share", "the two parts are exchanged"),
    Mutant("07.7", SCALED, "wanted / found", "the share is never used"),
    Mutant("07.7", SCALED, "share * found / wanted + 1 - share", "upside down"),
    Mutant("07.7", SCALED, "share * (wanted / found) ** 2 + 1 - share", "not of variances"),
    Mutant(
        "07.7",
        f"return estimate * ({SCALED})",
        "mean = jnp.mean(estimate, axis=axes, keepdims=True)\n"
        f"    return mean + (estimate - mean) * ({SCALED})",
        "leaves its mean as it was",
    ),
    Mutant(
        "07.7", ESTIMATE, "(1 + w) * conditional - w * unconditional\n    axes", "the scale is the"
    ),
    Mutant("07.7", "jnp.std(conditional", "jnp.std(unconditional", "the conditional estimate's"),
    Mutant("07.7", f"estimate * ({SCALED})", "estimate", "without the rescaling"),
]
