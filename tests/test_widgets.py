"""Explorers: every position of a slider works, and errors in callbacks are seen."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from diffusion_course.evaluation import judgements
from diffusion_course.notebook import widgets


def answer(value):
    return f"value {value}", f"picture {value}".encode()


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_live_slider_answers_at_its_first_middle_and_last_position(start):
    values = [7, 70, 8, 80]
    box = widgets.live(answer, values, start=start)
    for position in (start, 3, 1, 0):
        box.slider.value = position
        assert box.readout.value == f"value {values[position]}"
        assert box.frame.value == f"picture {values[position]}".encode()


def test_a_live_slider_calls_once_at_the_start_and_once_a_move():
    seen = []

    def respond(value):
        seen.append(value)
        return answer(value)

    box = widgets.live(respond, "abc", start=2)
    box.slider.value = 0
    box.slider.value = 0
    box.slider.value = 2
    assert seen == ["c", "a", "c"]


def test_an_error_of_a_live_slider_is_shown_and_raised_and_the_next_move_works():
    def respond(value):
        if value == 1:
            raise RuntimeError("no such batch")
        return answer(value)

    box = widgets.live(respond, [0, 1, 2])
    with pytest.raises(RuntimeError, match="no such batch"):
        box.slider.value = 1
    assert box.readout.value == "RuntimeError: no such batch"
    box.slider.value = 2
    assert box.readout.value == "value 2"


@pytest.mark.parametrize(("values", "start"), [((), 0), ((1, 2), 2), ((1, 2), -1)])
def test_a_start_outside_the_values_is_refused(values, start):
    with pytest.raises(ValueError, match="start must be a position"):
        widgets.live(answer, values, start=start)


def test_the_parts_of_a_live_slider_carry_the_classes_that_page_tests_look_for():
    box = widgets.live(answer, [1])
    assert "course-slider" in box.slider._dom_classes
    assert "course-readout" in box.readout._dom_classes
    assert "course-frame" in box.frame._dom_classes


def frames(count=3):
    return [np.full((4, 6, 3), 40 * i, np.uint8) for i in range(count)]


def test_an_animation_needs_no_network_and_every_button_has_a_text():
    html = widgets.animation(frames(), ["a", "b", "c"]).data
    assert "http" not in html and "<link" not in html
    assert 'class="fa' not in html
    assert len(re.findall(r"<button[^>]*>\s*[^\s<]+</button>", html)) == 9
    pictures = re.findall(r'frames\[\d+\] = "data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 3
    for picture in pictures:  # a valid PNG to its end: nothing else was replaced
        assert base64.b64decode(picture.replace("\\\n", "")).endswith(b"IEND\xaeB`\x82")


def test_equal_animations_are_equal_and_others_are_told_apart_in_a_page():
    same, again = (widgets.animation(frames()).data for _ in range(2))
    assert same == again
    other = widgets.animation(frames(4)).data
    ids = [re.search(r"_anim_img([0-9a-f]{32})", html).group(1) for html in (same, other)]
    assert ids[0] != ids[1]


def test_an_animation_without_frames_is_refused():
    with pytest.raises(ValueError, match="frames must hold at least one picture"):
        widgets.animation([])


# ---------------------------------------------------------------------------------- mask editor


def test_the_mask_that_was_drawn_is_the_one_that_is_filled():
    seen = []

    def respond(hidden):
        seen.append(hidden)
        return answer(int(hidden.sum()))

    start = np.array([[True, False, False], [False, True, False]])
    box = widgets.mask_editor(respond, start)
    np.testing.assert_array_equal(seen[0], start)
    assert [field.button_style for field in box.fields[0]] == ["info", "", ""]
    box.fields[0][0].value = False
    box.fields[1][2].value = True
    box.fields[0][1].value = True
    assert len(seen) == 1 and box.readout.value == "value 2"  # nothing runs before the button
    box.button.click()
    np.testing.assert_array_equal(seen[1], [[False, True, False], [False, True, True]])
    assert box.readout.value == "value 3" and box.frame.value == b"picture 3"
    assert [field.button_style for field in box.fields[0]] == ["", "info", ""]


def test_an_error_behind_the_button_is_shown_and_logged_and_the_next_press_works(caplog):
    def respond(hidden):
        if hidden.all():
            raise RuntimeError("nothing is known")
        return answer(int(hidden.sum()))

    box = widgets.mask_editor(respond, [[True, False]])
    box.fields[0][1].value = True
    box.button.click()
    assert box.readout.value == "RuntimeError: nothing is known"
    assert "in respond" in caplog.text  # the traceback
    with pytest.raises(RuntimeError, match="nothing is known"):
        widgets.mask_editor(respond, [[True, True]])
    box.fields[0][0].value = False
    box.button.click()
    assert box.readout.value == "value 1"


@pytest.mark.parametrize("hidden", [[True, False], [[[True]]], np.zeros((0, 3))])
def test_a_mask_that_is_no_table_is_refused(hidden):
    with pytest.raises(ValueError, match=r"hidden must have shape \[rows, columns\], got"):
        widgets.mask_editor(lambda hidden: answer(0), hidden)


def test_the_parts_of_a_mask_editor_carry_their_classes():
    box = widgets.mask_editor(lambda hidden: answer(0), [[True]])
    parts = {"field": box.fields[0][0], "action": box.button, "readout": box.readout}
    for name, part in (parts | {"frame": box.frame}).items():
        assert f"course-{name}" in part._dom_classes


# Judging.


def test_judgements_are_noted_in_the_order_of_the_deal_and_end_with_it():
    pictures = [[b"a0", b"a1"], [b"b0", b"b1", b"b2"]]
    dealt = judgements.deal([2, 3], 3, seed=1)
    box = widgets.judging(pictures, dealt)
    for n, (button, outcome) in enumerate([(0, "first"), (2, "second"), (1, "tie")]):
        assert box.readout.value == f"{n} of 3 judged" and not box.buttons[0].disabled
        for side, picture in enumerate((box.left, box.right)):
            assert picture.value == pictures[dealt.pairs[n, side]][dealt.items[n, side]]
        box.buttons[button].click()
        assert box.outcomes[-1] == outcome
    assert box.readout.value == "3 of 3 judged" and all(button.disabled for button in box.buttons)
    box.buttons[0].click()  # a press that was on its way
    assert box.outcomes == ["first", "second", "tie"]
    wins, ties = judgements.tally(dealt.pairs, box.outcomes, 2)
    assert wins.sum() == 2 and ties[0, 1] == 1


def test_a_judge_reads_nothing_of_a_pictures_origin():
    box = widgets.judging([[b"a"], [b"b"]], judgements.deal([1, 1], 1), question="Which?")
    words = [part.description for part in box.buttons] + [box.readout.value]
    assert words == ["the left one", "neither", "the right one", "0 of 1 judged"]
    assert box.children[0].value == "Which?"


@pytest.mark.parametrize("pictures", [[[b"a"]], [[b"a"], [b"b"]]])
def test_pictures_that_were_dealt_must_be_there(pictures):
    dealt = judgements.Deal(np.array([[0, 1]]), np.array([[0, 1]]))
    with pytest.raises(ValueError, match="dealt must name pictures that are there"):
        widgets.judging(pictures, dealt)


def a_dot_and_a_title(at):
    """A figure, its parts that move, and the function that moves them."""
    fig, ax = plt.subplots(figsize=(3, 2), dpi=80, layout="none")
    ax.plot([0, 1], [0, 1], color="0.5")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="time", ylabel="value")
    dot, title = ax.plot(at, 0.8, "o", ms=9)[0], ax.set_title(f"at {at}")

    def move(at):
        dot.set_data([at], [0.8])
        title.set_text(f"at {at}")

    return fig, [dot, title], move


def pixels_of(png):
    return plt.imread(io.BytesIO(png))[..., :3]


def test_changes_of_one_figure_look_like_figures_drawn_anew():
    with plt.rc_context({"figure.dpi": 80, "savefig.dpi": 80}):
        changed = widgets.render_changes(*a_dot_and_a_title(0.5), (0.2, 0.4))
        anew = widgets.render(lambda at: a_dot_and_a_title(at)[0], (0.2, 0.4))
    for one, other in zip(changed, anew, strict=True):
        np.testing.assert_allclose(pixels_of(one), pixels_of(other), atol=1 / 255)
    assert np.abs(pixels_of(changed[0]) - pixels_of(changed[1])).max() > 0.5
    assert not plt.get_fignums()


def test_a_figure_in_which_nothing_moves_is_refused():
    fig, _, move = a_dot_and_a_title(0.5)
    with pytest.raises(ValueError, match="moving must hold at least one artist, got none"):
        widgets.render_changes(fig, [], move, (0.2,))
    plt.close(fig)
