"""Wrong answers to the exercises of chapter 01."""

from mutants import Mutant

ONE_STEP = "jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * eps"
TABLE = "np.concatenate([[1.0], np.cumprod(1 - betas)])"
LEVEL = "table[n].reshape(-1, 1, 1, 1)"
SIGNAL = "jnp.sqrt(level) * x0"
NOISE = "jnp.sqrt(1 - level) * eps"
RATIO = "1 - f[1:] / f[:-1]"
LOG_SNR = "log_signal - log_noise"
LOG_SIGNAL = "np.sum(np.log1p(-betas))"
CHAIN = "jnp.sqrt(beta) * fresh"
FINAL = "-np.expm1(np.diff(log_level))"

MUTANTS = [
    Mutant("01.1", "jnp.sqrt(beta)", "beta", "the noise must be multiplied by its square root"),
    Mutant("01.1", "jnp.sqrt(1 - beta)", "(1 - beta)", "the signal must be multiplied by its"),
    Mutant("01.1", ONE_STEP, "(1 - beta) * x + beta * eps", "both factors are variances"),
    Mutant("01.1", ONE_STEP, "jnp.sqrt(beta) * x + jnp.sqrt(1 - beta) * eps", "are swapped"),
    Mutant("01.1", "jnp.sqrt(beta)", "(1 - jnp.sqrt(1 - beta))", "their squares that should"),
    Mutant("01.1", "jnp.sqrt(1 - beta)", "(1 - jnp.sqrt(beta))", "is not 1 − √β"),
    Mutant("01.1", "jnp.sqrt(1 - beta) * x", "x", "the picture must shrink"),
    Mutant("01.1", "+ jnp.sqrt(beta) * eps", "", "the noise is missing"),
    Mutant(
        "01.1",
        "jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * eps",
        "jnp.sqrt(1 - beta) * (x + jnp.sqrt(beta) * eps)",
        "the noise is shrunk as well",
    ),
    Mutant("01.1", "+ jnp", "- jnp", "added, not subtracted"),
    Mutant("01.1", "jnp.sqrt(beta) * eps", "beta**2 * eps", "every value differs"),
    Mutant("01.2", TABLE, "np.cumprod(1 - betas)", "the first entry is missing"),
    Mutant("01.2", "np.cumprod(1 - betas)", "np.cumprod(betas)", "multiply what the steps keep"),
    Mutant("01.2", "np.cumprod(1 - betas)", "1 - np.cumsum(betas)", "doesn't add up"),
    Mutant("01.2", "np.cumprod(1 - betas)", "np.exp(-np.cumsum(betas))", "exponential of a sum"),
    Mutant("01.2", TABLE, f"np.sqrt({TABLE})", "that is its square root"),
    Mutant(
        "01.2", TABLE, "1 - np.concatenate([[1.0], np.cumprod(1 - betas)])", "the noise's share"
    ),
    Mutant("01.2", "[1.0]", "[0.0]", "that is not 0"),
    Mutant("01.2", TABLE, "np.append(np.cumprod(1 - betas), 1.0)", "stands at the wrong end"),
    Mutant(
        "01.2", "np.cumprod(1 - betas)", "np.cumprod(1 - betas[:-1])", "the last step is missing"
    ),
    Mutant("01.2", "np.cumprod(1 - betas)", "1 - betas", "multiply all the steps so far"),
    Mutant("01.2", TABLE, f"{TABLE}[::-1]", "the order along the first axis is reversed"),
    Mutant("01.3", NOISE, "(1 - level) * eps", "multiplied by its variance"),
    Mutant("01.3", SIGNAL, "level * x0", "the signal is multiplied by ᾱ"),
    Mutant("01.3", NOISE, "(1 - jnp.sqrt(level)) * eps", "the two factors add up to 1"),
    Mutant(
        "01.3",
        f"{SIGNAL} + {NOISE}",
        "jnp.sqrt(1 - level) * x0 + jnp.sqrt(level) * eps",
        "signal and noise are swapped",
    ),
    Mutant("01.3", "table[n]", "table[n - 1]", "off by one step"),
    Mutant(
        "01.3",
        "jnp.sqrt(level) * x0 + jnp.sqrt(1 - level) * eps",
        "level * x0 + (1 - level) * eps",
        "both factors are variances",
    ),
    Mutant("01.3", "table[n]", "table[np.minimum(n + 1, len(table) - 1)]", "one step too far"),
    Mutant("01.3", "table[n]", "table[-1 - n]", "from the other end of the table"),
    Mutant("01.3", "jnp.sqrt(level) * x0", "x0", "the data must be shrunk"),
    Mutant("01.3", "table[n]", "table[n].mean()", "the same mean level"),
    Mutant("01.3", LEVEL, "table[n[0]]", "all images are taken to the step of the first"),
    Mutant("01.3", LEVEL, "table[n].reshape(-1, 1, 1)", "from row to row"),
    Mutant("01.3", LEVEL, "table[n].reshape(-1, 1)", "from column to column"),
    Mutant("01.3", LEVEL, "table[n]", "from colour to colour"),
    Mutant("01.4", f"np.minimum({RATIO}, max_beta)", RATIO, "no beta may be larger"),
    Mutant("01.4", ") ** 2", ")", "the cosine is not squared"),
    Mutant("01.4", "(t + s) / (1 + s)", "t", "the offset s has no effect"),
    Mutant("01.4", "(t + s) / (1 + s)", "(t + s)", "past a right angle"),
    Mutant("01.4", RATIO, "1 - f[1:] / f[0]", "the noise of all steps so far"),
    Mutant("01.4", "(t + s) / (1 + s)", "(t + s / (1 + s))", "brackets is missing"),
    Mutant("01.4", "np.arange(T + 1)", "np.arange(1, T + 2)", "yours is off by one"),
    Mutant("01.4", RATIO, "1 - f[:-1] / f[1:]", "the quotient is upside down"),
    Mutant("01.4", "np.pi / 2", "np.pi", "half of π"),
    Mutant("01.4", RATIO, "-np.diff(f / f[0])", "yours is their difference"),
    Mutant("01.4", RATIO, "f[1:] / f[:-1]", "what a step keeps"),
    Mutant(
        "01.4",
        "np.minimum(1 - f[1:] / f[:-1], max_beta)",
        "np.append(1 - f[1:-1] / f[:-2], max_beta)",
        "a limit for every beta",
    ),
    Mutant("01.4", RATIO, "1 - f[1:] / np.append(1.0, f[1:-1])", "the first beta is off"),
    Mutant("01.4", "np.arange(T + 1) / T", "np.linspace(0, 1, T)", "expected shape"),
    Mutant(
        "01.5",
        "np.log(-np.expm1(log_signal))",
        "np.log(1 - np.exp(log_signal))",
        "neither 1 − β nor 1 − ᾱ",
    ),
    Mutant("01.5", LOG_SIGNAL, "np.log(np.prod(1 - betas))", "neither ᾱ nor 1/ᾱ fits"),
    Mutant("01.5", LOG_SNR, f"({LOG_SNR}) / 2", "not standard deviations"),
    Mutant("01.5", LOG_SNR, f"np.exp({LOG_SNR})", "its logarithm is missing"),
    Mutant("01.5", LOG_SNR, "log_noise - log_signal", "upside down"),
    Mutant("01.5", LOG_SIGNAL, "np.log1p(-betas[-1])", "the last step alone"),
    Mutant("01.5", LOG_SNR, "log_signal", "the noise, 1 − ᾱ, is missing"),
    Mutant("01.5", LOG_SIGNAL, "-np.sum(betas)", "only if β is tiny"),
    Mutant("01.5", LOG_SNR, "log_signal + log_noise", "not a ratio"),
    Mutant(
        "01.5",
        "return log_signal - log_noise",
        "return log_signal - np.sum(np.log(betas))",
        "the ratios of single steps",
    ),
    Mutant("01.6", CHAIN, "(1 - jnp.sqrt(1 - beta)) * eps[0]", "both bugs are still there"),
    Mutant("01.6", CHAIN, "(1 - jnp.sqrt(1 - beta)) * fresh", "signal and noise add up to 1"),
    Mutant("01.6", CHAIN, "jnp.sqrt(beta) * eps[0]", "noises of two steps"),
    Mutant("01.6", CHAIN, "beta * fresh", "β is a variance"),
    Mutant("01.6", CHAIN, "jnp.sqrt(1 - jnp.sqrt(1 - beta)) * fresh", "one of the factors"),
    Mutant("01.6", "jnp.sqrt(1 - beta)", "(1 - beta)", "what multiplies the picture"),
    Mutant(
        "01.6",
        "jnp.sqrt(1 - beta) * path[-1] + jnp.sqrt(beta) * fresh",
        "(1 - beta) * path[-1] + beta * fresh",
        "both factors are variances",
    ),
    Mutant("01.6", "path[-1]", "x0", "starts from x_0 every time"),
    Mutant(
        "01.6",
        "path.append(jnp.sqrt(1 - beta) * path[-1] + jnp.sqrt(beta) * fresh)",
        "level = np.prod(1 - betas[: len(path)])\n"
        "        path.append(np.sqrt(level) * x0 + np.sqrt(1 - level) * fresh)",
        "with one noise each",
    ),
    Mutant(
        "01.6",
        "path.append(jnp.sqrt(1 - beta) * path[-1] + jnp.sqrt(beta) * fresh)",
        "level = np.prod(1 - betas[: len(path)])\n"
        "        path.append(np.sqrt(level) * x0 + np.sqrt(1 - level) * eps[0])",
        "all with the same noise",
    ),
    Mutant("01.6", CHAIN, "jnp.sqrt(beta) * eps[len(path)]", "off by one"),
    Mutant("01.6", "jnp.stack(path)", "jnp.stack(path[1:])", "the data are missing"),
    Mutant("01.6", "jnp.stack(path)", "path[-1]", "expected shape"),
    Mutant("01.7", FINAL, "1 - np.exp(np.diff(log_level))", "rounds it to 0"),
    Mutant(
        "01.7", FINAL, "1 - np.exp(log_level[1:]) / np.exp(log_level[:-1])", "deep in the noise"
    ),
    Mutant(
        "01.7", "-np.logaddexp(0, -log_snr)", "-np.log1p(np.exp(-log_snr))", "deep in the noise"
    ),
    Mutant(
        "01.7",
        "-np.logaddexp(0, -log_snr)",
        "-np.logaddexp(0, -2 * log_snr)",
        "λ compares variances",
    ),
    Mutant(
        "01.7",
        "-np.logaddexp(0, -log_snr)",
        "-np.logaddexp(0, log_snr)",
        "signal and noise are swapped",
    ),
    Mutant("01.7", "np.concatenate([[0.0], log_level])", "log_level", "one step is missing"),
    Mutant("01.7", "np.diff(log_level)", "log_level[1:]", "a β is what one step adds"),
    Mutant("01.7", "[[0.0], log_level]", "[[1.0], log_level]", "its logarithm isn't"),
    Mutant("01.7", "[[0.0], log_level]", "[log_level[:1], log_level]", "the first beta is 0"),
    Mutant("01.7", FINAL, "-np.diff(log_level)", "the way back is missing"),
    Mutant("01.7", FINAL, "np.exp(np.diff(log_level))", "what a step keeps"),
    Mutant("01.7", FINAL, "-np.diff(np.exp(log_level))", "yours is their difference"),
]
