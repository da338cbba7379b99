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
    Mutant("03.1", f"{MEAN}, added", f"{MEAN} if True else added", "got one array"),
    Mutant("03.2", "alpha * eps - sigma * x0", "sigma * x0 - alpha * eps", "the wrong sign"),
    Mutant("03.2", "alpha * eps - sigma * x0", "sigma * eps - alpha * x0", "are exchanged"),
    Mutant("03.2", "alpha * eps - sigma * x0", "eps", "predicts the noise; this one predicts v"),
    Mutant("03.2", "jnp.mean(", "jnp.sum(", "averaged over all pixels and images, not added up"),
    Mutant("03.2", "(output - v) ** 2", "jnp.abs(output - v)", "the error must be squared"),
    Mutant(
        "03.2",
        "alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)",
        "alpha[: x0.shape[-1]], sigma[: x0.shape[-1]]",
        "they must multiply whole images",
    ),
    Mutant("03.2", "jnp.mean((output - v) ** 2)", "jnp.mean((output - v) ** 2, axis=0)", "shape"),
    Mutant("03.3", STEP_NOISE, "variance * noise", "the posterior gives a variance"),
    Mutant("03.3", STEP_NOISE, "jnp.sqrt(1 - kept) * noise", "the posterior has less"),
    Mutant("03.3", STEP_NOISE, "0 * noise", "the samples lose their spread"),
    Mutant("03.3", STEP_NOISE, "jnp.sqrt(1 - abar_s) * noise", "the noise present at s"),
    Mutant("03.3", "on_guess * x0_hat", "x0_hat", "every value differs"),
    Mutant("03.4", "d * average + (1 - d) * weights", "(1 - d) * average + d * weights", "exchang"),
    Mutant("03.4", "min(decay, (1 + n) / (10 + n))", "decay", "holds on to its random start"),
    Mutant("03.4", "(1 + n) / (10 + n)", "(2 + n) / (11 + n)", "the counter is one ahead"),
    Mutant("03.4", "min(decay, (1 + n) / (10 + n))", "(1 + n) / (10 + n)", "must not rise above"),
    Mutant("03.4", "return average", "return params.mean(0)", "differ"),
    Mutant("03.5", WEIGHTS, "clipped", "each kind has a factor of its own"),
    Mutant("03.5", WEIGHTS, "clipped / snr", "which is wrong for the other kinds"),
    Mutant("03.5", "jnp.exp(log_snr)", "log_snr", "not its logarithm"),
    Mutant("03.5", "jnp.minimum", "jnp.maximum", "must be cut off above γ"),
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
    Mutant("03.6", SAMPLE_NOISE, "0 * noise", "the samples lose their spread"),
    Mutant("03.6", SAMPLE_NOISE, "variance * noise", "by a standard deviation, not by a variance"),
    Mutant("03.6", LEVELS, "denoise(x, abar_t, 1 - abar_t)", "α and σ, which are square roots"),
    Mutant("03.7", "jnp.sum(error**2", "jnp.mean(error**2", "yours is their mean"),
    Mutant("03.7", RATIOS, "(snr_s - snr_t)", "one half is missing"),
    Mutant("03.7", RATIOS, "snr_s / 2", "that is the ratio at s alone"),
    Mutant("03.7", RATIOS, "(snr_t - snr_s) / 2", "the two levels are exchanged"),
    Mutant("03.7", "error**2", "jnp.abs(error)", "the difference of their means is squared"),
]
