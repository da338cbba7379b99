"""The renderer against integrals along rays, and against fields that are easy to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course import rendering
from diffusion_course.rendering import Field

rng = np.random.default_rng(242)


def test_weights_and_what_comes_through_add_up_to_one():
    density = np.float32(rng.gamma(1.0, 2.0, (4, 3, 11)))
    lengths = np.float32(rng.uniform(0.05, 0.3, 11))
    for length in (0.13, lengths):
        weights, through = rendering.ray_weights(density, length)
        assert weights.shape == (4, 3, 11) and through.shape == (4, 3)
        np.testing.assert_allclose(weights.sum(-1) + through, 1, atol=1e-6)
        want = np.exp(-(np.float64(density) * length).sum(-1))
        np.testing.assert_allclose(through, want, rtol=1e-5)
        assert (weights >= 0).all()


def test_weights_by_the_definition():
    density, length = rng.gamma(1.0, 2.0, 7), 0.21
    left, want = 1.0, []
    for d in density:
        opacity = 1 - np.exp(-d * length)
        want.append(left * opacity)
        left *= 1 - opacity
    weights, through = rendering.ray_weights(np.float32(density), length)
    np.testing.assert_allclose(weights, want, rtol=1e-5)
    assert through == pytest.approx(left, rel=1e-5)


def test_pieces_of_one_density_may_be_cut_anywhere():
    whole, _ = rendering.ray_weights(jnp.array([1.7]), 0.6)
    parts, _ = rendering.ray_weights(jnp.full(40, 1.7), 0.6 / 40)
    assert parts.sum() == pytest.approx(float(whole[0]), rel=1e-5)


@pytest.mark.parametrize("azimuth", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("elevation", [0.0, 0.4])
def test_the_axes_of_a_picture_are_a_right_handed_frame(azimuth, elevation):
    right, up, towards = (np.array(a) for a in rendering.directions(azimuth, elevation))
    frame = np.stack([right, up, towards])
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.cross(right, up), towards, atol=1e-6)
    assert up[1] > 0 and towards[1] == pytest.approx(np.sin(elevation))


def test_each_side_shows_what_lies_there():
    # One voxel to the right, one up, one in front of the middle: sides differ, and so do rows.
    density = np.zeros((5, 5, 5), np.float32)
    density[4, 2, 2], density[2, 3, 2], density[2, 2, 4] = 3.0, 3.0, 3.0
    field = Field(density, np.ones((5, 5, 5, 1), np.float32))
    seen = {
        name: np.array(rendering.render(field, np.radians(angle), 5)[1])
        for name, angle in {"front": 0, "right": 90, "back": 180, "left": 270}.items()
    }
    spots = {name: {tuple(map(int, s)) for s in np.argwhere(a > 0.5)} for name, a in seen.items()}
    assert spots["front"] == {(2, 4), (1, 2), (2, 2)}
    assert spots["back"] == {(2, 0), (1, 2), (2, 2)}
    assert spots["right"] == {(2, 0), (1, 2), (2, 2)}  # what is in front at 0° lies to the left
    assert spots["left"] == {(2, 4), (1, 2), (2, 2)}
    from_above = np.array(rendering.render(field, 0.0, 5, elevation=np.pi / 2)[1])
    assert {tuple(map(int, s)) for s in np.argwhere(from_above > 0.5)} == {(2, 2), (2, 4), (4, 2)}


def test_what_is_in_front_hides_what_is_behind():
    density = np.zeros((4, 4, 4), np.float32)
    colour = np.zeros((4, 4, 4, 2), np.float32)
    density[1, 2, 3] = density[1, 2, 0] = 400.0  # nothing comes through either
    colour[..., 2:, 0] = colour[..., :2, 1] = 1.0  # the half in front is red, the other one green
    front, back = (rendering.render(Field(density, colour), a, 4, 64)[0] for a in (0.0, np.pi))
    assert front[1, 1, 0] > 0.5 and front[1, 1, 1] < 1e-3
    assert back[1, 2, 1] > 0.5 and back[1, 2, 0] < 1e-3


def test_a_full_cube_is_seen_through_as_an_integral_says():
    field = Field(np.full((6, 6, 6), 0.8, np.float32), np.full((6, 6, 6, 3), 0.5, np.float32))
    picture, opacity = rendering.render(field, 0.0, 6, 600, background=-1.0)
    # Length 2, less half a voxel's linear fall at both ends: 1/3·(1 − 1/4)... by the trapezoid.
    n, line = 6, (np.arange(600) + 0.5) / 600 * 6 - 0.5
    profile = np.clip(np.minimum(line + 1, n - line), 0, 1)
    want = 1 - np.exp(-0.8 * profile.mean() * 2)
    np.testing.assert_allclose(opacity, want, rtol=1e-4)
    np.testing.assert_allclose(picture, (0.5 * profile_light(profile, 0.8) - (1 - want)), atol=1e-4)


def profile_light(profile, density):
    """The light of a ray whose colour falls off at the ends as its density does."""
    d = np.float64(profile) * density * 2 / len(profile)
    left = np.exp(-np.concatenate([[0], np.cumsum(d)[:-1]]))
    return (left * -np.expm1(-d) * profile).sum()


def test_interpolation_is_exact_on_a_linear_field():
    n = 7
    centres = (2 * np.arange(n) + 1) / n - 1
    x, y, z = np.meshgrid(centres, centres, centres, indexing="ij")
    grid = np.float32(0.3 + 1.1 * x - 0.7 * y + 0.4 * z)
    points = np.float32(rng.uniform(-0.8, 0.8, (20, 3)))
    want = 0.3 + points @ [1.1, -0.7, 0.4]
    np.testing.assert_allclose(rendering.look_up(grid, points), want, atol=1e-5)
    both = np.stack([grid, 2 * grid], axis=-1)
    np.testing.assert_allclose(rendering.look_up(both, points)[:, 1], 2 * want, atol=1e-5)
    assert not rendering.look_up(grid, np.float32([[2.0, 0, 0], [0, -3.0, 0]])).any()


def test_the_gradient_is_that_of_small_changes():
    field = Field(np.float32(rng.gamma(1.0, 1.0, (3, 3, 3))), np.float32(rng.random((3, 3, 3, 1))))
    weight = np.float32(rng.normal(size=(4, 4, 1)))

    @jax.jit
    def loss(f):
        return jnp.sum(weight * rendering.render(f, 0.7, 4, 8, elevation=0.3)[0])

    slopes = jax.grad(loss)(field)
    for part in (0, 1):
        step = np.zeros_like(field[part])
        place = (1, 2, 0) if part == 0 else (1, 2, 0, 0)
        step[place] = 0.02
        moved = [field._replace(**{Field._fields[part]: field[part] + s}) for s in (step, -step)]
        want = (loss(moved[0]) - loss(moved[1])) / 0.04
        assert slopes[part][place] == pytest.approx(float(want), rel=2e-2, abs=1e-4)


def test_a_field_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"density must have shape \[N, N, N\], got shape \[3, 3"):
        rendering.render(Field(np.zeros((3, 3)), np.zeros((3, 3, 3, 1))), 0.0, 4)
    with pytest.raises(ValueError, match=r"colour must have shape \[3, 3, 3, C\], got shape \[3,"):
        rendering.render(Field(np.zeros((3, 3, 3)), np.zeros((3, 3, 3))), 0.0, 4)
    with pytest.raises(ValueError, match="samples must be a whole number at least 1, got 0"):
        rendering.rays(0.0, 4, 0)
    with pytest.raises(ValueError, match="reach must be positive"):
        rendering.rays(0.0, 4, 4, reach=-1.0)


def test_a_compiled_view_from_behind_is_the_view_in_front_in_a_mirror():
    # Every sample lies in a voxel's centre: a place on the border between two neighbourhoods.
    density = jax.nn.softplus(jax.random.normal(jax.random.key(0), (12, 12, 12)))
    field = rendering.Field(density, jnp.ones((12, 12, 12, 1)))
    look = jax.jit(jax.vmap(lambda azimuth: rendering.render(field, azimuth, 8, 12)[0]))
    front, behind = look(jnp.array([0.0, np.pi]))
    np.testing.assert_allclose(front[:, ::-1], behind, atol=1e-5)


def test_what_a_compiled_ray_shows_is_what_it_shows_uncompiled():
    # As above. With `low` computed twice, jax 0.10's weights were off by .09 (of 1).
    density = jax.nn.softplus(jax.random.normal(jax.random.key(0), (12, 12, 12)))

    def shows(azimuth):
        return rendering.ray_weights(
            rendering.look_up(density, rendering.rays(azimuth, 8, 12)), 1 / 6
        )

    azimuths = jnp.array([0.0, np.pi])
    for found, want in zip(
        jax.jit(jax.vmap(shows))(azimuths), jax.vmap(shows)(azimuths), strict=True
    ):
        np.testing.assert_allclose(found, want, atol=1e-5)
