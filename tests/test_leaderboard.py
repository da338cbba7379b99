"""The capstone's harness: it keeps the network, counts, and nothing that a cheat knows helps it."""

import csv
import io
import itertools
import shutil
import subprocess
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest

from diffusion_course import denoiser, samplers, sampling
from diffusion_course.app import cli
from diffusion_course.data import digits
from diffusion_course.evaluation.intervals import Interval
from diffusion_course.grading import sandbox, walls, wire
from diffusion_course.leaderboard import baselines, board, cheats, game, match, playing, scores
from diffusion_course.leaderboard.game import PROCESS

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(3, 2, 3, 1)) * 0.4
SPREAD = 0.1


def exact(x, t, labels):
    """The exact denoiser of three Gaussians, one for each class, and of their mean without."""
    alpha, sigma = (
        np.asarray(level(t))[:, None, None, None] for level in (PROCESS.alpha, PROCESS.sigma)
    )
    mean = np.concatenate([MEANS, MEANS.mean(0, keepdims=True)])[labels]
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return mean + gain * (x - alpha * mean)


SMALL = game.Backbone(exact, (2, 3, 1), 3)


@pytest.fixture
def dealer():
    return game.Dealer(SMALL, "a secret", images=30)


# ------------------------------------------------------------------------------ the game


def test_rotations_are_orthogonal_and_of_uniform_law():
    q = game.rotations(np.random.default_rng(1), 4000, 3).astype(np.float64)
    np.testing.assert_allclose(
        q @ q.transpose(0, 2, 1), np.broadcast_to(np.eye(3), q.shape), atol=1e-6
    )
    # Haar: each entry has mean 0 and variance 1/3, fourth moment 3/(3·5). 4000 draws: the errors
    # are below .01, and a QR without its signs has diagonals of one sign.
    assert abs(q.mean(0)).max() < 4 * np.sqrt(1 / 3 / 4000)
    assert abs((q**2).mean(0) - 1 / 3).max() < 0.02 and abs((q**4).mean(0) - 1 / 5).max() < 0.02


def test_a_game_serves_the_denoiser_in_each_images_own_coordinates(dealer):
    new = dealer.game(2)
    deal, x = new.deal, RNG.normal(size=(5, 6)).astype(np.float32)
    images, t = np.array([3, 0, 29, 3, 7]), np.array([0.9, 0.5, 0.1, 0.3, 1.0], np.float32)
    for null in (False, True):
        found = dealer.game(2).denoise(x, t, images, null=null)
        for row, (image, at) in enumerate(zip(images, t, strict=True)):
            q = deal.rotations[image].astype(np.float64)
            label = [3] if null else deal.labels[[image]]
            there = exact((q.T @ x[row]).reshape(1, 2, 3, 1), np.array([at]), np.array(label))
            np.testing.assert_allclose(found[row], q @ there.reshape(6), atol=1e-5)
    assert (found != dealer.game(2).denoise(x, t, images)).any()


def test_what_comes_back_is_taken_to_pixels_and_clipped(dealer):
    new = dealer.game(1)
    wanted = RNG.normal(size=(30, 2, 3, 1)).astype(np.float32)
    y = np.einsum("nij,nj->ni", new.deal.rotations, wanted.reshape(30, 6))
    assert abs(wanted).max() > 1
    np.testing.assert_allclose(new.pixels(y), np.clip(wanted, -1, 1), atol=1e-5)


def test_every_row_is_an_evaluation_of_its_image(dealer):
    new = dealer.game(4)
    new.denoise(np.zeros((3, 6)), 0.5, np.array([2, 2, 5]))
    new.denoise(np.zeros((30, 6)), 0.5)
    new.denoise(np.zeros((1, 6)), 0.5, np.array([5]), null=True)
    assert new.counts[[2, 5, 0]].tolist() == [3, 3, 1] and new.counts.sum() == 3 + 30 + 1
    new.denoise(np.zeros((1, 6)), 0.5, np.array([2]))
    with pytest.raises(game.TooMany, match="5 evaluations of image 2 were asked for, and 4 are"):
        new.denoise(np.zeros((2, 6)), 0.5, np.array([2, 5]))
    with pytest.raises(game.TooMany):  # and from then on nothing counts
        new.denoise(np.zeros((1, 6)), 0.5, np.array([9]))
    with pytest.raises(game.TooMany):
        new.pixels(np.zeros((30, 6)))


@pytest.mark.parametrize(
    ("x", "t", "images", "says"),
    [
        (np.zeros((30, 5)), 0.5, None, r"x must have shape \[B, 6\], got \[30, 5\]"),
        (np.zeros((29, 6)), 0.5, None, "one for each of the 29 rows"),
        (np.full((30, 6), np.nan), 0.5, None, "x must be finite"),
        (np.zeros((30, 6)), 1.5, None, "t must be one time in"),
        (np.zeros((30, 6)), np.zeros(7), None, "t must be one time in"),
        (np.zeros((1, 6)), 0.5, np.array([30]), "images must lie in 0 … 29"),
        (np.zeros((1, 6)), 0.5, np.array([-1]), "images must lie in 0 … 29"),
        (np.zeros((1, 6)), 0.5, np.array([0.0]), "images must be whole numbers"),
        ("noise", 0.5, None, "x must hold numbers, got str"),
    ],
)
def test_a_wrong_question_is_told_and_costs_nothing(dealer, x, t, images, says):
    new = dealer.game(1)
    with pytest.raises(ValueError, match=says):
        new.denoise(x, t, images)
    assert new.counts.sum() == 0 and not new.refused


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap, lambda f: jax.grad(lambda x: f(x).sum())])
def test_nothing_hides_in_a_transformation(dealer, wrap):
    new = dealer.game(8)
    with pytest.raises(ValueError, match="traced array: denoise cannot be called inside jit"):
        wrap(lambda x: jnp.asarray(new.denoise(x, 0.5)))(jnp.zeros((30, 6)))
    assert new.counts.sum() == 0


def test_the_same_secret_deals_the_same_game_and_another_one_does_not():
    deals = [
        game.Dealer(SMALL, secret, 30).deal(n)
        for secret, n in (("a", 2), ("a", 2), ("b", 2), ("a", 4))
    ]
    for field in ("noise", "labels", "rotations"):
        first, same, *others = (getattr(deal, field) for deal in deals)
        assert np.array_equal(first, same) and not any(np.array_equal(first, o) for o in others)
    assert deals[0].seed == deals[1].seed != deals[2].seed
    assert np.bincount(deals[0].labels).tolist() == [10, 10, 10]


# ------------------------------------------------------------------------------ playing


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "UniPC", "Heun", "PNDM"])
def test_along_is_the_librarys_own_loop(dealer, name):
    made = {
        "DDIM": samplers.ddim,
        "DDPM": samplers.ddpm,
        "Heun": samplers.heun,
        "PNDM": samplers.pndm,
    }
    sampler = (made.get(name) or baselines.solvers.unipc)(PROCESS)
    gm = denoiser.gaussian_mixture(PROCESS, [[0.3, -0.2]], [0.4], [1.0])
    noise, times = RNG.normal(size=(4, 2)).astype(np.float32), sampling.uniform(4)
    calls = []

    def asked(x, t):
        calls.append(t)
        return np.asarray(gm.denoise(x, t))

    found = playing.along(sampler, asked, noise, times, seed=3)
    wanted, _ = sampling.sample(sampler, gm.denoise, jnp.asarray(noise), times, jax.random.key(3))
    np.testing.assert_allclose(found, wanted, atol=2e-5)  # other orders of float32 sums
    # From pure noise the first step is DDIM's, and so is the last.
    assert len(calls) == {"Heun": 6, "PNDM": 10}.get(name, 4)


def test_guidance_costs_two_evaluations_and_none_more(dealer):
    x, new = RNG.normal(size=(30, 6)), dealer.game(4)
    conditional, free = new.denoise(x, 0.7), new.denoise(x, 0.7, null=True)
    np.testing.assert_allclose(
        playing.guided(new.denoise, 3.0)(x, 0.7), free + 3 * (conditional - free), atol=1e-5
    )
    assert (new.counts == 4).all()
    for w, wanted in ((1, conditional), (0, free)):
        new = dealer.game(4)
        np.testing.assert_allclose(playing.guided(new.denoise, w)(x, 0.7), wanted, atol=1e-6)
        assert (new.counts == 1).all()


def test_baselines_stay_within_every_budget_and_play_well(dealer):
    for name in (
        "DDIM",
        "DDIM, guided (w = 1.5)",
        "flow matching's grid",
        "DDIM, with noise on top",
    ):
        for budget, p in match.here(baselines.BASELINES[name][1], dealer).items():
            assert (p.status, p.message) == ("played", "") and 0 < p.used <= budget
    # A Gaussian per class: DDIM lands on its mean, within its spread.
    p = match.here(baselines.BASELINES["DDIM"][1], dealer, [8])[8]
    error = p.pixels - np.clip(MEANS[dealer.deal(8).labels], -1, 1)
    assert np.sqrt((error**2).mean()) < 1.2 * SPREAD


def test_a_sampler_of_sums_does_not_notice_the_rotations():
    plain = game.Dealer(SMALL, "a secret", images=30)
    deal = plain.deal(4)
    unturned = game.Deal(
        4,
        deal.seed,
        np.einsum("nij,ni->nj", deal.rotations, deal.noise),
        deal.labels,
        np.broadcast_to(np.eye(6, dtype=np.float32), deal.rotations.shape),
    )
    found = []
    for each in (deal, unturned):
        new = game.Game(SMALL, each)
        found.append(new.pixels(baselines.BASELINES["DDIM"][1](new.denoise, each.noise, 4, 0)))
    np.testing.assert_allclose(*found, atol=1e-4)  # four steps of float32 rotations


# ------------------------------------------------------------------------------ cheats


@pytest.fixture(scope="module")
def against_digits():
    """Fréchet distances of honest baselines and of cheats, 300 images each."""
    dealer, judge = game.Dealer(game.digits(), "cheats", images=300), scores.judge()
    train = digits.load("train")
    honest, cheating = {}, {}
    for budget in (1, 4):
        new = dealer.game(budget)
        for name in ("DDIM", "DDIM, with noise on top"):
            p = match.here(baselines.BASELINES[name][1], dealer, [budget])[budget]
            honest[budget, name] = judge.score(p.pixels, new.deal.labels)
        for name, sample in cheats.all_of_them(new, dealer.backbone, train.x, train.labels).items():
            if budget == 4 and name in (
                "the weights, called directly",
                "memorised training images",
            ):
                continue
            p = match.here(sample, dealer, [budget])[budget]
            cheating[budget, name] = (
                p.status if p.pixels is None else judge.score(p.pixels, new.deal.labels)
            )
    return honest, cheating


def test_no_cheat_gains_anything_although_it_knows_weights_images_and_classes(against_digits):
    honest, cheating = against_digits
    assert len(cheating) == 8 + 6
    for (budget, name), result in cheating.items():
        if name in ("more evaluations than allowed", "evaluations of other images"):
            assert result == "refused"
            continue
        best = min(honest[budget, n].frechet.value for n in ("DDIM", "DDIM, with noise on top"))
        assert result.frechet.value > best + 0.3, (budget, name)  # 300 images: 95 % are ± .3 at 4


@pytest.mark.parametrize("name", ["the weights, called directly", "memorised training images"])
def test_images_in_the_wrong_coordinates_are_noise(against_digits, name):
    honest, cheating = against_digits
    # Chance is .1, 300 images: within .06 in all but 1 of 1,000 runs. Worse than one evaluation.
    assert cheating[1, name].accuracy.value < 0.17 and cheating[1, name].coverage.value < 0.15
    assert cheating[1, name].frechet.value > 2 * honest[1, "DDIM"].frechet.value


def test_a_real_image_that_came_through_would_be_called_a_copy():
    judge, train, test = scores.judge(), digits.load("train"), digits.load("test")
    assert judge.score(train.x[:200], train.labels[:200]).copies.value == 1
    # By definition one in a hundred of the unseen, 360: 3 or 4.
    assert judge.score(test.x, test.labels).copies.value == pytest.approx(0.01, abs=0.003)
    real = judge.score(test.x, test.labels)
    assert real.coverage.value == 1 and real.accuracy.value > 0.98
    swapped = judge.score(test.x, (test.labels + 1) % 10)
    assert swapped.accuracy.value < 0.02 and swapped.frechet == real.frechet


# ------------------------------------------------------------------------------ the sandbox

HONEST = """
import numpy as np
from diffusion_course.leaderboard.game import PROCESS as p
def sample(denoise, noise, evaluations, seed):
    x, times = noise, np.linspace(1, 0, evaluations + 1)
    for t, s in zip(times[:-1], times[1:]):
        x0 = denoise(x, t)
        eps = (x - float(p.alpha(t)) * x0) / float(p.sigma(t))
        x = float(p.alpha(s)) * x0 + float(p.sigma(s)) * eps
    return x
"""
# One submission, whose function tries another thing with each budget -> how the message begins.
TRIES = {
    "from diffusion_course import weights; weights.load('digits')": (
        "error: your code raised PermissionError"
    ),
    "from diffusion_course import weights; weights.load('digits_classifier')": (
        "error: your code raised PermissionError"
    ),
    "from diffusion_course.data import digits; digits.load()": (
        "error: your code raised PermissionError"
    ),
    "import jax; return jax.vmap(lambda x: denoise(x[None], 0.5)[0])(noise)": (
        "error: your code raised ValueError: x must hold numbers, got a traced array"
    ),
    "for n in range(9): hidden(denoise, noise)": "refused: 6 evaluations of image 0 were asked for",
    "return noise[:3]": "error: your code raised ValueError: sample must return numbers of",
    "return noise / 0": "error: the result must be finite",
    "import os, sys; os.write(int(sys.argv[1]), b'[1]\\n'); return noise": (
        "stopped: your code interfered with the game"
    ),
}
ALL_TRIES = """
def hidden(denoise, noise):
    try:
        denoise(noise, 0.5)
    except Exception:
        pass
def sample(denoise, noise, evaluations, seed):
""" + "\n".join(f"    if evaluations == {n}:\n        {t}" for n, t in enumerate(TRIES, start=1))
ALONE = {
    "no function": ("x = 1", "error: your cells define no function sample"),
    "dies": ("import os\nos._exit(0)", "stopped: your code ended the process"),
    "never ends": ("def sample(*a):\n while True: pass", "timeout: your notebook took longer than"),
}


needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here")


@needs_bubblewrap
def test_an_honest_notebook_plays_in_the_sandbox_as_it_does_here(dealer):
    limits = sandbox.Limits(seconds=60, notebook=60)
    found = match.in_sandbox([HONEST], dealer, limits, budgets=(1, 4))
    space = {}
    exec(HONEST, space)
    for budget, p in match.here(space["sample"], dealer, (1, 4)).items():
        assert (found[budget].status, found[budget].used) == ("played", budget)
        np.testing.assert_allclose(found[budget].pixels, p.pixels, atol=1e-6)


@needs_bubblewrap
def test_what_a_submission_must_not_do_is_named_and_gives_no_images(dealer):
    budgets = range(1, len(TRIES) + 1)
    limits = sandbox.Limits(seconds=60, notebook=60)
    found = match.in_sandbox([ALL_TRIES], dealer, limits, budgets=budgets)
    for (tried, says), p in zip(TRIES.items(), found.values(), strict=True):
        assert f"{p.status}: {p.message}".startswith(says), tried
        assert p.pixels is None


@needs_bubblewrap
@pytest.mark.parametrize("name", ALONE)
def test_a_submission_that_cannot_go_on_ends_alone(dealer, name):
    source, says = ALONE[name]
    limits = sandbox.Limits(seconds=60, notebook=5 if name == "never ends" else 60)
    found = match.in_sandbox([source], dealer, limits, budgets=(1, 2))
    assert all(f"{p.status}: {p.message}".startswith(says) for p in found.values())


# What a submission does with each budget, and what comes of it.
HOSTILE = {
    "numbers whose rotation would be infinity less infinity": (
        "return np.sign(noise) * 3e38",
        "error: the result must lie within ±1e+06",
    ),
    "a question that would overflow": (
        "return denoise(noise * 1e30, 0.5)",
        "error: your code raised ValueError: x must lie within ±1e+06",
    ),
    "no float32": ("return noise.astype(float) * 1e300", "error: the result must be finite"),
    "objects": (
        "return np.array([[object()] * 6] * 30, object)",
        "error: your code raised ValueError: sample must return numbers",
    ),
    "complex": (
        "return noise * 1j",
        "error: your code raised ValueError: sample must return numbers",
    ),
    "the harness in /proc": (
        "raise OSError(sorted(int(p) for p in os.listdir('/proc') if p.isdecimal()))",
        "error: your code raised OSError: [1, 2]",  # bubblewrap, and itself
    ),
    "the network in another format": (
        "import diffusion_course; folder = diffusion_course.__path__[0] + '/weights/'; "
        "open(folder + 'digits.onnx', 'rb')",
        "error: your code raised PermissionError",
    ),
    "what another submission has left": (
        "left = os.path.exists('/tmp/left'); open('/tmp/left', 'w'); raise OSError(left)",
        "error: your code raised OSError: False",
    ),
    "much to be printed": ("[print('x' * 10**6) for _ in range(300)]; return noise", "played: "),
    "another's NumPy": (
        "import json; json.dumps = lambda *a: '{}'; np.asarray = list; return noise",
        "stopped: your code interfered with the game",
    ),
}
WHOLE = {  # notebooks of their own: what they do ends them
    "a child that speaks": (
        "def sample(denoise, noise, *a):\n if os.fork() == 0:\n"
        "  os.write(int(sys.argv[1]), b'{\"done\": 1}\\n'); os._exit(0)\n"
        " os.wait(); return noise",
        "stopped: your code interfered with the game",
    ),
    "a line without an end": (
        "def sample(*a):\n while True: os.write(int(sys.argv[1]), b'x' * 65536)",
        "stopped: your code returned too much",
    ),
    "an answer before the question": (
        'os.write(int(sys.argv[1]), b\'{"ready": 1}\\n{"done": 1}\\n\')\n'
        "def sample(denoise, noise, *a): return noise",
        "stopped: your code interfered with the game",
    ),
}


@needs_bubblewrap
def test_what_a_hostile_submission_does_costs_itself(dealer):
    tries = "".join(
        f"    if evaluations == {n}: {code}\n" for n, (code, _) in enumerate(HOSTILE.values(), 1)
    )
    source = (
        f"import os\nimport numpy as np\ndef sample(denoise, noise, evaluations, seed):\n{tries}"
    )
    limits, budgets = sandbox.Limits(seconds=60, notebook=60), range(1, len(HOSTILE) + 1)
    for _ in range(2):  # the second one finds nothing of the first
        found = match.in_sandbox([source], dealer, limits, budgets=budgets)
        for (tried, (_, says)), p in zip(HOSTILE.items(), found.values(), strict=True):
            assert f"{p.status}: {p.message}".startswith(says), tried
            assert p.pixels is None or np.isfinite(p.pixels).all()


@needs_bubblewrap
@pytest.mark.parametrize("name", WHOLE)
def test_who_lies_to_the_harness_is_stopped(dealer, name):
    source, says = WHOLE[name]
    found = match.in_sandbox(
        [f"import os, sys\n{source}"], dealer, sandbox.Limits(seconds=60, notebook=60), budgets=(1,)
    )
    assert f"{found[1].status}: {found[1].message}".startswith(says)


class Script:
    """A conversation whose answers are written in advance; it notes which time is excused."""

    def __init__(self, *messages):
        self.messages, self.shares = list(messages), []

    def write(self, message):
        pass

    def read(self):
        return self.messages.pop(0)

    def excuse(self, seconds, share):
        self.shares.append(share)


def test_the_networks_time_is_free_but_not_for_rows_left_empty(dealer):
    def asked(rows, t=0.5):
        parts = (np.zeros((len(rows), 6)), np.array(t), np.array(rows))
        return {"ask": [wire.pack(part) for part in parts]}

    end = {"done": wire.pack(np.zeros((30, 6)))}
    script = Script(asked(range(30)), asked([0, 1, 2]), asked([0], t=7), asked([0] * 9), end)
    backbone = SMALL._replace(together=500)  # more than there are images
    new = game.Dealer(backbone, "a secret", images=30).game(2)
    assert match._play(script, new).status == "refused"
    # The whole batch, 3 of 30 rows, a question that is wrong, and one that is too much.
    assert script.shares == [1, 0.1, 0, 0]
    wide = game.Dealer(SMALL._replace(together=8), "a secret", images=30).game(2)
    assert [wide.share(rows) for rows in (0, 4, 8, 9, 16)] == [0, 0.5, 1, 9 / 16, 1]


def test_a_submissions_clock_runs_but_for_what_is_excused():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        talk = match._Talk(process, process.stdout.fileno(), sandbox.Limits(notebook=1))
        begin = time.monotonic()
        talk.write({"a": 1})
        assert talk.read() == {"a": 1}
        left = talk._left
        assert sandbox.START_SECONDS - (time.monotonic() - begin) - 0.1 < left
        talk.excuse(50.0, 1.0)
        talk._wait([], [])
        assert left + 49 - (time.monotonic() - begin) < talk._left
        talk.excuse(2 * sandbox.START_SECONDS, 0.0)  # nothing of it: it has to have been waited for
        talk._left = 0.0
        with pytest.raises(match._Ended) as ended:
            talk._wait([], [])
        assert "calls of denoise with few rows" in ended.value.args[1]


def test_a_large_question_is_answered_in_pieces(dealer, monkeypatch):
    x, images = RNG.normal(size=(60, 6)), np.repeat(np.arange(30), 2)
    t = RNG.uniform(size=60)
    whole = dealer.game(2).denoise(x, t, images)
    monkeypatch.setattr(game, "_PIECE", 7)
    np.testing.assert_allclose(dealer.game(2).denoise(x, t, images), whole, atol=1e-6)


def test_everything_that_could_be_stolen_is_hidden():
    names = {path.name for path in match.hidden()}
    assert {
        "digits.safetensors",
        "digits.onnx",
        "digits_classifier.safetensors",
        "digits.features.safetensors",
    } <= names
    assert any(name.startswith("digits.csv") for name in names)
    assert all(walls.shows(path) for path in match.hidden())  # or hiding it would mean nothing


# ------------------------------------------------------------------------------ the board


def interval(value, half=0.1):
    return Interval(value, value - half, value + half)


def row(name, frechet, chapter="", evaluations=2, half=0.1):
    if frechet is None:
        return board.Row(name, chapter, evaluations, 3, "refused", "<b>too many</b>")
    score = scores.Score(interval(0.9), interval(frechet, half), interval(0.8), interval(0.01))
    return board.Row(name, chapter, evaluations, 2, "played", "", score, np.zeros((3, 2, 3, 1)))


def test_the_best_comes_first_and_who_has_no_score_last():
    rows = [
        row("b", 2.0),
        row("z", None),
        row("a", 1.0),
        row("c", 1.15),
        row("other", 0.1, evaluations=4),
    ]
    order = board.ranking(rows, 2)
    assert [r.name for r in order] == ["a", "c", "b", "z"]
    assert [board.tied(r, order[0]) for r in order[:3]] == [True, True, False]


def test_the_page_and_the_table_hold_every_row_and_no_code_of_anybody():
    rows = [row("=1+1", 2.0), row("<script>alert(1)</script>", None), row("DDIM", 1.0, "06")]
    text = board.page(rows, 500)
    assert "<script" not in text and "<b>too" not in text and "&lt;script&gt;" in text
    assert text.count("<tr") == 4 and "chapter 06" in text and "500 images" in text
    assert text.count("data:image/png;base64,") == 2
    table = list(csv.DictReader(io.StringIO(board.to_csv(rows))))
    assert [r["name"] for r in table] == ["DDIM", "'=1+1", "<script>alert(1)</script>"]
    assert (table[0]["frechet"], table[0]["frechet_low"], table[0]["copies"]) == (
        "1.0000",
        "0.9000",
        "0.0100",
    )
    assert table[2]["status"] == "refused" and table[2]["frechet"] == ""


HOSTILE_NAMES = (
    "<script>document.title = 'mine'</script>",
    "<img src=x onerror=\"document.title = 'mine'\">",
    "</table></div><h1>first",
    "' onmouseover='document.title = 1",
    "a" * 300,
    "日本語のチーム" * 12,
    "e" + "\u0301" * 60,  # accents in a pile
    "\u202etsrif",  # from right to left
    "two\nlines",
    "\ud800",
    " ",
)


@pytest.mark.parametrize("width", [380, 1280])
def test_forty_rows_with_hostile_names_can_be_read_on_a_telephone_and_on_a_desk(
    tmp_path, chromium, width
):
    rows = [row(name, 1 + 0.3 * i) for i, name in enumerate(HOSTILE_NAMES)]
    rows += [row(f"team {i}", 9 + 0.3 * i) for i in range(25)]
    rows += [row("DPM-Solver++(2M), log-SNR grid", 0.5, "11"), row("DDIM", 3.1, "06")]
    rows += [row("late", None), replace(row("long", None), message="y" * 400)]
    assert len(rows) == 40
    rows += [row("nobody", None, evaluations=4)]
    board.write(tmp_path / "board.csv", rows, 1000)
    board.write(tmp_path / "empty.csv", [], 1000)
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "board.html").as_uri())
    assert page.title() == "Leaderboard" and page.locator("h1").count() == 1
    assert page.locator("tr").count() == 2 + 40 + 1 and page.locator("script").count() == 0
    size = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert size[0] == size[1]  # the page itself does not scroll sideways, the table does
    table = page.locator("table").first
    names = table.locator("td.text").all_inner_texts()
    assert names[0].startswith("DPM-Solver") and "two lines" in names
    assert not any("\u202e" in name for name in names) and "(no name)" in names
    assert max(map(len, names[:38])) <= 80
    # A row ends where the next begins: nothing lies on top of another name.
    boxes = [name.bounding_box() for name in table.locator(".name").all()]
    for one, next_one in itertools.pairwise(boxes):
        assert one["y"] + one["height"] <= next_one["y"]
    edges = [c.bounding_box() for c in table.locator("tr").nth(1).locator("td").all()]
    last = 2 if width == 380 else len(edges) - 1  # name and distance; on a desk everything
    assert edges[last]["x"] + edges[last]["width"] <= width
    page.locator(".scroll").first.evaluate("box => box.scrollLeft = 1000")
    assert table.locator("td.text").first.bounding_box()["x"] >= 0  # the name has stayed
    page.goto((tmp_path / "empty.html").as_uri())
    assert "Nobody has played yet." in page.inner_text("body")
    page.close()


def notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(made, path)


@needs_bubblewrap
def test_the_command_writes_one_page_of_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(baselines, "BASELINES", {"DDIM": baselines.BASELINES["DDIM"]})
    monkeypatch.setattr(board, "BASELINES", baselines.BASELINES)
    notebook(tmp_path / "subs" / "ada" / "26.ipynb", HONEST)
    eve = "import numpy as np\ndef sample(d, noise, *a): return np.sign(noise) * 3e38"
    notebook(tmp_path / "subs" / "eve" / "26.ipynb", eve)
    (tmp_path / "subs" / "ben.txt").write_text("my sampler")
    out = tmp_path / "board.csv"
    arguments = [
        "leaderboard",
        str(tmp_path / "subs"),
        "--out",
        str(out),
        "--seed",
        "a secret of many letters",
        "--images",
        "100",
    ]
    assert cli.main(arguments) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    rows = {(r["name"], r["evaluations"]): r for r in csv.DictReader(io.StringIO(out.read_text()))}
    assert len(rows) == 4 * 4
    for budget in "1248":
        ada, ddim = rows["ada", budget], rows["DDIM", budget]
        assert ada["status"] == "played" and ada["used"] == budget
        assert float(ada["frechet"]) == pytest.approx(
            float(ddim["frechet"]), abs=2e-3
        )  # it is DDIM
        assert rows["ben", budget]["status"] == "unreadable"
        assert rows["eve", budget]["status"] == "error"  # and nobody else's row is lost by it
    assert out.with_suffix(".html").read_text().count("<h2>") == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"folder": "nowhere"}, "is not a folder"),
        ({"--out": "board.txt"}, "give a name that ends in .csv"),
        ({"--out": "subs/board.csv"}, "lies with the submissions"),
        ({"--seed": "2026"}, "at least 16 characters, got 4: a submission can try short ones"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, change, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "subs").mkdir()
    options = {"folder": "subs", "--out": "board.csv"} | change
    folder = options.pop("folder")
    assert cli.main(["leaderboard", folder, *(w for pair in options.items() for w in pair)]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.parametrize("images", ["10", "x", "100000"])
def test_a_number_of_images_has_bounds(images, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["leaderboard", ".", "--images", images])
    assert left.value.code == 2 and "from 100 to 5000" in capsys.readouterr().err
