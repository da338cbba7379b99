"""Wrong answers to the exercises of chapter 03."""

from mutants import Mutant

MEAN = "on_x0 * x0 + on_x_t * x_t"
STEP_NOISE = "jnp.sqrt(variance) * noise"
SAMPLE_NOISE = "np.sqrt(variance) * noise"
LEVELS = "denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))"
WEIGHTS = '{"x0": clipped, "eps": clipped / snr, "v": clipped / (snr + 1)}[kind]'
RATIOS = "(snr_s - snr_t) / 2"

MUTANTS = [
    Mutant("03.1", MEAN, "on_x0 * x_t + on_x_t * x0", "the two factors are swapped"),
    Mutant("03.1", "added * (1 - abar_s) / (1 - abar_t)\n", "added\n", "the variance of the step"),
    Mutant(
        "03.1",
        "added * (1 - abar_s) / (1 - abar_t)\n",
        "(added * (1 - abar_s) / (1 - abar_t)) ** 0.5\n",
        "the second value is the standard deviation",
    ),
    Mutant(
        "03.1",
        "on_x0 = abar_s**0.5 * added / (1 - abar_t)\n"
        "    on_x_t = kept**0.5 * (1 - abar_s) / (1 - abar_t)",
        "on_x0 = abar_s * added / (1 - abar_t)\n    on_x_t = kept * (1 - abar_s) / (1 - abar_t)",
        "what multiplies an image is a square root",
    ),
    Mutant("03.1", "kept = abar_t / abar_s", "kept = abar_t", "not all the noise since the data"),
    Mutant(
        "03.1", "added * (1 - abar_s) / (1 - abar_t)\n", "1 - abar_s\n", "the variance present at s"
    ),
    Mutant("03.1", "abar_s**0.5 * added", "abar_s * added", "in the factor of x0 stands ᾱ_s"),
    Mutant("03.1", "kept**0.5", "kept", "a share of the variance, where"),
    Mutant("03.1", "abar_s**0.5 * added", "abar_t**0.5 * added", "the wrong end of the step"),
    Mutant("03.1", "kept**0.5", "abar_t**0.5", "not all the way from the data"),
    Mutant(
        "03.1", "kept = abar_t / abar_s", "kept = 1 - (abar_s - abar_t)", "is not the difference"
    ),
    Mutant("03.1", f"{MEAN}, added", f"{MEAN} if True else added", "got one array"),
    Mutant("03.2", "alpha * eps - sigma * x0", "sigma * x0 - alpha * eps", "the wrong sign"),
    Mutant("03.2", "alpha * eps - sigma * x0", "sigma * eps - alpha * x0", "are exchanged"),
    Mutant("03.2", "alpha * eps - sigma * x0", "eps", "predicts the noise; this one predicts v"),
    Mutant("03.2", "jnp.mean(", "jnp.sum(", "averaged over all pixels and images, not added up"),
    Mutant("03.2", "(output - v) ** 2", "jnp.abs(output - v)", "the error must be squared"),
    Mutant("03.2", "alpha * eps - sigma * x0", "alpha * eps + sigma * x0", "v is a difference"),
    Mutant("03.2", "alpha * eps - sigma * x0", "x0", "predicts the data"),
    Mutant("03.2", "alpha * eps - sigma * x0", "alpha * x0 + sigma * eps", "predicts x_t"),
    Mutant(
        "03.2",
        "jnp.mean((output - v) ** 2)",
        "jnp.sum((output - v) ** 2) / len(x0)",
        "the pixels as well",
    ),
    Mutant("03.2", "jnp.mean((output - v) ** 2)", "jnp.mean(output - v) ** 2", "not the average"),
    Mutant(
        "03.2",
        "jnp.mean((output - v) ** 2)",
        "jnp.sqrt(jnp.mean((output - v) ** 2))",
        "no root is taken",
    ),
    Mutant(
        "03.2",
        "alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)",
        "alpha, sigma = alpha.mean(), sigma.mean()",
        "the same mean levels",
    ),
    Mutant(
        "03.2",
        "alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)",
        "alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)",
        "from row to row",
    ),
    Mutant(
        "03.2",
        "alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)",
        "alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)",
        "from column to column",
    ),
    Mutant(
        "03.2",
        "alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)",
        "alpha, sigma",
        "from colour to colour",
    ),
    Mutant("03.2", "jnp.mean((output - v) ** 2)", "jnp.mean((output - v) ** 2, axis=0)", "shape"),
    Mutant("03.3", STEP_NOISE, "variance * noise", "the posterior gives a variance"),
    Mutant("03.3", STEP_NOISE, "jnp.sqrt(1 - kept) * noise", "the posterior has less"),
    Mutant("03.3", STEP_NOISE, "0 * noise", "the samples lose their spread"),
    Mutant("03.3", STEP_NOISE, "jnp.sqrt(1 - abar_s) * noise", "the noise present at s"),
    Mutant("03.3", "on_guess * x0_hat", "x0_hat", "every value differs"),
    Mutant(
        "03.3",
        "on_guess * x0_hat + on_x_t * x_t",
        "on_guess * x_t + on_x_t * x0_hat",
        "are swapped",
    ),
    Mutant(
        "03.3",
        "on_guess = abar_s**0.5 * (1 - kept) / (1 - abar_t)\n    on_x_t = kept**0.5",
        "on_guess = abar_s * (1 - kept) / (1 - abar_t)\n    on_x_t = kept",
        "belong to variances",
    ),
    Mutant(
        "03.3",
        "abar_s**0.5 * (1 - kept)",
        "abar_s * (1 - kept)",
        "in the factor of the guess stands ᾱ_s",
    ),
    Mutant("03.3", "kept**0.5", "kept", "a share of the variance, where"),
    Mutant(
        "03.3", "abar_s**0.5 * (1 - kept)", "abar_t**0.5 * (1 - kept)", "the wrong end of the step"
    ),
    Mutant("03.3", "kept = abar_t / abar_s", "kept = abar_t", "kept since the data"),
    Mutant(
        "03.3",
        "on_guess * x0_hat + on_x_t * x_t + jnp.sqrt(variance) * noise",
        "abar_s**0.5 * x0_hat + (1 - abar_s) ** 0.5 * (\n"
        "        x_t - abar_t**0.5 * x0_hat\n"
        "    ) / (1 - abar_t) ** 0.5",
        "a step of DDIM",
    ),
    Mutant(
        "03.3",
        "on_guess * x0_hat + on_x_t * x_t + jnp.sqrt(variance) * noise",
        "abar_s**0.5 * x0_hat + (1 - abar_s) ** 0.5 * noise",
        "is noised anew",
    ),
    Mutant("03.4", "d * average + (1 - d) * weights", "(1 - d) * average + d * weights", "exchang"),
    Mutant("03.4", "min(decay, (1 + n) / (10 + n))", "decay", "the average keeps its random start"),
    Mutant("03.4", "(1 + n) / (10 + n)", "(2 + n) / (11 + n)", "the counter is one ahead"),
    Mutant("03.4", "min(decay, (1 + n) / (10 + n))", "(1 + n) / (10 + n)", "must not rise above"),
    Mutant("03.4", "(1 + n) / (10 + n)", "(1 + n) / 10 + n", "brackets below"),
    Mutant("03.4", "(1 + n) / (10 + n)", "n / (9 + n)", "is taken as it is, but a tenth"),
    Mutant(
        "03.4",
        "average = d * average + (1 - d) * weights",
        "average = d * average + (1 - d) * weights if n else weights",
        "left out of the warm-up",
    ),
    Mutant("03.4", "enumerate(params)", "enumerate(params[:-1])", "the last row is missing"),
    Mutant("03.4", "average = start", "average = 0 * start", "yours begins at 0"),
    Mutant(
        "03.4",
        "return average",
        "return average / (1 - decay ** len(params))",
        "no division at the end",
    ),
    Mutant("03.4", "return average", "return params.mean(0)", "differ"),
    Mutant("03.5", WEIGHTS, "clipped", "each kind has a factor of its own"),
    Mutant("03.5", WEIGHTS, "clipped / snr", "which is wrong for the other kinds"),
    Mutant("03.5", "jnp.exp(log_snr)", "log_snr", "not its logarithm"),
    Mutant("03.5", "jnp.minimum", "jnp.maximum", "must be cut off above γ"),
    Mutant("03.5", "jnp.minimum(snr, gamma)", "snr", "γ has no effect"),
    Mutant(
        "03.5",
        "clipped = jnp.minimum(snr, gamma)",
        "clipped = snr = jnp.minimum(snr, gamma)",
        "holds the whole ratio",
    ),
    Mutant(
        "03.5",
        "jnp.minimum(snr, gamma)",
        "jnp.exp(jnp.minimum(log_snr, gamma))",
        "not its logarithm",
    ),
    Mutant(
        "03.5",
        WEIGHTS,
        '{"x0": clipped, "eps": clipped / snr**0.5, "v": clipped / (snr + 1) ** 0.5}[kind]',
        "are squared too",
    ),
    Mutant(
        "03.5",
        WEIGHTS,
        '{"x0": clipped, "eps": clipped * snr, "v": clipped * (snr + 1)}[kind]',
        "kind is upside down",
    ),
    Mutant("03.5", "clipped / (snr + 1)", "clipped * snr / (snr + 1)", "not α times"),
    Mutant("03.5", "clipped / (snr + 1)", "clipped * (snr + 1) / snr", "no α stands below"),
    Mutant("03.5", "jnp.exp(log_snr)", "jnp.exp(-log_snr)", "the ratio is upside down"),
    Mutant("03.6", SAMPLE_NOISE, "np.sqrt(1 - kept) * noise", "noise is added that the posterior"),
    Mutant(
        "03.6", "on_x0 = np.sqrt(abar_s)", "on_x0 = np.sqrt(abar_t)", "of the wrong end of the step"
    ),
    Mutant(
        "03.6",
        "variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)",
        "on_x0, variance = on_x0 * np.sqrt(kept), 1 - kept",
        "both bugs are still there",
    ),
    Mutant(
        "03.6",
        "variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)",
        "variance = 1 - kept if abar_s < 1 else 0.0",
        "in all the others",
    ),
    Mutant(
        "03.6",
        "variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)",
        "on_x0, variance = on_x0 * np.sqrt(kept), 1 - kept if abar_s < 1 else 0.0",
        "adds no noise any more",
    ),
    Mutant("03.6", SAMPLE_NOISE, "np.sqrt(1 - abar_s) * noise", "the noise present at s"),
    Mutant("03.6", SAMPLE_NOISE, "np.sqrt(variance) * noises[0]", "the first in all of them"),
    Mutant("03.6", LEVELS, "denoise(x, np.sqrt(abar_s), np.sqrt(1 - abar_s))", "not those of s"),
    Mutant(
        "03.6",
        "x = on_x0 * x0 + on_x_t * x + np.sqrt(variance) * noise",
        "x = np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s) * noise",
        "is noised anew",
    ),
    Mutant(
        "03.6",
        "x = on_x0 * x0 + on_x_t * x + np.sqrt(variance) * noise",
        "eps = (x - np.sqrt(abar_t) * x0) / np.sqrt(1 - abar_t)\n"
        "        x = np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s) * eps",
        "that is DDIM",
    ),
    Mutant("03.6", SAMPLE_NOISE, "0 * noise", "the samples lose their spread"),
    Mutant("03.6", SAMPLE_NOISE, "variance * noise", "by a standard deviation, not by a variance"),
    Mutant("03.6", LEVELS, "denoise(x, abar_t, 1 - abar_t)", "α and σ, which are square roots"),
    Mutant("03.7", "jnp.sum(error**2", "jnp.mean(error**2", "yours is their mean"),
    Mutant("03.7", RATIOS, "(snr_s - snr_t)", "one half is missing"),
    Mutant("03.7", RATIOS, "snr_s / 2", "that is the ratio at s alone"),
    Mutant("03.7", RATIOS, "(snr_t - snr_s) / 2", "the two levels are exchanged"),
    Mutant("03.7", "error**2", "jnp.abs(error)", "the difference of their means is squared"),
    Mutant(
        "03.7",
        "jnp.sum(error**2, axis=1)",
        "jnp.sqrt(jnp.sum(error**2, axis=1))",
        "of the sum of squares",
    ),
    Mutant("03.7", RATIOS, "np.log(snr_s / snr_t) / 2", "not their logarithms"),
    Mutant("03.7", RATIOS, "(snr_s / snr_t - 1) / 2", "an error of ε"),
    Mutant("03.7", RATIOS, "abar_s**0.5 / (1 - abar_s) / 2", "through the factor of x0"),
    Mutant(
        "03.7",
        RATIOS,
        "(1 - abar_t) / ((1 - abar_t / abar_s) * (1 - abar_s)) / 2",
        "the factor of x0 is missing",
    ),
    Mutant(
        "03.7",
        RATIOS,
        "(snr_s - snr_t) * (1 - abar_s) / (1 - abar_t) / 2",
        "the variance of the step",
    ),
    Mutant(
        "03.7",
        RATIOS,
        "(snr_s - snr_t) / 2 * ((1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)) ** 0.5",
        "divided by a standard deviation",
    ),
]
