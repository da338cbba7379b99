"""A control steers a U-Net that stays as it is; and what is measured of edges."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, normals, parameters, shaken, shape_of

from diffusion_course.data import shapes
from diffusion_course.models import control
from diffusion_course.models.control import ControlNet
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet

rng = np.random.default_rng(17)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


array = normals(rng)


def unet():
    return UNet(2, (16, 32), stem=2, num_classes=5, conditioning="cross-attention",
                rngs=nnx.Rngs(0))  # fmt: skip


X, T, IMAGE = array(3, 8, 12, 2), np.float32([0.2, 0.5, 0.8]), array(3, 8, 12, 3)
CAPTIONS = np.array([[0, 3, 5], [5, 5, 5], [2, 4, 1]])


@cache
def base():
    return drawn(unet, seed=3)


@cache
def fresh():
    """A control whose encoder is the base's, and whose other layers are zero."""
    return ControlNet(base(), 3, rngs=nnx.Rngs(1))


@jax.jit
def forward(model, base, image, strength):
    return model.steer(base, image, strength)(X, T, CAPTIONS)


def steered_by(model, image=IMAGE, strength=1.0):
    return np.asarray(forward(model, base(), image, strength))


@jax.jit
def gradient_of(model, base):
    def loss(model):
        return jnp.mean((model.steer(base, IMAGE)(X, T, CAPTIONS) - 1) ** 2)

    return jax.grad(loss)(model)


plain = jax.jit(lambda model: model(X, T, CAPTIONS))


def test_a_new_control_changes_nothing_bit_for_bit():
    want = np.asarray(plain(base()))
    for image, strength in ((IMAGE, 1.0), (0 * IMAGE, 1.0), (100 * IMAGE, -2.5)):
        np.testing.assert_array_equal(steered_by(fresh(), image, strength), want)
    assert np.abs(want).max() > 0.1


def test_the_controlling_image_comes_in_through_a_layer_of_zeros():
    # Behind joints that have moved, the copy sees at first what the base sees, and nothing more.
    model = ControlNet(base(), 3, rngs=nnx.Rngs(1))
    for joint in model.joints:
        joint.kernel[...] = jnp.full(joint.kernel[...].shape, 0.1)
    got = steered_by(model)
    np.testing.assert_array_equal(got, steered_by(model, 0 * IMAGE))
    assert np.abs(got - plain(base())).max() > 1e-2


def test_a_trained_control_is_heard_but_not_at_strength_zero():
    model = shaken(fresh(), seed=4)
    steered = steered_by(model)
    assert (np.abs(steered - plain(base())).reshape(3, -1).max(1) > 1e-2).all()
    np.testing.assert_array_equal(steered_by(model, strength=0.0), plain(base()))
    other = IMAGE.copy()
    other[1, 3, 5, 2] += 0.5
    changed = np.abs(steered_by(model, other) - steered).reshape(3, -1).max(1)
    assert changed[1] > 1e-4 and (changed[[0, 2]] == 0).all()


def test_the_copy_holds_the_bases_encoder_and_is_a_copy():
    own = {k.replace("['encoder']", ""): v for k, v in parameters(fresh()).items()
           if k.startswith("['encoder']")}  # fmt: skip
    theirs = parameters(base())
    way_up = {k for k in theirs if any(k.startswith(f"['{part}']") for part in control.WAY_UP)}
    assert set(own) == set(theirs) - way_up and len(way_up) > 10
    for path, value in own.items():
        np.testing.assert_array_equal(value, theirs[path])
    before = np.array(base().conv_in.bias[...])
    copy = ControlNet(base(), 3, rngs=nnx.Rngs(1))
    copy.encoder.conv_in.bias[...] = jnp.full(16, 7.0)
    np.testing.assert_array_equal(base().conv_in.bias[...], before)
    assert base().up is not None and base().conv_out is not None


def test_every_parameter_of_a_control_learns_and_the_base_is_none_of_them():
    model, dead = fresh(), []
    for _ in range(2):
        gradient = gradient_of(model, base())
        dead.append({path for path, g in parameters(gradient).items() if not np.abs(g).max() > 0})
        model = jax.tree.map(
            lambda p, g: np.asarray(p) - 0.1 * np.asarray(g) / (1e-8 + np.abs(g).max()),
            model,
            gradient,
        )
    # At first only the joints' layers learn, which stand at the end; then all do.
    alive = {path for path in parameters(model) if path not in dead[0]}
    assert alive and all(path.startswith("['joints']") for path in alive)
    assert dead[1] == set()


def test_a_joint_adds_to_its_own_skip():
    # Each joint gives a constant of its own whatever comes in; so the skips of the base move by it.
    model = shaken(fresh(), seed=5)
    constants = [array(joint.bias[...].size) for joint in model.joints]
    for joint, constant in zip(model.joints, constants, strict=True):
        joint.kernel[...], joint.bias[...] = 0 * joint.kernel[...], jnp.asarray(constant)

    @jax.jit
    def by_hand(base):
        emb, caption = base.told(T, CAPTIONS, None, 3)
        h, skips = base.encode(jnp.asarray(X), emb, caption)
        moved = [s + 0.3 * c for s, c in zip(skips, constants[:-1], strict=True)]
        return base.decode(h + 0.3 * constants[-1], moved, emb)

    got = steered_by(model, strength=0.3)
    np.testing.assert_allclose(got, by_hand(base()), rtol=1e-4, atol=1e-5)
    assert len(constants) == 4 and constants[0].size == 16 and constants[-1].size == 32


def test_a_control_of_labels_hears_the_label_in_both_encoders():
    film = drawn(lambda: UNet(1, (32,), num_classes=4, rngs=nnx.Rngs(0)), seed=2)
    model = shaken(ControlNet(film, rngs=nnx.Rngs(1)), seed=3)
    x, image, labels = X[..., :1], IMAGE[..., :1], np.array([0, 4, 2])
    run = jax.jit(lambda base, model, labels: model.steer(base, image)(x, T, labels))
    want = run(film, model, labels)
    model.encoder.embed.label.embedding[...] = jnp.ones((5, 128))
    assert np.abs(run(film, model, labels) - want).max() > 1e-3
    np.testing.assert_array_equal(run(film, model, None), run(film, model, np.full(3, 4)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE[..., :2], r"image must have shape \[3, 8, 12, 3\], got \[3, 8, 12, 2\]"),
        (IMAGE[:1], r"image must have shape \[3, 8, 12, 3\], got \[1, 8, 12, 3\]"),
        (IMAGE[:, ::2, ::2], r"image must have shape \[3, 8, 12, 3\], got \[3, 4, 6, 3\]"),
        (np.ones((3, 8, 12, 3), int), "image must be floating-point numbers"),
    ],
)
def test_a_controlling_image_of_another_shape_is_refused(image, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        fresh().steer(base(), image)(X, T, CAPTIONS)


def test_a_strength_for_each_example_is_refused():
    with pytest.raises(
        ValueError, match=r"strength must be one number, got an array of shape \[3\]"
    ):
        fresh().steer(base(), IMAGE, np.ones(3))(X, T, CAPTIONS)


def test_a_control_of_something_else_is_refused():
    with pytest.raises(ValueError, match="base must be a UNet, got MLP"):
        ControlNet(MLP(2, 8, 1, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="control_channels must be a whole number at least 1"):
        shape_of(lambda: ControlNet(base(), 0, rngs=nnx.Rngs(1)))


# --------------------------------------------------------------------------------------------- maps


def test_an_edge_is_where_central_differences_are_long():
    x = array(2, 5, 7, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float64)
    length = np.zeros((2, 5, 7, 1))
    for row in range(5):
        for col in range(7):
            across = (padded[:, row + 1, col + 2] - padded[:, row + 1, col]) / 2
            down = (padded[:, row + 2, col + 1] - padded[:, row, col + 1]) / 2
            length[:, row, col, 0] = np.hypot(across, down).max(-1)
    for threshold in (0.6, 1.2):
        got = control.edges(x, threshold)
        np.testing.assert_array_equal(got, length > threshold)
        assert 0 < got.mean() < 1
    assert (control.edges(np.full((1, 4, 4, 1), 0.7, np.float32)) == 0).all()


def test_a_silhouette_has_the_area_of_its_shape():
    data = shapes.load("test", n=300, size=32)
    circles = data.subset((data.labels == 0) & (data.attributes["size"] == "large"))
    area = np.asarray(control.silhouettes(circles.x)).sum((1, 2, 3))
    # A radius of .95·(.38 … .42) of images 2 wide; half a pixel of blur on either side.
    low, high = (np.pi * (0.95 * 16 * r + blur) ** 2 for r, blur in ((0.38, -0.5), (0.42, 0.5)))
    assert len(area) > 10 and low < area.min() and area.max() < high
    x = np.full((1, 2, 2, 3), -1.0, np.float32)
    x[0, 0, 1, 2], x[0, 1, 0, 0] = -0.4, -0.6
    assert control.silhouettes(x)[0, ..., 0].tolist() == [[0, 1], [0, 0]]
    assert control.silhouettes(-x, background=1.0)[0, ..., 0].tolist() == [[0, 1], [0, 0]]


def test_agreement_is_what_both_have_of_what_either_has():
    a, b = (rng.integers(0, 2, (4, 3, 5, 1)).astype(np.float32) for _ in range(2))
    a[2], b[2], b[3] = 0, 0, a[3]
    want = [((a[i] + b[i]) == 2).sum() / max(((a[i] + b[i]) > 0).sum(), 1) for i in range(4)]
    want[2] = 1.0
    np.testing.assert_allclose(control.agreement(a, b), want, rtol=1e-6)
    assert control.agreement(a, b)[3] == 1
    with pytest.raises(ValueError, match="a must have the shape of b"):
        control.agreement(a, b[:2])
    with pytest.raises(ValueError, match=r"a must be boolean, or hold 0 and 1 alone, got 0.5"):
        control.agreement(a / 2, b)
