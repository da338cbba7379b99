"""Do the tests notice a wrong symbol? Changes one at a time in a copy, and runs that file's tests.

    python benchmarks/mutants.py [FILE …]      such as samplers or models/unet; all without

A mutant is a formula with one slip: a power, a sign, a level of the wrong time, a term left out.
Prints for each the test that caught it, or SURVIVED, and exits with 1 if one did. An hour on two
cores for all of them: to be run by hand after the tests or the mathematics have changed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent

# file -> the tests that should notice, and (right, wrong) pairs.
MUTANTS = {
    "process": (
        "process doors_process",
        [
            ("scale * kept**2 * x_t", "scale * kept * x_t"),
            ("return mean, sigma_s**2 * r", "return mean, sigma_s**2"),
            ("return jnp.sqrt(d * (2 - d))", "return jnp.sqrt(2 * d)"),
            ("p.sigma(t) ** 2 * new_noise(p, t, s)", "p.sigma(s) ** 2 * new_noise(p, t, s)"),
        ],
    ),
    "parameterization": (
        "parameterization",
        [
            ("return -p.sigma(t), p.alpha(t)", "return p.sigma(t), p.alpha(t)"),
            ("solved = (a * x_t - alpha * y)", "solved = (a * x_t + alpha * y)"),
            ("expand(p.d_alpha(t), x_t) * x0", "expand(p.alpha(t), x_t) * x0"),
        ],
    ),
    "denoiser": (
        "denoiser",
        [
            ("gain = alpha * self.stds**2 / variance", "gain = alpha * self.stds / variance"),
            ("products - alpha**2 * half_norms", "products - alpha * half_norms"),
        ],
    ),
    "losses": (
        "losses",
        [
            ("limit * sigma / alpha) / b", "limit * sigma) / b"),
            (
                "jnp.where(a == 0, of_eps, jnp.where(b == 0, of_x0, mixed)) ** 2",
                "jnp.where(a == 0, of_eps, jnp.where(b == 0, of_x0, mixed))",
            ),
            ("key_time, key_noise = jax.random.split(key)", "key_time = key_noise = key"),
        ],
    ),
    "bound": (
        "bound",
        [
            ("jnp.expm1(log_ratio) - log_ratio +", "jnp.expm1(log_ratio) + log_ratio +"),
            (
                "share * upper + (1 - share) * lower",
                "share * lower + (1 - share) * upper",
            ),
            ("-(distance**2 + log_variance + _LOG", "-(distance**2 + log_variance / 2 + _LOG"),
        ],
    ),
    "guidance": (
        "guidance doors_sampling",
        [
            ("unconditional + scale * (", "unconditional - scale * ("),
            ("sigma**2 / jnp.where(signal", "sigma / jnp.where(signal"),
            ("wanted / jnp.where(flat, 1.0, got)", "got / jnp.where(flat, 1.0, wanted)"),
        ],
    ),
    "samplers": (
        "samplers solvers editing",
        [
            ("mean + temperature * root(fresh) * noise", "mean"),
            ("jnp.where(s > 0, transition(p, t, s)[1], 0.0)", "transition(p, t, s)[1]"),
            ("fresh = eta**2 *", "fresh = eta *"),
            ("kept = root(sigma_s**2 - fresh)", "kept = sigma_s"),
            ("(there - eps) / 2", "(there - eps)"),
            ("ahead / (2 * jnp.where(usable", "ahead / (jnp.where(usable"),
            ("signal, at_s - at_t, growth)", "signal, at_s - at_t, 0 * growth)"),
            ("jnp.minimum(at_s - at_t, math.log(2))", "at_s - at_t"),
            ("3 / 2 * bend", "bend"),
            ("55 * eps - 59", "55 * eps - 58"),
            ("back = scale * x_s", "back = x_s"),
        ],
    ),
    "sampling": (
        "sampling",
        [
            ("jax.random.fold_in(key, i), state)", "key, state)"),
            ("return p.sigma(t) * jax.random", "return jax.random"),
        ],
    ),
    "editing": (
        "editing",
        [
            ("(sigma_t - shrink * sigma_s) * eps", "(sigma_t + shrink * sigma_s) * eps"),
            ("jnp.sin((1 - share) * angle) / sine", "jnp.sin((1 - share) * angle)"),
            ("(alpha_t - grow * alpha_s) * x0", "(alpha_t - alpha_s) * x0"),
        ],
    ),
    "models/unet": (
        "models",
        [
            ("concatenate([h, skips.pop()], axis=-1), emb)", "concatenate([h, h], axis=-1), emb)"),
            ("h = next(blocks)(h, emb)", "h = next(blocks)(h, 0 * emb)"),
            ("self.attention(self.middle(h, emb))", "self.middle(h, emb)"),
            ("stride=2, **options", "stride=1, **options"),
        ],
    ),
    "models/layers": (
        "layers models",
        [
            ("gain = gain * (1 + scale)", "gain = gain * scale"),
            ("self.bias[...] * (1 + scale) + shift", "self.bias[...] * (1 + scale)"),
            ("self.norm2(h, scale, shift)", "self.norm2(h, shift, scale)"),
            ("return h + (x if self.skip", "return h - (x if self.skip"),
        ],
    ),
    "models/attention": (
        "layers dit",
        [
            ("logits, -jnp.inf)", "logits, 0.0)"),
            ("a * cos - b * sin", "a * cos + b * sin"),
            ("row[:, None] * frequencies, col", "col[:, None] * frequencies, col"),
            ("q / np.sqrt(q.shape[-1])", "q"),
        ],
    ),
    "models/patches": (
        "models",
        [
            ("h = h * (1 + scale) + shift", "h = tokens * (1 + scale) + shift"),
            (
                "np.repeat(sinusoids(rows, dim // 2), cols, axis=0)",
                "np.tile(sinusoids(rows, dim // 2), (cols, 1))",
            ),
        ],
    ),
    "models/blocks": (
        "models dit",
        [
            ("x = x + gate_a * self.out", "x = x + self.out"),
            ("(1 + scale_m) + shift_m", "(1 + gate_m) + shift_m"),
            ("scale_m) + shift_m", "scale_m)"),
            ("q, k = rotate(q, angles), rotate(k, angles)", "q = rotate(q, angles)"),
            ("self.cross(layer_norm(x), context, mask)", "self.cross(x, context, mask)"),
            ("self.cross(layer_norm(x), context, mask)", "self.cross(layer_norm(x), context)"),
            ('"zero": captioned}', '"zero": False}'),
        ],
    ),
    "models/dit": (
        "models dit",
        [
            ("skips = outputs[: self.skipping][::-1]", "skips = outputs[: self.skipping]"),
            ("depth - self.skipping, rngs", "depth, rngs"),
        ],
    ),
    "models/mmdit": (
        "mmdit",
        [
            ("ids < self.null_label]", "ids <= self.null_label]"),
            ("context + places.astype(context.dtype)", "context"),
            ("self.context.finish(c, mixed[:, patches:], six_c)", "c"),
            ("k_c = self.k_norm(k_c)", "pass"),
        ],
    ),
    "models/counting": (
        "counting",
        [
            ("summed = math.prod(", "summed = max("),
            ("* tokens * 2 * w**2", "* patches * 2 * w**2"),
            ("attentions = depth * (2 if crossing else 1)", "attentions = depth"),
        ],
    ),
    "training/update": (
        "training",
        [
            ("(1 + step) / (10 + step)", "(1 + step) / (1 + step)"),
            ("e + (1 - decay) * (p - e)", "e + decay * (p - e)"),
            ("key = jax.random.fold_in(key, state.step)", "key = key"),
            ("& ~state.failed", ""),
        ],
    ),
}


def outcome(copy: Path, tests: str) -> str:
    """The first test that fails in the copy, or SURVIVED."""
    files = [f"tests/test_{name}.py" for name in tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    run = subprocess.run(
        [*command, *files], cwd=copy, env=environment, capture_output=True, text=True
    )
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].partition(" - ")[0] if failed and run.returncode else "SURVIVED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(MUTANTS)}")
    wanted = parser.parse_args().files or list(MUTANTS)
    if unknown := set(wanted) - set(MUTANTS):
        parser.error(f"FILE must be one of {', '.join(MUTANTS)}, got {', '.join(unknown)}")
    survived = total = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "course"
        ignore = shutil.ignore_patterns(".*", "__pycache__", "runs")
        shutil.copytree(COURSE, copy, ignore=ignore)
        for name in wanted:
            tests, pairs = MUTANTS[name]
            file = copy / "diffusion_course" / f"{name}.py"
            right = file.read_text(encoding="utf-8")
            for old, new in pairs:
                if old not in right:
                    raise SystemExit(f"{name}.py no longer holds {old!r}; change the mutant")
                file.write_text(right.replace(old, new), encoding="utf-8")
                found = outcome(copy, tests)
                print(f"{name:<18} {new[:46]:<48} {found}", flush=True)
                survived, total = survived + (found == "SURVIVED"), total + 1
            file.write_text(right, encoding="utf-8")
    print(f"{total - survived} of {total} caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
