"""Wrong answers to the exercises of chapter 02."""

from mutants import Mutant

MUTANTS = [
    Mutant("02.1", "sigma**2", "sigma", "not by its standard deviation"),
    Mutant("02.1", "(x + sigma**2 * score) / alpha", "x + sigma**2 * score", "undo the factor α"),
    Mutant(
        "02.1",
        "(x + sigma**2 * score) / alpha",
        "x / alpha + sigma**2 * score",
        "divide the whole sum",
    ),
    Mutant("02.1", "x + sigma", "x - sigma", "points towards the data"),
    Mutant(
        "02.1",
        "(x + sigma**2 * score) / alpha",
        "x + sigma**2 * score / alpha",
        "brackets are missing",
    ),
    Mutant("02.1", "/ alpha", "* alpha", "a division"),
    Mutant(
        "02.1",
        "(x + sigma**2 * score) / alpha",
        "(x + (1 - alpha) * score) / jnp.sqrt(alpha)",
        "if α were ᾱ",
    ),
    Mutant("02.1", "sigma**2", "-sigma", "takes the score for the noise"),
    Mutant("02.1", "sigma**2", "(1 - alpha**2)", "need not be 1 − α²"),
    Mutant("02.1", "sigma**2 * ", "", "σ is missing"),
    Mutant("02.1", "/ alpha", "/ alpha**2", "one and the same factor"),
    Mutant(
        "02.2",
        "variance = alpha**2 * std**2 + sigma**2  # of x_t\n",
        "std = jnp.sqrt(std)\n    variance = alpha**2 * std**2 + sigma**2\n",
        "std is a standard deviation",
    ),
    Mutant("02.2", "+ sigma**2", "+ sigma", "σ is a standard deviation"),
    Mutant("02.2", "(x - alpha * mean)", "(x - mean)", "the process shrinks it"),
    Mutant("02.2", " + sigma**2", "", "nothing is denoised"),
    Mutant("02.2", "alpha * std**2 / variance", "std**2 / variance", "holds a factor α"),
    Mutant("02.2", "mean + gain * (x - alpha * mean)", "gain * x", "yours tends to zero"),
    Mutant(
        "02.2",
        "variance = alpha**2 * std**2 + sigma**2  # of x_t\n",
        "std, sigma = std**0.5, sigma**0.5\n    variance = alpha**2 * std**2 + sigma**2\n",
        "square both",
    ),
    Mutant("02.2", "alpha * std**2 / variance", "alpha * std / variance", "in the covariance too"),
    Mutant("02.2", "alpha**2 * std**2", "std**2", "holds α twice"),
    Mutant("02.2", "mean + gain * (x", "gain * (x", "add the mean"),
    Mutant("02.2", "mean + gain", "alpha * mean + gain", "not at the mean of x_t"),
    Mutant(
        "02.2",
        "mean + gain * (x - alpha * mean)",
        "x - sigma**2 * (x - alpha * mean) / variance",
        "undo the factor α",
    ),
    Mutant("02.2", "mean + gain", "mean - gain", "every value"),
    Mutant("02.3", "u = alpha", "u = 2 * alpha", "ends too early"),
    Mutant("02.3", "jnp.tanh(u)", "jnp.tanh(u / 2)", "lasts too long"),
    Mutant("02.3", "u = alpha * a", "u = a", "α is missing"),
    Mutant("02.3", "sigma**2", "sigma", "not by σ"),
    Mutant("02.3", "a * jnp.tanh", "jnp.tanh", "ends at ±1"),
    Mutant("02.3", "a * jnp.tanh", "alpha * a * jnp.tanh", "the data are not shrunken"),
    Mutant("02.3", "alpha * a * x", "alpha * x", "a is missing within"),
    Mutant("02.3", "jnp.tanh(u)", "jax.nn.sigmoid(2 * u)", "the weight of +a alone"),
    Mutant("02.3", "jnp.tanh(u)", "jnp.sign(x)", "an average of both"),
    Mutant(
        "02.3",
        "jnp.tanh(u)",
        "(jnp.exp(u) - jnp.exp(-u)) / (jnp.exp(u) + jnp.exp(-u))",
        "expected finite numbers",
    ),
    Mutant("02.4", "(2 * sigma**2)", "sigma**2", "a factor ½"),
    Mutant("02.4", "- alpha * data", "- data", "scale the data"),
    Mutant("02.4", "(2 * sigma**2)", "(2 * sigma)", "its square root"),
    Mutant("02.4", "-squared /", "-jnp.sqrt(squared) /", "yours with the distance"),
    Mutant(
        "02.4",
        "x[:, None] - alpha * data",
        "x[:, None] / alpha - data",
        "but its noise is larger too",
    ),
    Mutant("02.4", "jnp.sum((x[:, None]", "jnp.mean((x[:, None]", "took their mean"),
    Mutant(
        "02.4",
        "squared = jnp.sum((x[:, None] - alpha * data) ** 2, axis=-1)  # [B, N]\n",
        "r = jax.nn.softmax(-((x[:, None] - alpha * data) ** 2) / (2 * sigma**2), axis=1)\n"
        "    return jnp.sum(r * data, axis=1)\n",
        "yours has one for each",
    ),
    Mutant(
        "02.4",
        "jax.nn.softmax(-squared / (2 * sigma**2), axis=1)",
        "jnp.exp(-squared / (2 * sigma**2))",
        "yours don't",
    ),
    Mutant(
        "02.4",
        "jax.nn.softmax(-squared / (2 * sigma**2), axis=1)",
        "jnp.exp((squared.min() - squared) / (2 * sigma**2))\n"
        "    r = r / r.sum(axis=1, keepdims=True)",
        "that of all rows",
    ),
    Mutant(
        "02.4",
        "r[:, :, None] * data",
        "r[:, :, None] * alpha * data",
        "the guess averages the data",
    ),
    Mutant(
        "02.4",
        "jax.nn.softmax(-squared / (2 * sigma**2), axis=1)",
        "jax.nn.softmax(-squared / (2 * sigma**2), axis=0)",
        "yours do over the batch",
    ),
    Mutant(
        "02.4",
        "jnp.sum(r[:, :, None] * data, axis=1)",
        "data[jnp.argmax(r, axis=1)]",
        "an average of all",
    ),
    Mutant(
        "02.4",
        "jax.nn.softmax(-squared / (2 * sigma**2), axis=1)",
        "jnp.exp(-squared / (2 * sigma**2))\n    r = r / r.sum(axis=1, keepdims=True)",
        "expected finite numbers",
    ),
    Mutant("02.5", "a * sigma - b * alpha", "b * alpha - a * sigma", "wrong sign"),
    Mutant("02.5", "(sigma * y - b * x) / det", "(x - sigma * y) / alpha", "taken for the noise"),
    Mutant("02.5", " / det", "", "the determinant is missing"),
    Mutant("02.5", "(sigma * y - b * x) / det", "b * x - sigma * y", "the determinant is −1"),
    Mutant("02.5", "det = ", "a, b = b, a\n    det = ", "a and b are exchanged"),
    Mutant("02.5", "sigma * y - b * x", "a * x - alpha * y", "its other unknown"),
    Mutant("02.5", "- b * x", "+ b * x", "yours is their sum"),
    Mutant("02.5", "- b * alpha", "+ b * alpha", "a difference of two products"),
    Mutant("02.5", "sigma * y - b * x", "sigma * x - b * y", "y and x are exchanged"),
    Mutant(
        "02.5",
        "(sigma * y - b * x) / det",
        "(alpha * x - sigma * y) / (alpha**2 + sigma**2)",
        "y is taken for v",
    ),
    Mutant(
        "02.5", "(sigma * y - b * x) / det", "(x - sigma * y / b) / alpha", "y / b is not the noise"
    ),
    Mutant("02.5", "/ det", "* det", "one and the same factor"),
    Mutant(
        "02.6",
        "denoise(x, alphas[t], sigmas[t])",
        "denoise(x, alphas[s], sigmas[s])",
        "must be told the level",
    ),
    Mutant("02.6", "sigmas[s] * eps", "sigmas[t] * eps", "one bug is left: the noise"),
    Mutant(
        "02.6",
        """\
x0 = denoise(x, alphas[t], sigmas[t])  # x is still at level t
        eps = (x - alphas[t] * x0) / sigmas[t]
        x = alphas[s] * x0 + sigmas[s] * eps""",
        """\
x0 = denoise(x, alphas[s], sigmas[s])
        eps = (x - alphas[t] * x0) / sigmas[t]
        x = alphas[s] * x0 + sigmas[t] * eps""",
        "both bugs are still there",
    ),
    Mutant("02.6", "x = alphas[s] * x0", "x = alphas[t] * x0", "the signal that is put back"),
    Mutant("02.6", "x - alphas[t] * x0", "x - alphas[s] * x0", "without the signal"),
    Mutant(
        "02.6",
        "denoise(x, alphas[t], sigmas[t])",
        "denoise(x, alphas[t], sigmas[s])",
        "but σ after it",
    ),
    Mutant(
        "02.6",
        "denoise(x, alphas[t], sigmas[t])",
        "denoise(x, alphas[s], sigmas[t])",
        "but α after it",
    ),
    Mutant(
        "02.6",
        "x0 = denoise(x, alphas[t], sigmas[t])  # x is still at level t\n"
        "        eps = (x - alphas[t] * x0)",
        "x0 = denoise(x, alphas[s], sigmas[s])\n        eps = (x - alphas[s] * x0)",
        "and a new one",
    ),
    Mutant("02.6", " / sigmas[t]", "", "σ times the noise"),
    Mutant(
        "02.6",
        "x0 = denoise(x, alphas[t], sigmas[t])  # x is still at level t\n"
        "        eps = (x - alphas[t] * x0) / sigmas[t]\n",
        "if t == 0:\n"
        "            x0 = denoise(x, alphas[0], sigmas[0])\n"
        "            eps = (x - alphas[0] * x0) / sigmas[0]\n",
        "is asked once",
    ),
    Mutant("02.6", "return x\n", "return x0\n", "not the state"),
    Mutant("02.6", "len(alphas) - 1", "len(alphas) - 2", "the last step is missing"),
    Mutant("02.7", "sigma**2 / alpha * jnp.trace", "jnp.trace", "the slope alone"),
    Mutant("02.7", "sigma**2 / alpha", "sigma**2 / alpha**2", "α stands only once"),
    Mutant(
        "02.7",
        "sigma**2 / alpha * jnp.trace(slopes, axis1=1, axis2=2)",
        "jnp.sqrt(sigma**2 / alpha * jnp.trace(slopes, axis1=1, axis2=2))",
        "no root is taken",
    ),
    Mutant(
        "02.7",
        "slopes = jax.vmap(jax.jacfwd(best_guess))(x)  # [B, D, D]\n",
        "gaps = data - jax.vmap(best_guess)(x)[:, None]\n"
        "    return jnp.mean(jnp.sum(gaps**2, axis=2), axis=1)\n",
        "the weights are missing",
    ),
    Mutant(
        "02.7",
        "slopes = jax.vmap(jax.jacfwd(best_guess))(x)  # [B, D, D]\n",
        "gaps = x[:, None] - alpha * data\n"
        "    r = jax.nn.softmax(-jnp.sum(gaps**2, axis=2) / (2 * sigma**2), axis=1)\n"
        "    return jnp.sum(r * jnp.sum((data - x[:, None]) ** 2, axis=2), axis=1)\n",
        "measured from x_t",
    ),
    Mutant("02.7", "sigma**2 / alpha", "alpha / sigma**2", "is upside down"),
    Mutant("02.7", "sigma**2 / alpha", "sigma**2", "between slope and doubt"),
    Mutant("02.7", "sigma**2 / alpha", "sigma / alpha", "not by σ"),
    Mutant(
        "02.7",
        "jnp.trace(slopes, axis1=1, axis2=2)",
        "jnp.trace(slopes, axis1=1, axis2=2) / x.shape[1]",
        "took their mean",
    ),
    Mutant(
        "02.7",
        "jnp.trace(slopes, axis1=1, axis2=2)",
        "jnp.sum(slopes, axis=(1, 2))",
        "not the whole matrix",
    ),
    Mutant(
        "02.7",
        "slopes = jax.vmap(jax.jacfwd(best_guess))(x)  # [B, D, D]\n",
        """\
gaps = x[:, None] - alpha * data
    r = jax.nn.softmax(-jnp.sum(gaps**2, axis=2) / (2 * sigma**2), axis=1)
    return jnp.sum(r * jnp.sum(data**2, axis=1), axis=1)
""",
        "measured from zero",
    ),
]
