"""Wrong answers to the exercises of chapter 06."""

from mutants import Mutant

FRESH = "eta * np.sqrt(variance)"
RESULT = "abar_s**0.5 * x0_hat + direction * eps + variance**0.5 * noise"
GUESS = "denoise(guess, alpha_t, sigma_t)"
OLD = "np.sqrt(1 - abar_s - variance)"
SHARE = "h / (2 * h_before)"

MUTANTS = [
    Mutant("06.1", FRESH, "eta**2 * variance", "that is a variance"),
    Mutant("06.1", FRESH, "np.sqrt(eta * variance)", "yours multiplies the variance"),
    Mutant("06.1", " * (1 - abar_s) / (1 - abar_t)", "", "the noise of the step itself"),
    Mutant("06.1", FRESH, "eta * np.sqrt(1 - abar_s)", "the noise present at s"),
    Mutant("06.1", FRESH, "np.sqrt(variance)", "η is missing"),
    Mutant("06.1", "(1 - abar_s) / (1 - abar_t)", "(1 - abar_t) / (1 - abar_s)", "is upside down"),
    Mutant("06.1", "= abar[:-1], abar[1:]", "= abar[1:], abar[:-1]", "are t and s exchanged"),
    Mutant("06.2", "(1 - abar_s - variance)", "(1 - abar_s)", "must shrink by what"),
    Mutant(
        "06.2",
        "(1 - abar_s - variance) ** 0.5",
        "(1 - abar_s) ** 0.5 - variance**0.5",
        "σ_s − g leaves too little",
    ),
    Mutant("06.2", "- variance)", "- variance**0.5)", "g is not squared in yours"),
    Mutant("06.2", " + variance**0.5 * noise", " + 0 * noise", "the fresh noise is missing"),
    Mutant("06.2", "variance**0.5 * noise", "variance * noise", "not by its variance"),
    Mutant("06.2", "abar_s**0.5 * x0_hat", "abar_t**0.5 * x0_hat", "the wrong end of the step"),
    Mutant("06.2", "abar_s**0.5 * x0_hat", "abar_s * x0_hat", "its square root"),
    Mutant("06.2", " / (1 - abar_t) ** 0.5", "", "noise of size σ_t"),
    Mutant("06.2", " / (1 - abar_t) ** 0.5", " / (1 - abar_t)", "yours by its square"),
    Mutant("06.2", "direction = ", "eps, noise = noise, eps\n    direction = ", "are exchanged"),
    Mutant("06.2", RESULT, f"({RESULT})[0]", "expected shape"),
    Mutant(
        "06.3",
        f"(guess - alpha_t * {GUESS}) / sigma_t",
        "(guess - alpha_s * denoise(guess, alpha_s, sigma_s)) / sigma_s",
        "evaluate at the levels of t",
    ),
    Mutant("06.3", "range(refinements + 1)", "range(refinements)", "one evaluation too few"),
    Mutant("06.3", "range(refinements + 1)", "range(refinements + 2)", "one evaluation too many"),
    Mutant("06.3", GUESS, "denoise(guess, alpha_s, sigma_s)", "not those of s"),
    Mutant("06.3", GUESS, "denoise(guess, abar_t, 1 - abar_t)", "told their squares"),
    Mutant(
        "06.3",
        "x0 = (x_s - sigma_s * eps) / alpha_s",
        f"x0 = {GUESS}",
        "from D's guess and noise",
    ),
    Mutant(
        "06.3",
        f"(guess - alpha_t * {GUESS})",
        "(x_s - alpha_t * denoise(x_s, alpha_t, sigma_t))",
        "not at x_s again",
    ),
    Mutant("06.3", "(x_s - sigma_s * eps)", "(guess - sigma_s * eps)", "climbs on from the last"),
    Mutant(
        "06.3",
        "guess = x_s",
        "abar_t, abar_s = abar_s, abar_t\n    "
        "alpha_t, sigma_t, alpha_s, sigma_s = alpha_s, sigma_s, alpha_t, sigma_t\n    "
        "guess = x_s",
        "that is the way down",
    ),
    Mutant("06.3", "/ alpha_s", "/ alpha_t", "every value"),
    Mutant("06.4", "mix / jnp.sin(theta)", "(1 - share) * a + share * b", "the straight line"),
    Mutant("06.4", "range(1, a.ndim)", "range(a.ndim)", "one for the whole batch"),
    Mutant(
        "06.4",
        "jnp.sin((1 - share) * theta) * a + jnp.sin(share * theta) * b",
        "jnp.sin(share * theta) * a + jnp.sin((1 - share) * theta) * b",
        "are exchanged",
    ),
    Mutant(
        "06.4", "mix =", "a, b = a / lengths[0], b / lengths[1]\n    mix =", "keep their length"
    ),
    Mutant("06.4", "mix / jnp.sin(theta)", "mix", "the division by sin θ is missing"),
    Mutant("06.4", "jnp.arccos(cosine)", "cosine", "still the cosine"),
    Mutant("06.4", "jnp.arccos(cosine)", "jnp.arcsin(cosine)", "not its sine"),
    Mutant("06.4", " / (lengths[0] * lengths[1])", "", "expected finite numbers"),
    Mutant("06.5", "return -slope", "return slope", "an order is positive"),
    Mutant("06.5", "per_step * steps - saved", "steps", "count evaluations, not steps"),
    Mutant("06.5", "steps - saved", "steps + saved", "yours becomes dearer"),
    Mutant(
        "06.5",
        "jnp.log(evaluations), jnp.log(errors)",
        "evaluations, errors",
        "both axes are logarithmic",
    ),
    Mutant("06.5", "jnp.log(evaluations)", "evaluations", "need a logarithm too"),
    Mutant(
        "06.5",
        "jnp.polyfit(jnp.log(evaluations), jnp.log(errors), 1)",
        "jnp.polyfit(jnp.log(evaluations[jnp.array([0, -1])]), jnp.log(errors[jnp.array([0, -1])]),"
        " 1)",
        "ignores all the runs in the middle",
    ),
    Mutant(
        "06.6",
        "np.append(abar[1:], 1.0)",
        "np.append(abar[1:], abar[-1])",
        "a bug is left: the last step",
    ),
    Mutant("06.6", "1 - abar_s - variance", "1 - abar_s", "a bug is left: the fresh noise"),
    Mutant("06.6", OLD, "np.sqrt(1 - abar_s) - np.sqrt(variance)", "σ_s − g leaves too little"),
    Mutant("06.6", OLD, "np.sqrt(1 - abar_s) * (1 - eta)", "depends on g"),
    Mutant("06.6", OLD, "np.sqrt(1 - abar_s - np.sqrt(variance))", "g is not squared in yours"),
    Mutant(
        "06.6",
        "old = np.sqrt(1 - abar_s - variance)",
        "abar_s = abar[-1] if n == len(abar) - 1 else abar_s\n"
        "        variance = variance if n < len(abar) - 1 else 0\n"
        "        old = np.sqrt(1 - abar_s)",
        "both bugs are still there",
    ),
    Mutant("06.6", "np.sqrt(variance) * noise", "0 * noise", "the fresh noise is gone"),
    Mutant("06.7", SHARE, "0", "that is DDIM"),
    Mutant("06.7", SHARE, "h_before / (2 * h)", "are exchanged"),
    Mutant("06.7", SHARE, "h / h_before", "to the end of the step"),
    Mutant("06.7", SHARE, "-h / (2 * h_before)", "backwards"),
    Mutant("06.7", SHARE, "0.5", "only for steps of equal length"),
    Mutant(
        "06.7", "before, h_before = x0, h", "before, h_before = ahead, h", "the extrapolated one"
    ),
    Mutant(
        "06.7",
        "before is not None",
        "before is not None and s < len(alpha) - 1",
        "like every other",
    ),
    Mutant(
        "06.7",
        "before = h_before = None",
        "sigma = np.sqrt(1 - alpha**2)\n    before = h_before = None",
        "a table of its own",
    ),
    Mutant("06.7", "if sigma[s] > 0:", "if True:", "expected finite numbers"),
]
