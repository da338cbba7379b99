"""Wrong answers to the exercises of chapter 05."""

from mutants import Mutant

NATS = "nats.reshape(len(nats), -1).mean(1) / np.log(2)"
WEIGHT = "nats_of_x0 * error_of_x0 / np.log(2)"
UNITS = '{"x0": 1.0, "eps": (1 - abar_t) / abar_t, "v": 1 - abar_t}[kind]'
MIX = "share * np.log(beta) + (1 - share) * np.log(beta_tilde)"
SEEN = "seen = np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t) * noise"
PEEK = "seen = np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s) * noise"
RATIO = "ratio = (1 - abar_s) / (1 - abar_t)"
MIDDLE = """
        error = (x0 - denoise(seen, np.sqrt(abar_t), np.sqrt(1 - abar_t))) ** 2
        added = 1 - abar_t / abar_s  # the model's variance
        if abar_s == 1:
            return total + (error / added + np.log(2 * np.pi * added)) / 2
        on_x0 = np.sqrt(abar_s) * added / (1 - abar_t)
        """
LOSS = "jnp.mean((mean - mu_tilde) ** 2) + lam * jnp.mean(kl)"

MUTANTS = [
    Mutant("05.1", NATS, "nats.reshape(len(nats), -1).mean(1)", "that is in nats"),
    Mutant("05.1", ".mean(1)", ".sum(1)", "yours is their sum"),
    Mutant("05.1", "0.5 * (jnp", "(jnp", "one half is missing"),
    Mutant(
        "05.1",
        "log_ratio = log_var_q - log_var_p",
        "mean_q, log_var_q, mean_p, log_var_p = mean_p, log_var_p, mean_q, log_var_q\n"
        "    log_ratio = log_var_q - log_var_p",
        "the two Gaussians are exchanged",
    ),
    Mutant("05.1", "jnp.exp(log_ratio) - 1 - log_ratio + distance", "distance", "has none"),
    Mutant(
        "05.1",
        "log_ratio = log_var_q - log_var_p",
        "log_var_q, log_var_p = log_var_q / 2, log_var_p / 2\n"
        "    log_ratio = log_var_q - log_var_p",
        "you took them for standard deviations'",
    ),
    Mutant("05.2", "c**2 * doubt", "c * doubt", "is squared in the variance"),
    Mutant("05.2", "return beta_tilde +", "return beta +", "that of the posterior: less than"),
    Mutant(
        "05.2",
        "c = abar_s**0.5 * beta / (1 - abar_t)",
        "c = (abar_t / abar_s) ** 0.5 * (1 - abar_s) / (1 - abar_t)",
        "that is the factor of x_t",
    ),
    Mutant("05.2", "c**2 * doubt", "doubt", "must be multiplied by c²"),
    Mutant("05.2", "c**2 * doubt", "(beta - beta_tilde) * doubt", "a straight line from"),
    Mutant("05.2", "abar_s**0.5 * beta", "abar_s * beta", "differ"),
    Mutant("05.3", WEIGHT, "nats_of_x0 * error_of_x0", "that is in nats"),
    Mutant("05.3", "0.5 * (snr_s - snr_t)", "(snr_s - snr_t)", "one half is missing"),
    Mutant("05.3", UNITS, "(1 - abar_t) / abar_t", "that is the weight for eps"),
    Mutant("05.3", UNITS, "1.0", "that is the weight for x0"),
    Mutant("05.3", "(snr_s - snr_t)", "(snr_t - snr_s)", "the sign"),
    Mutant(
        "05.3",
        "abar_t / (1 - abar_t), abar_s / (1 - abar_s)",
        "abar_t / (1 - abar_t) ** 0.5, abar_s / (1 - abar_s) ** 0.5",
        "without a root",
    ),
    Mutant("05.4", "jnp.log(upper - lower)", "norm.logpdf(x0, mean, std)", "that is a density"),
    Mutant("05.4", "half = 1 /", "half = 2 /", "yours reaches all the way"),
    Mutant("05.4", "x0 > 1 - half", "x0 > 99", "differ"),
    Mutant(
        "05.4",
        "upper = jnp.where(x0 > 1 - half, 1.0, upper)\n"
        "    lower = jnp.where(x0 < -1 + half, 0.0, lower)",
        "",
        "the lowest and the highest bin are open",
    ),
    Mutant(
        "05.4",
        "upper = norm.cdf((x0 + half - mean) / std)\n"
        "    lower = norm.cdf((x0 - half - mean) / std)",
        "upper = norm.cdf((x0 + 2 * half - mean) / std)\n    lower = norm.cdf((x0 - mean) / std)",
        "x0 lies in its middle",
    ),
    Mutant("05.4", "jnp.log(upper - lower)", "upper - lower", "its logarithm"),
    Mutant("05.4", "half = 1 / (levels - 1)", "half, std = 1 / (levels - 1), std**0.5", "no root"),
    Mutant(
        "05.5",
        MIX,
        "np.log(share * beta + (1 - share) * beta_tilde)".replace("np", "jnp"),
        "mix the logarithms",
    ),
    Mutant("05.5", "share = (u + 1) / 2", "share = u", "so that u = 0 is the middle"),
    Mutant("05.5", "share = (u + 1) / 2", "share = (1 - u) / 2", "the two ends are exchanged"),
    Mutant("05.5", f"return {MIX}", f"return jnp.exp({MIX})", "not the variance"),
    Mutant("05.5", "(u + 1) / 2", "jnp.clip((u + 1) / 2, 0, 1)", "do not clip it"),
    Mutant("05.6", "ratio - 1 - np.log(ratio) + ", "", "that costs bits too"),
    Mutant("05.6", SEEN, PEEK, "the denoiser is shown the cleaner end"),
    Mutant(
        "05.6",
        SEEN + MIDDLE + RATIO,
        PEEK + MIDDLE + "ratio = 1.0",
        "both bugs are still there",
    ),
    Mutant("05.6", "total = abar[0] * x0**2 / (1 - abar[0]) / 2", "total = 0", "prior has gone"),
    Mutant("05.6", RATIO, "ratio = (1 - abar_t) / (1 - abar_s)", "upside down"),
    Mutant("05.7", "held = jax.lax.stop_gradient(mean)", "held = mean", "pulls at the mean"),
    Mutant("05.7", LOSS, LOSS.replace("(kl)", "(jax.lax.stop_gradient(kl))"), "the variance"),
    Mutant(
        "05.7",
        LOSS,
        "jnp.mean((held - mu_tilde) ** 2) + lam * jnp.mean(kl)",
        "nothing is learned about the mean",
    ),
    Mutant("05.7", "lam * jnp.mean(kl)", "jnp.mean(kl)", "with the weight 1"),
    Mutant("05.7", "log(ratio) + distance", "log(ratio)", "must cover the error of the mean"),
    Mutant(
        "05.7",
        LOSS,
        "jnp.sum((mean - mu_tilde) ** 2) + lam * jnp.sum(kl)",
        "yours are added up",
    ),
]
