import hashlib

import numpy as np
import pytest

from diffusion_course import data
from diffusion_course.data import shapes


def load(split="train", **options):
    return data.load("shapes", split, **options)


@pytest.fixture(scope="module")
def many():
    return load(n=3000, seed=11)


def light(images):
    """How bright each pixel is, from 0 (black) to 1."""
    return (images.max(-1) + 1) / 2


def test_images_have_the_chosen_size():
    assert load(n=3).x.shape == (3, 32, 32, 3)
    assert load(n=2, size=45).x.shape == (2, 45, 45, 3)


def test_an_image_does_not_depend_on_how_many_are_drawn():
    few, more = load(n=37, size=16, seed=2), load(n=4000, size=16, seed=2)  # 4000: many chunks
    np.testing.assert_array_equal(few.x, more.x[:37])
    np.testing.assert_array_equal(few.labels, more.labels[:37])
    for name, column in few.attributes.items():
        np.testing.assert_array_equal(column, more.attributes[name][:37])


def test_the_images_are_the_same_on_every_computer():
    images = load(n=200, seed=5).x
    assert hashlib.sha256(images.tobytes()).hexdigest() == (
        "2d95d2e12e47edba9524887efcb26a0b06c72e64116ab0fc1c9f5dd7b08e503c"
    )


def test_the_hash_is_splitmix64():
    # The first number that the published generator yields from state 0.
    assert int(shapes._mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_seeds_and_splits_are_streams_of_their_own():
    images = [load(n=60, seed=s).x for s in (0, 1, 2**64 - 1)] + [load("test", n=60, seed=0).x]
    different = {image.tobytes() for part in images for image in part}
    assert len(different) == 4 * 60


def test_images_fill_the_range_of_values_and_have_soft_edges(many):
    assert many.x.min() == -1 and 0.9 < many.x.max() <= 1
    cover = light(many.x) / light(many.x).max(axis=(1, 2), keepdims=True)
    partial = ((cover > 0.02) & (cover < 0.98)).mean(axis=(1, 2))
    assert (partial > 0.005).all()  # some pixels of every image lie on the outline


def test_the_frame_of_the_image_cuts_no_shape(many):
    border = np.ones((32, 32), bool)
    border[1:-1, 1:-1] = False
    # A corner may reach the outermost pixels; it must not be cut by more than half a pixel.
    assert (light(many.x)[:, border].sum(axis=1) < 1.5).all()


def test_every_attribute_is_uniform_and_independent_of_the_others(many):
    columns = [many.labels] + [
        np.unique(many.attributes[name], return_inverse=True)[1]
        for name in ("colour", "size", "position")
    ]
    for i, a in enumerate(columns):
        for b in columns[:i]:
            table = np.zeros((a.max() + 1, b.max() + 1))
            np.add.at(table, (a, b), 1)
            expected = len(a) / table.size
            chi2 = ((table - expected) ** 2 / expected).sum()
            # Mean k - 1, variance 2 (k - 1): five standard deviations.
            assert chi2 < (table.size - 1) + 5 * np.sqrt(2 * (table.size - 1))


def test_a_shape_is_where_its_position_says(many):
    weight = light(many.x)
    grid = (2 * np.arange(32) + 1) / 32 - 1
    total = weight.sum(axis=(1, 2))
    x = (weight * grid).sum(axis=(1, 2)) / total
    y = (weight * -grid[:, None]).sum(axis=(1, 2)) / total
    for centre, axis, low, high in ((x, 1, "left", "right"), (y, 0, "bottom", "top")):
        said = many.attributes["position"]
        expected = 0.5 * (np.char.count(said, high) - np.char.count(said, low))
        # Jitter of 0.05, and a little for pixels cut at the frame.
        assert np.abs(centre - expected).max() < 0.06, axis


def test_a_shape_has_the_colour_that_is_said(many):
    brightest = many.x.reshape(len(many), -1, 3)
    pixel = brightest[np.arange(len(many)), light(many.x).reshape(len(many), -1).argmax(1)]
    rgb = (pixel + 1) / 2
    palette = np.array(list(shapes.COLOURS.values()))
    said = np.array([list(shapes.COLOURS).index(c) for c in many.attributes["colour"]])
    # Up to brightness: the angle to the said colour is the smallest of all.
    cosine = rgb @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(cosine.argmax(1), said)


def test_large_shapes_are_larger_than_small_ones_of_their_kind(many):
    colour_max = light(many.x).max(axis=(1, 2), keepdims=True)
    area = (light(many.x) / colour_max).sum(axis=(1, 2))
    large = many.attributes["size"] == "large"
    for label in range(many.num_classes):
        mine = many.labels == label
        assert area[mine & large].min() > 1.8 * area[mine & ~large].max()


def test_the_caption_says_all_four_attributes(many):
    for i in range(0, 3000, 61):
        a = {name: column[i] for name, column in many.attributes.items()}
        shape = many.label_names[many.labels[i]]
        assert a["caption"].startswith(f"a {a['size']} {a['colour']} {shape} ")
        assert a["caption"].endswith(f"the {a['position']}")
    said = shapes.caption("circle", "red", "large", "top left")
    assert said == "a large red circle at the top left"


AREAS = {
    "circle": np.pi * 0.95**2,
    "square": 1.48**2,
    "triangle": 3 * np.sqrt(3) * 0.52**2,
    "ring": np.pi * (0.95**2 - 0.49**2),
    "cross": 2 * 1.9 * 0.56 - 0.56**2,
    "star": 5 * 1.05 * 0.47 * np.sin(np.pi / 5),
    "heart": 2 * 0.82**2 + np.pi * 0.82**2 / 2,
}
EVERY = shapes.SHAPES | shapes.NEW


@pytest.mark.parametrize("name", AREAS)
def test_the_inside_of_a_distance_function_has_the_area_of_its_shape(name):
    grid = ((2 * np.arange(801) + 1) / 801 - 1).astype(np.float32) * np.float32(1.2)
    inside = EVERY[name](*np.meshgrid(grid, grid)) < 0
    # A pixel of 0.003 along an outline of at most 12: errors of both signs, far below 1 %.
    assert inside.mean() * 2.4**2 == pytest.approx(AREAS[name], rel=0.01)


@pytest.mark.parametrize("name", AREAS)
def test_a_distance_function_changes_by_one_per_unit_of_length(name):
    rng = np.random.default_rng(8)
    x, y = rng.uniform(-1.3, 1.3, (2, 4000)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi, 4000)
    step = 0.01
    dx, dy = (step * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)
    slope = np.abs(EVERY[name](x + dx, y + dy) - EVERY[name](x, y)) / step
    assert slope.max() < 1.001  # float32 differences of 1e-7 over a step of 1e-2
    assert slope.max() > 0.99  # some of 4000 directions go straight towards the outline


def test_the_star_looks_the_same_after_a_fifth_of_a_turn():
    rng = np.random.default_rng(9)
    z = rng.uniform(-1.2, 1.2, 2000) + 1j * rng.uniform(-1.2, 1.2, 2000)
    turned = z * np.exp(2j * np.pi / 5)
    star = shapes.SHAPES["star"]
    # float32 arithmetic, and constants with eight digits.
    np.testing.assert_allclose(star(z.real, z.imag), star(turned.real, turned.imag), atol=1e-6)
    assert star(np.zeros(1), np.full(1, 1.0))[0] < 0 < star(np.zeros(1), np.full(1, -1.0))[0]


@pytest.mark.parametrize(
    ("option", "value"),
    [("n", 0), ("size", 7), ("size", 513), ("size", 32.0), ("seed", -1), ("seed", 2**64)],
)
def test_a_bad_option_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=rf"{option} must be a whole number .*got {value}"):
        load(**{option: value})


# ------------------------------------------------------------------------- what models never see


def test_a_ninth_of_the_combinations_is_held_out_and_each_pair_of_attributes_is_seen():
    counts = [len(values) for values in shapes.ATTRIBUTES.values()]
    every = np.indices(counts).reshape(4, -1).T
    held = every.sum(axis=1) % 9 == 0
    assert held.sum() * 9 == len(held) == 6 * 8 * 2 * 9
    for i in range(4):
        for k in range(i):
            assert len(np.unique(every[~held][:, [k, i]], axis=0)) == counts[k] * counts[i]
    data = load("test", n=500, size=8)
    of_images = shapes.held_out(data)
    sums = shapes.answers(data).sum(axis=1)
    np.testing.assert_array_equal(of_images, [s in (0, 9, 18) for s in sums])
    # Whether a combination is held out depends on nothing but the combination.
    part = np.arange(7, 40)
    np.testing.assert_array_equal(shapes.held_out(data.subset(part)), of_images[part])
    assert of_images.mean() < shapes.held_out(data, every=2).mean() < 0.6
    with pytest.raises(ValueError, match="every must be a whole number at least 2, got 1"):
        shapes.held_out(data, every=1)


def test_the_new_shape_is_a_heart_and_differs_from_others_in_its_shape_alone():
    six, hearts = load("test", n=80, size=24, seed=4), load("test", n=80, size=24, seed=4, new=True)
    assert hearts.label_names == ("heart",) and not hearts.labels.any()
    for name in ("colour", "size", "position"):
        np.testing.assert_array_equal(six.attributes[name], hearts.attributes[name])
    for i in range(80):
        shape, caption = six.label_names[six.labels[i]], six.attributes["caption"][i]
        assert hearts.attributes["caption"][i] == caption.replace(shape, "*")
    assert (hearts.x != six.x).any(axis=(1, 2, 3)).all()
    # Its inside is the same on both sides, has a notch above and a point below.
    x, y = np.array([0.5, -0.5, 0.0, 0.0]), np.array([0.8, 0.8, 0.8, -0.88], np.float32)
    distance = shapes.NEW["heart"](x.astype(np.float32), y)
    assert distance[0] == distance[1] < 0 < distance[2] and abs(distance[3]) < 0.03
    with pytest.raises(ValueError, match="data must be of shapes"):
        shapes.answers(hearts)


def test_captions_of_the_language_are_numbers_that_come_back():
    said = ["a large red * on the left", "a small cyan star in the centre"]
    tokens = shapes.LANGUAGE(said)
    assert tokens.shape == (2, shapes.LONGEST_CAPTION)
    assert shapes.LANGUAGE.captions(tokens) == said
    assert shapes.LANGUAGE.padding == len(shapes.WORDS)
    assert tokens[0, 3] == shapes.WORDS.index(shapes.FREE) == len(shapes.WORDS) - 1
