"""Wrong answers to the exercises of chapter 05."""

from mutants import Mutant

NATS = "nats.reshape(len(nats), -1).mean(1) / np.log(2)"
WEIGHT = "nats_of_x0 * error_of_x0 / np.log(2)"
UNITS = '{"x0": 1.0, "eps": (1 - abar_t) / abar_t, "v": 1 - abar_t}[kind]'
MIX = "share * np.log(beta) + (1 - share) * np.log(beta_tilde)"
LOG_V = "(u + 1) / 2 * np.log(beta) + (1 - u) / 2 * np.log(beta_tilde)"
SEEN = "seen = np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t) * noise"
PEEK = "seen = np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s) * noise"
RATIO = "ratio = (1 - abar_s) / (1 - abar_t)"
MIDDLE = """
        error = (x0 - denoise(seen, np.sqrt(abar_t), np.sqrt(1 - abar_t))) ** 2
        added = 1 - abar_t / abar_s  # the model's variance
        price = error / added + np.log(2 * np.pi * added)  # of the last step, to the data
        if abar_s < 1:  # of every other one
            on_x0 = np.sqrt(abar_s) * added / (1 - abar_t)
            """
PRICE = "price = ratio - 1 - np.log(ratio) + on_x0**2 * error / added"
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
    Mutant("05.2", "c**2 * doubt", "c**2 * doubt**2", "must not be squared"),
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
    Mutant(
        "05.3",
        "snr_t, snr_s = abar",
        "abar_t, abar_s = abar_s, abar_t\n    snr_t, snr_s = abar",
        "of t and s are exchanged",
    ),
    Mutant("05.3", "* error_of_x0", "* error_of_x0**0.5", "must be squared as well"),
    Mutant("05.3", "* error_of_x0", "/ error_of_x0", "is upside down"),
    Mutant("05.3", UNITS, UNITS.replace("abar_t", "abar_s"), "with the levels of t, not s"),
    Mutant("05.4", "jnp.log(upper - lower)", "norm.logpdf(x0, mean, std)", "that is a density"),
    Mutant("05.4", "half = 1 /", "half = 2 /", "yours reaches all the way"),
    Mutant("05.4", "x0 > 1 - half", "x0 > 99", "differ"),
    Mutant(
        "05.4",
        "upper = jnp.where(x0 > 1 - half, 1.0, upper)\n"
        "    lower = jnp.where(x0 < -1 + half, 0.0, lower)",
        "upper = jnp.where(x0 == 1, 1.0, upper)\n    lower = jnp.where(x0 == -1, 0.0, lower)",
        "off by a rounding",
    ),
    Mutant("05.4", "(upper - lower)", "(upper - lower + 1e-5)", "too cheap"),
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
    Mutant("05.6", PRICE, "price = on_x0**2 * error / (ratio * added)", "you bound another model"),
    Mutant("05.6", "error / added\n", "error / (ratio * added)\n", "and that is not β̃"),
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
    Mutant("05.7", LOG_V, "u * np.log(beta) + (1 - u) * np.log(beta_tilde)", "is the middle"),
    Mutant(
        "05.7",
        LOG_V,
        "(u + 1) / 2 * np.log(beta_tilde) + (1 - u) / 2 * np.log(beta)",
        "β and β̃ are exchanged",
    ),
    Mutant(
        "05.7",
        "jnp.log(ratio) + distance)",
        "jnp.log(ratio) + distance)\n        ratio = 1 / ratio\n"
        "        kl = 0.5 * (ratio - 1 - jnp.log(ratio) + (held - mu_tilde) ** 2 / beta_tilde)",
        "the two Gaussians are exchanged",
    ),
    Mutant("05.7", "lam * jnp.mean(kl)", "lam * jnp.mean(kl) / np.log(2)", "yours is in bits"),
    Mutant(
        "05.7",
        LOSS,
        "jnp.sum((mean - mu_tilde) ** 2) + lam * jnp.sum(kl)",
        "yours are added up",
    ),
]
