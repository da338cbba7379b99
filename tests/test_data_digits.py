import numpy as np
import pytest

from diffusion_course import data


def rows(images) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize(("split", "count"), [("train", 1437), ("test", 360), ("all", 1797)])
def test_each_split_has_its_documented_size(split, count):
    digits = data.load("digits", split)
    assert digits.x.shape == (count, 8, 8, 1) and digits.x.dtype == np.float32
    assert digits.label_names == tuple("0123456789")


def test_train_and_test_together_are_all_and_share_nothing():
    train, test, everything = (data.load("digits", s) for s in ("train", "test", "all"))
    assert len(rows(everything.x)) == 1797  # no image occurs twice
    assert rows(train.x) | rows(test.x) == rows(everything.x)
    assert not rows(train.x) & rows(test.x)


def test_every_class_gives_a_fifth_of_its_images_to_the_test_split():
    everything, test = data.load("digits", "all"), data.load("digits", "test")
    fifth = np.bincount(everything.labels) / 5
    assert (np.abs(np.bincount(test.labels) - fifth) < 1).all()
    assert np.bincount(test.labels).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]


def test_grey_levels_become_minus_one_to_one():
    from sklearn.datasets import load_digits

    source = load_digits()
    digits = data.load("digits", "all")
    np.testing.assert_array_equal((digits.x[..., 0] + 1) * 8, source.images)  # exact: powers of 2
    np.testing.assert_array_equal(digits.labels, source.target)


def test_labels_belong_to_their_images_in_every_split():
    everything = data.load("digits", "all")
    truth = {
        image.tobytes(): label for image, label in zip(everything.x, everything.labels, strict=True)
    }
    for split in ("train", "test"):
        part = data.load("digits", split)
        assert [truth[image.tobytes()] for image in part.x] == part.labels.tolist()


def test_the_card_gives_credit():
    card = data.load("digits").card
    assert "10.24432/C50P49" in card.source and card.licence == "CC BY 4.0"


def test_the_table_is_scikit_learns_read_here_or_asked_for(monkeypatch):
    from sklearn.datasets import load_digits

    from diffusion_course.data import digits

    source = load_digits()
    want = np.column_stack([source.data, source.target])
    np.testing.assert_array_equal(digits._table(), want)
    monkeypatch.setattr(digits.Path, "is_file", lambda self: False)
    np.testing.assert_array_equal(digits._table(), want)
