"""`diagnose` finds each fault of its patients by the right name, and nothing on healthy models."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import diffusion_course
from diffusion_course import data, denoiser, diagnose, losses, process, samplers, sampling, weights
from diffusion_course.diagnosis import CHECKS, Case, of_samples, of_training, patients, report
from diffusion_course.models.control import ControlNet, edges
from diffusion_course.weights import card

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
POINTS = data.load("toy2d", kind="mixture", n=2000)
TOY = weights.load("toy2d")
P = process.vp_cosine()


@cache
def of_healthy_points():
    return of_points()


def of_points(**changes):
    healthy = {"model": TOY.model, "process": P, "kind": "v", "data": POINTS}
    return diagnose(**(healthy | changes))


# ------------------------------------------------------------------------------- patients


RECORD = json.loads((RESULTS / "diagnosis.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [n for n in patients.PATIENTS if n not in RECORD["patients"]])
def test_a_patient_has_its_finding_and_no_other(name):
    patient = patients.PATIENTS[name]
    found = diagnose(**patient.make())
    if patient.finding in {note.name for note in found.notes}:
        assert found.names == ()
    else:
        assert found.names == (patient.finding,), f"\n{found}"


def test_a_recorded_patient_had_its_finding_and_no_other():
    # Those that take longest: benchmarks/diagnosis.py asks about them.
    for name, row in RECORD["patients"].items():
        assert list(row["findings"]) == [patients.PATIENTS[name].finding]
        assert all(row["findings"].values())
        for other, digest in row["sha256"].items():
            assert weights.load(other).card.sha256 == digest


def test_signal_at_the_start_takes_the_dark_and_the_bright_pictures_away():
    # The deviation of the pictures' brightness; with 64 of them it is known to a tenth.
    for betas, least, most in (
        (process.linear_betas(200), 0.3, 0.7), (process.linear_betas(1000), 0.8, 1.2)
    ):  # fmt: skip
        case = Case(**patients.brightness(betas))
        ratio = case.drawn.mean((1, 2, 3)).std() / case.x.mean((1, 2, 3)).std()
        assert least < ratio < most


def test_the_patients_have_the_faults_of_the_fields_tables():
    made = {patient.finding for patient in patients.PATIENTS.values()}
    # The fourteen that the field's tables of trouble list, under the names that they have here.
    assert {
        "blur", "unstable training", "compiled again and again", "repetitive samples",
        "out of memory", "signal at the start", "control ignored", "NaN in the parameters",
        "plateau that is none", "guidance too strong", "condition ignored",
        "gradient of a constant", "too much noise in the sampler", "dead time embedding",
        "schedule mismatch",
    } <= made  # fmt: skip
    assert len(patients.PATIENTS) >= 28


# ------------------------------------------------------------------------- healthy models


def test_the_points_have_no_finding_with_all_that_can_be_checked():
    found = of_points(
        loss=patients.toy_loss,
        generate=patients.generate,
        history=np.linspace(2, 1, 400),
        batch_size=128,
        average=TOY.model,
    )
    assert found.names == (), f"\n{found}"
    assert set(found.unchecked) == {
        "pixels", "control", "step", "sampler", "colours", "sharpness"
    }  # fmt: skip


def test_the_digits_have_no_finding_with_moderate_guidance():
    released = weights.load("digits")
    found = diagnose(released.model, P, "v", data.load("digits"), w=2.0)
    assert found.names == (), f"\n{found}"
    assert {"sharpness", "colours", "variety", "copies"} <= set(found.measured)


def test_exact_denoisers_have_no_finding():
    for p in (process.rectified_flow(), process.edm(sigma_data=0.5)):
        gm = denoiser.gaussian_mixture(p, *data.toy2d.MIXTURE)
        found = diagnose(lambda x, t, _, gm=gm: gm.denoise(x, t), p, "x0", POINTS.x)
        assert found.names == (), f"\n{found}"


def test_no_released_model_had_a_finding_when_all_were_asked():
    # benchmarks/diagnosis.py asks them, with real images: too much for a test.
    rows = RECORD["models"]
    assert len(rows) == 12
    for name, row in rows.items():
        assert row["findings"] == [], name
        for other, digest in row["sha256"].items():
            # Other tests hold the files against their cards.
            assert card.load_card(weights.FOLDER / f"{other}.safetensors").sha256 == digest
        # A check that had not run would have found nothing either.
        assert {"finite", "time", "condition", "batch", "start", "samples"} <= set(row["measured"])
    assert "control" in rows["shapes_control"]["measured"]


def test_a_control_that_answers_is_not_ignored():
    digits = weights.load("digits")
    images = data.load("digits").x[:200]
    control = ControlNet(digits.model, rngs=nnx.Rngs(0))
    # Both ends start at zero: where the image comes in, and where it is added.
    control.first.kernel[...] = 0.1 * jnp.ones_like(control.first.kernel[...])
    for joint in control.joints:
        joint.kernel[...] = 0.02 * jnp.ones_like(joint.kernel[...])
    steer = lambda images: control.steer(digits.model, images)  # noqa: E731
    case = Case(digits.model, P, "v", images, control=(steer, edges(jnp.asarray(images))))
    assert CHECK["control"](case).findings == ()


SAMPLERS = {
    "ddpm": samplers.ddpm,
    "ddim": samplers.ddim,
    "ddim, eta 1": lambda p: samplers.ddim(p, eta=1.0),
    "heun": samplers.heun,
    "2M": samplers.dpm_solver_pp_2m,
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("p", "steps"), [(P, 7), (process.rectified_flow(), 50)])
def test_a_correct_sampler_keeps_exact_data(name, p, steps):
    case = Case(TOY.model, p, "v", POINTS, sampler=SAMPLERS[name](p), times=sampling.uniform(steps))
    assert of_samples.exact(case).findings == ()


# ------------------------------------------------------------ a network of one's own


class Plain(nnx.Module):
    def __init__(self, rngs, time=True):
        self.time = time
        self.first = nnx.Linear(3, 128, rngs=rngs)
        self.second = nnx.Linear(128, 128, rngs=rngs)
        self.last = nnx.Linear(128, 2, rngs=rngs)

    def __call__(self, x, t):
        t = t[:, None] if self.time else jnp.zeros((len(x), 1))
        h = nnx.silu(self.first(jnp.concatenate([x, t], axis=1)))
        return self.last(nnx.silu(self.second(h)))


def own_training(time=True):
    model = Plain(nnx.Rngs(0), time)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    def step(model, optimizer, x, key):
        def loss(model):
            return losses.diffusion_loss(lambda x, t, _: model(x, t), P, "v", x, None, key)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    graph, state = nnx.split((model, optimizer))

    @jax.jit
    def train(state, batches):
        def one(state, batch):
            pair = nnx.merge(graph, state)
            step(*pair, *batch)
            return nnx.state(pair), None

        return jax.lax.scan(one, state, batches)[0]

    x = POINTS.x[np.random.default_rng(0).integers(0, 2000, (600, 256))]
    nnx.update((model, optimizer), train(state, (x, jax.random.split(jax.random.key(0), 600))))
    step = nnx.jit(step)
    return model, lambda model, x, labels, key: step(model, optimizer, x, key)


def test_three_lines_are_enough_for_a_network_of_ones_own():
    model, step = own_training()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    found = diagnose(model, P, "v", POINTS.x, step=step)
    assert found.names == (), f"\n{found}"
    assert "step" in found.measured
    # The model is as it was, though three steps were made with it.
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, nnx.state(model))
    assert all(jax.tree.leaves(same))


def test_a_network_of_ones_own_that_forgot_the_time_is_found():
    model, _ = own_training(time=False)
    assert diagnose(model, P, "v", POINTS.x).names == ("dead time embedding",)


# ----------------------------------------------------------------------------- the report


def test_a_report_is_plain_and_says_what_it_did_not_check():
    text = str(of_points(times=sampling.uniform(25)[:-1]))
    assert text.startswith("1 finding, ")
    for part in ("noise left  (chapter 06)", "evidence", "cause", "cure", "Measured"):
        assert part in text
    assert 'may show "noise left" again: cure that first' in text
    assert "no loss: pass loss=f with f(model, x, labels, key) -> scalar" in text
    assert max(map(len, text.splitlines())) <= 96


def test_a_finding_comes_with_the_question_of_its_check():
    assert all(check.question.endswith("?") for check in CHECKS)
    found = of_points(times=sampling.uniform(25)[:-1])
    assert found.questions == {"noise left": "Does the grid of times end at the data?"}
    assert of_healthy_points().questions == {}


def test_every_check_is_in_the_report_once():
    found = of_healthy_points()
    names = [*found.measured, *found.unchecked]
    assert sorted(names) == sorted(check.name for check in CHECKS)


def test_a_check_names_only_checks_before_it():
    for i, check in enumerate(CHECKS):
        assert set(check.after) <= {earlier.name for earlier in CHECKS[:i]}, check.name


def test_the_name_is_there_without_an_import_of_the_package():
    assert diffusion_course.diagnose is diagnose
    with pytest.raises(AttributeError, match="has no attribute 'diagnosis_of'"):
        _ = diffusion_course.diagnosis_of


# ------------------------------- small patients, of the checks whose own take too long for a test

CHECK = {check.name: check.ask for check in CHECKS}


def test_samples_of_one_step_are_blurred_and_those_of_many_are_not():
    # White noise as images: one step gives their mean, whatever the step.
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 1)).astype(np.float32)
    gm = denoiser.gaussian_mixture(P, np.zeros((1, 64)), [1.0], [1.0])
    model = lambda x, t: gm.denoise(x.reshape(-1, 64), t).reshape(x.shape)  # noqa: E731
    (finding,) = CHECK["sharpness"](Case(model, P, "x0", x, times=[1.0, 0.0])).findings
    assert finding.name == "blur"
    assert "too few steps" in finding.cause
    assert CHECK["sharpness"](Case(model, P, "x0", x, times=sampling.uniform(50))).findings == ()
    # Your own samples may have too few steps behind them, or too small a network: nobody knows.
    smooth = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, (1, 1), (1, 2))) / 4
    (finding,) = CHECK["sharpness"](Case(model, P, "x0", x, samples=smooth)).findings
    assert "too few steps" not in finding.cause


def test_guidance_is_too_strong_only_where_a_scale_of_one_is_not_out_of_range():
    ask = lambda **more: CHECK["samples"](Case(TOY.model, P, "v", POINTS, **more)).findings  # noqa: E731
    assert [f.name for f in ask(w=15.0)] == ["guidance too strong"]
    assert ask() == ()
    far = 3 * POINTS.x[:64]
    assert [f.name for f in ask(w=15.0, samples=far)] == ["samples out of range"]


def test_a_control_that_no_output_depends_on_is_ignored():
    def steer(strength, images):
        push = strength * images.mean(axis=(1, 2))
        return lambda x, t, cond: TOY.model(x, t, cond) + push

    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    for strength, names in ((0.0, ["control ignored"]), (1.0, [])):
        control = (partial(steer, strength), images)
        found = CHECK["control"](Case(TOY.model, P, "v", POINTS, control=control))
        assert [f.name for f in found.findings] == names


# --------------------------------------------------------------------------- its limits


def test_a_loss_history_is_judged_by_its_ends_and_its_spikes():
    rng = np.random.default_rng(0)
    falling = np.linspace(2, 1, 400) * rng.lognormal(0, 0.3, 400)
    ask = lambda history: of_training.history(Case(TOY.model, P, "v", POINTS, history=history))  # noqa: E731
    assert ask(falling).findings == ()
    risen = np.concatenate([falling, falling[-100:] * 3])
    assert [f.name for f in ask(risen).findings] == ["unstable training"]
    spiky = falling.copy()
    spiky[[50, 150, 250]] = 40
    assert [f.name for f in ask(spiky).findings] == ["unstable training"]
    spiky[7] = np.nan
    assert [f.name for f in ask(spiky).findings] == ["NaN in training"]


def test_memory_is_linear_in_the_batch_and_the_batch_that_fits_does():
    def ask(n):
        return of_training.memory(
            Case(TOY.model, P, "v", POINTS, batch_size=n, memory=1e8, loss=patients.toy_loss)
        )

    (finding,) = ask(2**17).findings
    fits = int(finding.cure.split("a batch of ")[1].split(";")[0].replace(",", ""))
    assert ask(int(0.95 * fits)).findings == ()
    assert ask(int(1.05 * fits)).findings != ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "model must be callable"),
        ({"model": None}, "model must be callable"),
        ({"model": Plain}, "model must be callable"),  # the class
        ({"process": "cosine"}, "process must be a Process"),
        ({"process": None}, "process must be a Process"),
        ({"kind": "noise"}, "kind must be one of x0, eps"),
        ({"data": POINTS.x[:5]}, "N >= 8"),
        ({"data": (POINTS.x, POINTS.labels[:7])}, "data must hold 2000 labels"),
        ({"data": POINTS.x * np.nan}, "data must be finite"),
        ({"data": POINTS.x, "w": 2.0}, "w must be 1 without labels"),
        ({"sampler": "ddim"}, "sampler must be a Sampler"),
        ({"times": [0.0, 1.0]}, "times must fall strictly"),
        ({"samples": np.zeros((4, 3), np.float32)}, "samples must have shape"),
        ({"batch_size": 0}, "batch_size must be a whole number at least 1"),
        ({"history": [1.0]}, "history must hold at least 100"),
        ({"loss": 3}, "loss must be a function"),
        ({"control": 3}, "control must be a pair"),
        ({"average": 3}, "average must be callable"),
        ({"kind": None}, "kind must be one of x0, eps"),
        ({"data": None}, "data must"),
        ({"data": [POINTS.x, POINTS.labels]}, r"data must be a tuple \(x, labels\)"),
        ({"data": (POINTS.x, POINTS.labels / 2)}, "data must hold labels that are whole numbers"),
        ({"data": (POINTS.x, 3)}, "data must hold 2000 labels"),
        ({"null": "none"}, "null must be one label"),
        ({"null": [1, 2]}, "null must be one label"),
        ({"memory": "8 GB"}, "memory must be"),
        ({"memory": 0}, "memory must be"),
        ({"sampler": samplers.ddim}, "sampler must be a Sampler"),  # not called
        ({"loss": lambda model, x: 0.0}, r"loss must be a function f\(model, x, labels, key\)"),
        ({"step": lambda batch: 0.0}, r"step must be a function f\(model, x, labels, key\)"),
        ({"generate": lambda n: n}, r"generate must be a function f\(model, key, n, labels\)"),
    ],
)
def test_a_bad_argument_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        of_points(**changes)


def of_one_check(name, **changes):
    healthy = {"model": TOY.model, "process": P, "kind": "v", "data": POINTS}
    return CHECK[name](Case(**(healthy | changes)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "model must be callable .* got None"),
        ((TOY.model,), "process must be a Process .* got None$"),
        ((TOY.model, "v", POINTS), r"process must .* got 'v'; the order is diagnose\(model, proc"),
        ((TOY.model, P), "kind must be one of x0, .*, got None; the order is"),
        ((TOY.model, P, POINTS), "kind must be one of x0, .*, got Dataset; the order is"),
        ((TOY.model, P, "v"), "data must be what it was trained on"),
        ((P, "v", POINTS), "model must be callable .* got Process$"),
    ],
)
def test_a_forgotten_argument_is_named(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        diagnose(*given)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("check", "changes", "message"),
    [
        # Data of another shape than the model's, and a model that jax.jit can't follow.
        ("finite", {"data": np.zeros((9, 5), np.float32)}, r"model must take .* x \[64, 5\]"),
        ("finite", {"model": lambda x: x}, "model must take .* got TypeError"),
        ("finite", {"model": lambda x, t: np.asarray(x)}, "model must take .* inside jax.jit"),
        ("finite", {"model": lambda x, t: x[:, :1]}, "the model's output must have the shape"),
        ("average", {"average": Plain(nnx.Rngs(0)).first}, "average must take"),
        ("gradient", {"loss": lambda m, x, labels, key: m(x, x[:, 0] * 0)}, "loss must return the"),
        ("step", {"step": lambda m, x, labels, key: None}, "step must return the loss"),
        ("compiled", {"generate": lambda m, key, n, labels: POINTS.x[:3]}, "generate must return"),
        (
            "control",
            {"control": (lambda images: images, np.zeros((64, 2)))},
            r"control must hold steer\(images\) -> model",
        ),
    ],
)
def test_a_fault_that_shows_at_the_first_call_is_named(check, changes, message):
    with pytest.raises(ValueError, match=message):
        of_one_check(check, **changes)


def test_a_finding_is_wrapped_to_its_width():
    finding = report.Finding("name", "a " * 90, "b", "c", "04")
    assert max(map(len, str(finding).splitlines())) <= 96
