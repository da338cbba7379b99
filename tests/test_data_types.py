import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples

from diffusion_course import data
from diffusion_course.checks import integer
from diffusion_course.data import Card, Dataset, batches, check_batch, shapes

CARD = Card("test", "nowhere", "none", "random numbers")


def dataset(n=7, **changes) -> Dataset:
    rng = np.random.default_rng(3)
    arguments = {
        "x": rng.uniform(-1, 1, (n, 5, 3, 2)).astype(np.float32),
        "labels": (np.arange(n) % 4).astype(np.int32),
        "label_names": ("a", "b", "c", "d"),
        "card": CARD,
        "attributes": {"word": np.array([f"word {i}" for i in range(n)])},
    }
    return Dataset(**(arguments | changes))


def test_length_and_number_of_classes():
    assert len(dataset(n=7)) == 7
    assert dataset(n=2).num_classes == 4  # of which two do not occur


def test_a_data_set_cannot_be_changed_by_assignment():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset().labels = np.zeros(7, np.int32)


def test_a_subset_takes_every_column_in_the_given_order():
    whole = dataset(n=7)
    part = whole.subset([5, 0, 5])
    np.testing.assert_array_equal(part.x, whole.x[[5, 0, 5]])
    assert part.labels.tolist() == [1, 0, 1]
    assert part.attributes["word"].tolist() == ["word 5", "word 0", "word 5"]
    assert part.label_names == whole.label_names and part.card == whole.card


def test_a_mask_and_its_indices_give_the_same_subset():
    whole = dataset(n=7)
    mask = whole.labels == 2
    np.testing.assert_array_equal(whole.subset(mask).x, whole.subset(np.flatnonzero(mask)).x)


@pytest.mark.parametrize("indices", [[], [7], [-1], [0.0], [[1]], [True, False], "all", None])
def test_bad_indices_are_refused_by_name(indices):
    with pytest.raises(ValueError, match=r"indices must be .*got "):
        dataset(n=7).subset(indices)


images = np.zeros((7, 5, 3, 2), np.float32)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x", images.astype(np.float64)),
        ("x", images.tolist()),
        ("x", images[0]),
        ("x", images[:0]),
        ("x", images + np.float32(1.01)),
        ("x", images - np.float32(1.01)),
        ("x", images + np.float32(np.nan)),
        ("x", np.full((7, 2), np.inf, np.float32)),
        ("x", np.zeros((7, 3), np.float32)),
        ("labels", np.zeros(7, np.int64)),
        ("labels", np.zeros(6, np.int32)),
        ("labels", np.full(7, 4, np.int32)),
        ("labels", np.full(7, -1, np.int32)),
        ("labels", [0] * 7),
        ("label_names", ()),
        ("label_names", ["a", "b", "c", "d"]),
        ("label_names", (0, 1, 2, 3)),
        ("attributes", {"word": np.zeros(8)}),
        ("attributes", {"word": [0] * 7}),
        ("attributes", {"word": np.array(0)}),
    ],
)
def test_every_broken_rule_names_the_argument_and_what_was_given(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}.* must .*got "):
        dataset(n=7, **{argument: value})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_pixels_of_a_picture_file_are_refused_by_name(dtype):
    pixels = np.full((7, 5, 3, 2), 200, dtype)
    with pytest.raises(
        ValueError, match=r"x must .*got .*int.*; pixels 0 … 255 become x = .*127.5"
    ):
        dataset(x=pixels)
    with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\].*200.*; pixels 0 … 255 become"):
        dataset(x=pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"x must be floating-point numbers, got dtype .*pixels 0"):
        batches((pixels, np.zeros(7, int)), 2, seed=0)


LABELS = np.array([0, 3, 1], np.int32)
PICTURES = np.zeros((3, 4, 5, 1), np.float32)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (PICTURES, LABELS + 1, "labels must be in 0 … 3, got 1 … 4"),
        (PICTURES, LABELS - 1, "labels must be in 0 … 3, got -1 … 2"),
        (PICTURES, LABELS[:, None], r"labels must be whole numbers .*got int32 of shape \[3, 1"),
        (PICTURES, LABELS.astype(np.float32), "labels must be whole numbers .*got float32"),
        (PICTURES, LABELS[:2], r"as many labels as examples.*, 5, 1\] and labels \[2\]"),
        (PICTURES[:0], LABELS[:0], "at least one, got x"),
        (PICTURES.astype(np.uint8), LABELS, "x must be floating-point.*got dtype uint8; pixels"),
        (PICTURES.astype(np.float16), LABELS, "x must be float32 or float64.*got dtype float16"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_trained_on_is_refused(x, labels, message):
    check_batch(PICTURES, LABELS, 4)
    with pytest.raises(ValueError, match=message):
        check_batch(x, labels, 4)


def test_a_batch_for_a_model_without_labels_may_carry_anything_with_a_row_for_each_example():
    check_batch(PICTURES[:, 0, 0], np.full((3, 2), -7.5))
    with pytest.raises(ValueError, match="as many labels as examples"):
        check_batch(PICTURES, np.zeros((2, 3)))


def test_under_jit_a_batch_s_values_are_unknown_and_its_shapes_are_not():
    jax.eval_shape(lambda x, labels: check_batch(x, labels, 4), PICTURES, LABELS + 9)
    with pytest.raises(ValueError, match="labels must be whole numbers of shape"):
        jax.eval_shape(lambda x, labels: check_batch(x, labels, 4), PICTURES, LABELS[:, None])


@examples
@given(st.lists(st.integers(-3, 8), min_size=1, max_size=6), st.integers(1, 6))
def test_labels_are_taken_exactly_if_they_are_classes(labels, classes):
    labels = np.array(labels)
    x = np.zeros((len(labels), 2), np.float32)
    if labels.min() >= 0 and labels.max() < classes:
        check_batch(x, labels, classes)
        return
    with pytest.raises(ValueError, match=rf"labels must be in 0 … {classes - 1}, got "):
        check_batch(x, labels, classes)


@pytest.mark.parametrize("name", ["shape", "colour", "size", "position"])
def test_a_caption_of_unknown_words_is_refused(name):
    words = {"shape": "star", "colour": "blue", "size": "small", "position": "left"}
    assert shapes.caption(**words) == "a small blue star on the left"
    with pytest.raises(ValueError, match=f"{name} must be one of .*got 'odd'"):
        shapes.caption(**(words | {name: "odd"}))


def test_points_may_leave_the_square():
    points = np.array([[3.0, -4.0], [0.5, 2.0]], np.float32)
    assert len(Dataset(points, np.zeros(2, np.int32), ("all",), CARD)) == 2


@given(st.one_of(st.floats(), st.text(), st.none(), st.booleans(), st.integers(max_value=2)))
def test_a_size_that_is_no_whole_number_above_the_limit_is_refused(given_value):
    with pytest.raises(ValueError, match="n must be a whole number at least 3, got "):
        integer("n", given_value, minimum=3)


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint64(3)])
def test_whole_numbers_of_numpy_are_whole_numbers(value):
    assert type(integer("n", value, minimum=3, maximum=3)) is int


@given(st.text().filter(lambda name: name not in data.names()))
def test_an_unknown_name_lists_the_known_ones(name):
    for function in (data.load, data.source_of):
        with pytest.raises(
            ValueError, match="toy2d, digits, shapes, clips, mnist, fashion_mnist, cifar10"
        ):
            function(name)


@pytest.mark.parametrize("name", data.names())
def test_an_unknown_split_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"split must be one of train, test.*got 'validation'"):
        data.load(name, "validation")


@pytest.mark.parametrize(
    ("name", "known"),
    [("toy2d", "kind, n, seed"), ("digits", "no options"), ("mnist", "progress")],
)
def test_an_unknown_option_lists_the_known_ones(name, known):
    with pytest.raises(ValueError, match=rf"option 'colour' is unknown: {name} takes .*{known}"):
        data.load(name, colour="red")


@pytest.mark.parametrize("name", ["toy2d", "digits", "shapes"])
def test_what_comes_with_the_library_is_bundled(name):
    assert data.source_of(name) == "bundled"
    card = data.load(name).card
    assert card.name.startswith(name) and card.source and card.licence and card.description
