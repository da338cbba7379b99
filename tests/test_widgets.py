"""Explorers: every position of a slider works, and errors in callbacks are seen."""

import pytest

from diffusion_course import widgets


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
