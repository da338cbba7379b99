"""`treat` calls right cures of the clinic's patients healthy, and wrong ones not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffusion_course import data, diagnose, process, samplers, sampling, weights
from diffusion_course.diagnosis import CHECKS, Case, cures, patients
from diffusion_course.models.mlp import MLP

P, TOY = process.vp_cosine(), weights.load("toy2d")
POINTS = data.load("toy2d", kind="mixture", n=2000)
CHECK = {check.name: check.ask for check in CHECKS}


def measures_of(name, change):
    argument, measure = cures.CURES[name]
    return measure(patients.PATIENTS[name].make() | {argument: change})


def is_right(name, change):
    """By the bed's own measures; `diagnose` is asked about a cure of each bed in the clinic."""
    missing = [measure.text for measure in measures_of(name, change) if not measure.well]
    assert not missing, missing


def is_wrong(name, change):
    if not all(measure.well for measure in measures_of(name, change)):
        return
    argument = cures.CURES[name][0]
    report = diagnose(**(patients.PATIENTS[name].make() | {argument: change}))
    assert report.names, f"{name} is called healthy"


# --------------------------------------------------- beds 1 and 4: a clock, and a process


class Retold(nnx.Module):
    """A network that is told tell(t) in the place of t."""

    def __init__(self, tell):
        self.model, self.tell, self.null_label = TOY.model, tell, TOY.model.null_label

    def __call__(self, x, t, cond=None):
        return self.model(x, self.tell(t), cond)


def step(t):
    return (t * 1000).astype(int)


CLOCKS = {
    "step / 1000": lambda t: step(t) / 1000,
    "t itself": lambda t: t,
    "rounded": lambda t: jnp.round(1000 * t) / 1000,
    "step / 999": lambda t: step(t) / 999,
}
WRONG_CLOCKS = {
    "step % 1000 / 1000": lambda t: step(t) % 1000 / 1000,  # 0 at t = 1
    "the step itself": lambda t: 1.0 * step(t),
    "1 - t": lambda t: 1 - t,
    "another range": lambda t: step(t) / 1024,
    "tenths": lambda t: jnp.floor(10 * t) / 10,
    "an end at .9": lambda t: jnp.minimum(t, 0.9),
    "squared": lambda t: t**2,
}


@pytest.mark.parametrize("name", CLOCKS)
def test_the_time_that_is_told_is_a_cure(name):
    is_right("dead time embedding", Retold(CLOCKS[name]))


@pytest.mark.parametrize("name", WRONG_CLOCKS)
def test_another_time_is_no_cure(name):
    is_wrong("dead time embedding", Retold(WRONG_CLOCKS[name]))


@pytest.mark.parametrize("p", [P, process.from_betas(process.cosine_betas(200))])
def test_the_process_of_the_training_is_a_cure(p):
    is_right("schedule mismatch", p)


WRONG_PROCESSES = {
    "rectified_flow": process.rectified_flow(),
    "vp_linear": process.vp_linear(),
    "sub_vp": process.sub_vp(),
    "200 linear betas": process.from_betas(process.linear_betas(200)),
    "edm": process.edm(),
}


@pytest.mark.parametrize("name", WRONG_PROCESSES)
def test_another_process_is_no_cure(name):
    is_wrong("schedule mismatch", WRONG_PROCESSES[name])


def test_diagnose_finds_a_process_with_the_same_noise_and_another_size():
    ask = lambda p: CHECK["schedule"](Case(TOY.model, p, "v", POINTS))  # noqa: E731
    (finding,) = ask(process.rectified_flow()).findings
    assert finding.name == "schedule mismatch"
    assert "process.vp_cosine()" in finding.cure
    healthy = ask(P)
    assert healthy.findings == ()
    assert "as states of process.vp_cosine()" in healthy.measured


# ----------------------------------------------------------------------- bed 7: a training


def descent(rate=0.1, loss=patients.toy_loss, printed=lambda loss: loss):
    @nnx.jit
    def step(model, x, labels, key):
        value, grads = nnx.value_and_grad(lambda m: loss(m, x, labels, key))(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda a, g: a - rate * g, params, grads))
        return printed(value)

    return step


def by_optax(optimizer):
    @nnx.jit
    def step(model, x, labels, key):
        value, grads = nnx.value_and_grad(lambda m: patients.toy_loss(m, x, labels, key))(model)
        params = nnx.state(model, nnx.Param)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        nnx.update(model, optax.apply_updates(params, updates))
        return value

    return step


STEPS = {
    "rate .1": descent(),
    "rate .03": descent(0.03),
    "rate .2": descent(0.2),
    "optax": by_optax(optax.sgd(0.05)),
}
WRONG_STEPS = {
    "ascent": descent(-0.1),
    "rate 100": descent(100.0),
    "rate 1e-5": descent(1e-5),
    "the label is not told": descent(loss=lambda m, x, y, k: patients.toy_loss(m, x, 0 * y, k)),
    "another target": descent(loss=lambda m, x, y, k: jnp.mean(m(x, 0 * x[:, 0], y) ** 2)),
    "no loss is returned": descent(printed=lambda loss: 0 * loss),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_lowers_the_loss_is_a_cure(name):
    is_right("gradient of a constant", STEPS[name])


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_a_step_that_only_moves_parameters_is_no_cure(name):
    is_wrong("gradient of a constant", WRONG_STEPS[name])


# ------------------------------------------------------------ beds 12, 13 and 15: a setting


@pytest.mark.parametrize("w", [2.0])
def test_moderate_guidance_is_a_cure(w):
    is_right("guidance too strong", w)


@pytest.mark.parametrize("w", [0.3])
def test_guidance_without_the_condition_or_without_variety_is_no_cure(w):
    is_wrong("guidance too strong", w)


SAMPLERS = {
    "ddpm": samplers.ddpm(P),
    "ddim": samplers.ddim(P),
}
WRONG_SAMPLERS = {
    "temperature 1.1": samplers.ddpm(P, temperature=1.1),
    "another process": samplers.ddpm(process.rectified_flow()),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_that_keeps_exact_data_is_a_cure(name):
    is_right("temperature as a cure", SAMPLERS[name])


@pytest.mark.parametrize("name", WRONG_SAMPLERS)
def test_a_sampler_with_a_little_too_much_noise_is_no_cure(name):
    is_wrong("temperature as a cure", WRONG_SAMPLERS[name])


GRIDS = {
    "25 steps": sampling.uniform(25),
    "quadratic": sampling.quadratic(25),
}
WRONG_GRIDS = {
    "a start at .9": np.linspace(0.9, 0, 26),
    "a start at .98": np.linspace(0.98, 0, 26),
    "one step": np.array([1.0, 0.0]),
    "two steps": np.array([1.0, 0.5, 0.0]),
    "an end at .04": np.linspace(1, 0.04, 25),
    "a hole": np.array([1.0, 0.99, 0.98, 0.0]),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_from_noise_to_data_is_a_cure(name):
    is_right("noise left", GRIDS[name])


@pytest.mark.parametrize("name", WRONG_GRIDS)
def test_a_grid_that_begins_late_or_has_too_few_steps_is_no_cure(name):
    is_wrong("noise left", WRONG_GRIDS[name])


# ------------------------------------------------------------- beds 17 and 18: time, memory


def generator(steps=10, solver=samplers.ddim):
    run = sampling.generator(P, "v", solver(P), sampling.uniform(steps), (2,))
    return lambda model, key, n, labels: run(model, key, n, labels)


_ten, _two = generator(), generator(2)
FUNCTIONS = {
    "ten steps": _ten,
    "the library's": patients.generate,
    "heun": generator(solver=samplers.heun),
}
WRONG_FUNCTIONS = {
    "its own network": lambda model, key, n, labels: _ten(TOY.model, key, n, labels),
    "its own labels": lambda model, key, n, labels: _ten(model, key, n, 0 * labels),
    "its own key": lambda model, key, n, labels: _ten(model, jax.random.key(0), n, labels),
    "two steps": _two,
    "noise": lambda model, key, n, labels: jax.random.normal(key, (n, 2)),
    "the data": lambda model, key, n, labels: jnp.asarray(Case(TOY.model, P, "v", POINTS).x0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_compiled_once_and_samples_is_a_cure(name):
    is_right("slow", FUNCTIONS[name])


@pytest.mark.parametrize("name", WRONG_FUNCTIONS)
def test_a_function_that_does_not_use_what_it_is_given_is_no_cure(name):
    is_wrong("slow", WRONG_FUNCTIONS[name])


@pytest.mark.parametrize("n", [2**19, 600_000])
def test_a_batch_of_which_two_do_not_fit_is_a_cure(n):
    is_right("out of memory", n)


@pytest.mark.parametrize("n", [1, 2**15, 2**18])
def test_a_batch_that_is_far_too_small_or_does_not_fit_is_no_cure(n):
    is_wrong("out of memory", n)


# ---------------------------------------------------------------------------------- treat


def test_treat_says_what_is_missing_though_nothing_was_found(capsys):
    late = cures.treat("noise left", times=np.linspace(0.9, 0, 26))
    assert late.report.names == ()
    assert not late.cured
    assert capsys.readouterr().out.startswith("noise left: not cured yet, the grid begins at t = ")
    assert cures.treat("noise left", times=sampling.uniform(25)).cured
    assert capsys.readouterr().out.startswith("noise left: healthy, ")


def test_treat_asks_diagnose_first(capsys):
    treatment = cures.treat("noise left", times=sampling.uniform(25)[:-1])
    assert (treatment.missing, treatment.measures) == (("noise left",), ())
    assert capsys.readouterr().out == "noise left: not cured yet, noise left\n"


def test_treat_waits_for_a_cure(capsys):
    assert cures.treat("noise left", times=None) is None
    assert capsys.readouterr().out == "noise left: not cured yet\n"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bed 1", {"w": 2.0}, "name must be one of dead time embedding, "),
        ("noise left", {}, 'changes for "noise left" must be times=…, got nothing'),
        ("noise left", {"w": 2.0}, 'changes for "noise left" must be times=…, got w'),
        ("out of memory", {"memory": 1e12}, "must be batch_size=…, got memory"),
    ],
)
def test_a_bad_argument_of_treat_is_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        cures.treat(name, **changes)


def test_every_patient_with_a_cure_has_a_limit_that_an_untrained_network_misses():
    untrained = MLP(num_classes=3, rngs=nnx.Rngs(0))
    assert not all(m.well for m in measures_of("dead time embedding", untrained))
