"""Images and captions in one space, and the classifier that answers several questions."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, normals, parameters, shape_of

from diffusion_course.models.classifier import AttributeClassifier, Classifier, attribute_loss
from diffusion_course.models.contrastive import Contrastive, info_nce, normalise

rng = np.random.default_rng(18)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


array = normals(rng)


X = array(5, 8, 12, 2)
CAPTIONS = np.array([[0, 3, 6], [2, 6, 6], [6, 6, 6], [5, 1, 4], [0, 3, 6]])


@cache
def pair():
    make = lambda: Contrastive(  # noqa: E731
        (8, 12), 2, num_words=6, dim=7, width=8, text_width=16, rngs=nnx.Rngs(0)
    )
    return drawn(make, seed=3)


@jax.jit
def parts(model, x, captions):
    return model.images(x), model.captions(captions), model.score(x, captions), model(x, captions)


def test_embeddings_have_length_one_and_a_score_is_their_cosine():
    images, captions, score, logits = (
        np.asarray(a, np.float64) for a in parts(pair(), X, CAPTIONS)
    )
    assert images.shape == captions.shape == (5, 7)
    for vectors in (images, captions):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(score, (images * captions).sum(1), rtol=1e-4, atol=1e-5)
    scale = np.exp(float(pair().log_scale[...]))
    np.testing.assert_allclose(logits, scale * images @ captions.T, rtol=1e-4, atol=1e-5)
    assert np.abs(score).max() <= 1 + 1e-6 and np.ptp(score) > 1e-3
    # Rows are images, columns captions, each by itself.
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(
        parts(pair(), X[order], CAPTIONS)[3], logits[order], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(captions[0], captions[4], atol=1e-6)


def test_a_score_does_not_hang_on_how_large_the_towers_numbers_are():
    model = drawn(lambda: Contrastive((8, 12), 2, num_words=6, dim=7, width=8, text_width=16,
                                      rngs=nnx.Rngs(0)), seed=3)  # fmt: skip
    for layer in (model.project, model.image.last):
        layer.kernel[...], layer.bias[...] = 20 * layer.kernel[...], 20 * layer.bias[...]
    got, want = (parts(m, X, CAPTIONS)[2] for m in (model, pair()))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_scale_starts_at_one_over_seven_hundredths_and_ends_at_a_hundred():
    model = Contrastive(8, 1, num_words=3, dim=4, width=8, text_width=16, rngs=nnx.Rngs(0))
    assert float(model.scale()) == pytest.approx(1 / 0.07)
    model.log_scale[...] = jnp.asarray(9.0)
    assert float(model.scale()) == 100


def test_both_towers_and_the_temperature_learn():
    @jax.jit
    def gradient(model):
        return jax.grad(lambda model: info_nce(model(X, CAPTIONS), CAPTIONS))(model)

    dead = [path for path, g in parameters(gradient(pair())).items() if not np.abs(g).max() > 0]
    assert dead == []


def test_lengths_are_divided_out_and_nothing_stays_nothing():
    vectors = array(3, 5, std=20.0)
    want = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(normalise(vectors), want, rtol=1e-5)
    slope = jax.grad(lambda v: normalise(v).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(slope).all() and (normalise(jnp.zeros((2, 3))) == 0).all()


def test_the_loss_is_the_mean_of_two_cross_entropies():
    logits = array(4, 4, std=3.0).astype(np.float64)
    each = np.exp(logits)
    right = np.diagonal(each)
    rows, columns = -np.log(right / each.sum(1)).mean(), -np.log(right / each.sum(0)).mean()
    assert abs(rows - columns) > 0.05
    got = float(info_nce(jnp.asarray(logits, jnp.float32)))
    assert got == pytest.approx((rows + columns) / 2, rel=1e-5)
    for n in (1, 3):
        assert float(info_nce(jnp.full((n, n), 2.5))) == pytest.approx(np.log(n), abs=1e-6)
    # Far from 0 the exponentials would overflow.
    assert float(info_nce(jnp.asarray(logits, jnp.float32) + 500)) == pytest.approx(got, rel=1e-3)


def test_a_caption_that_reads_the_same_is_no_wrong_answer():
    logits = array(5, 5, std=3.0).astype(np.float64)
    each = np.exp(logits)
    each[0, 4] = each[4, 0] = 0  # captions 0 and 4 are equal
    right = np.diagonal(each)
    want = -(np.log(right / each.sum(1)) + np.log(right / each.sum(0))).mean() / 2
    got = float(info_nce(jnp.asarray(logits, jnp.float32), CAPTIONS))
    assert got == pytest.approx(want, rel=1e-5)
    same = jnp.zeros((3, 2), int)  # all alike: nothing can be wrong
    assert float(info_nce(jnp.asarray(logits[:3, :3], jnp.float32), same)) == pytest.approx(0)
    slope = jax.grad(lambda z: info_nce(z, CAPTIONS))(jnp.asarray(logits, jnp.float32))
    assert np.isfinite(slope).all() and slope[0, 4] == 0 and slope[0, 3] > 0


@pytest.mark.parametrize(
    ("logits", "captions", "message"),
    [
        (np.zeros((2, 3)), None, r"logits must have shape \[B, B\] with B >= 1, got \[2, 3\]"),
        (np.zeros(4), None, r"logits must have shape \[B, B\]"),
        (np.zeros((0, 0)), None, r"logits must have shape \[B, B\] with B >= 1, got \[0, 0\]"),
        (
            np.zeros((2, 2)),
            np.zeros((3, 4), int),
            r"captions must have shape \[2, L\], got \[3, 4\]",
        ),
        (np.zeros((2, 2)), np.zeros(2, int), r"captions must have shape \[2, L\], got \[2\]"),
    ],
)
def test_logits_that_are_no_pairs_are_refused(logits, captions, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        info_nce(logits, captions)


def test_another_number_of_captions_than_images_has_no_score():
    with pytest.raises(ValueError, match="captions must be one for each of the 5 images, got 3"):
        pair().score(X, CAPTIONS[:3])
    with pytest.raises(ValueError, match="dim must be a whole number at least 2, got 1"):
        shape_of(lambda: Contrastive(8, 1, num_words=3, dim=1, rngs=nnx.Rngs(0)))


# ------------------------------------------------------------------------------- several questions


@cache
def judge():
    return drawn(lambda: AttributeClassifier(2, (8, 12), answers=(3, 2, 4), width=8, features=6,
                                             rngs=nnx.Rngs(0)), seed=4)  # fmt: skip


def test_each_question_has_its_part_of_the_last_layer():
    features = judge().features(X)
    want = features @ judge().last.kernel[...] + judge().last.bias[...]
    got = judge()(X)
    assert [logits.shape for logits in got] == [(5, 3), (5, 2), (5, 4)]
    np.testing.assert_allclose(np.concatenate(got, axis=1), want, rtol=1e-5, atol=1e-5)
    answers = np.stack([want[:, :3].argmax(1), want[:, 3:5].argmax(1), want[:, 5:].argmax(1)], 1)
    np.testing.assert_array_equal(judge().judge(X), answers)
    assert isinstance(judge(), Classifier) and len(np.unique(answers)) > 1


def test_the_loss_of_several_questions_is_the_sum_of_their_cross_entropies():
    logits = [array(6, n, std=2.0) for n in (3, 2, 4)]
    answers = np.stack([rng.integers(0, n, 6) for n in (3, 2, 4)], axis=1)
    want = 0.0
    for k, z in enumerate(logits):
        each = np.exp(z.astype(np.float64))
        want -= np.log(each[np.arange(6), answers[:, k]] / each.sum(1)).mean()
    assert float(attribute_loss(logits, answers)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (np.zeros((6, 2), int), r"answers must be whole numbers of shape \[6, 3\]"),
        (np.zeros((6, 3)), r"answers must be whole numbers of shape \[6, 3\], got float64"),
        (np.full((6, 3), 2), "answers must be in 0 … 1, got 2 … 2"),
        (np.full((6, 3), 4), "answers must be in 0 … 3, got 4 … 4"),
    ],
)
def test_answers_that_nobody_can_give_are_refused(answers, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        attribute_loss([jnp.zeros((6, n)) for n in (3, 2, 4)], answers)


@pytest.mark.parametrize(
    ("answers", "message"),
    [((), "answers must hold a number"), (5, "answers must hold a number"),
     ((3, 1), "answers must be a whole number at least 2, got 1")],
)  # fmt: skip
def test_a_judge_without_questions_is_refused(answers, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        shape_of(lambda: AttributeClassifier(2, 8, answers=answers, rngs=nnx.Rngs(0)))
