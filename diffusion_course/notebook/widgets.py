"""Interactive explorers: pictures made beforehand and swapped, or, with `live`, on demand.

A slider over frames that were computed once costs nothing to move, and works wherever ipywidgets
7.7 does. The parts carry CSS classes (``course-slider``, ``course-readout``, ``course-frame``),
by which tests find them in the page.
"""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.animation import FuncAnimation

from diffusion_course.evaluation.judgements import Deal
from diffusion_course.notebook.plots import to_png

# Pictures keep their size; stretched to the width of the page they would blur.
_PLAIN = {"align_items": "flex-start"}

# A folder into which `explorer` also writes what it shows: notebooks/build.py sets it, so that the
# course's site can show the same frames without a kernel.
_RECORDS = "DIFFUSION_COURSE_FRAMES"


def render(draw: Callable, settings: Sequence) -> list[bytes]:
    """PNG pictures of ``draw(setting)``, a function that returns a matplotlib figure."""
    return [to_png(draw(setting)) for setting in settings]


def render_changes(fig, moving: Sequence, change: Callable, settings: Sequence) -> list[bytes]:
    """PNG pictures of one figure in which a few artists change; the rest is drawn only once.

    Axes, ticks and texts cost most of the time of a drawing: this takes a fraction of `render`'s.

    Args:
      fig: a matplotlib figure, which is closed at the end.
      moving: the artists that change, in the order of drawing. They lie over everything else.
      change: ``change(setting)`` changes them; its result is not used.
      settings: what stands for each picture.

    Returns: one picture per setting. Raises: ValueError if nothing moves.
    """
    if len(moving) == 0:
        raise ValueError("moving must hold at least one artist, got none")
    for artist in moving:
        artist.set_animated(True)  # left out when the ground is drawn
    fig.canvas.draw()
    ground, pictures = fig.canvas.copy_from_bbox(fig.bbox), []
    for setting in settings:
        change(setting)
        fig.canvas.restore_region(ground)
        for artist in moving:
            fig.draw_artist(artist)
        buffer = io.BytesIO()
        pixels = np.asarray(fig.canvas.buffer_rgba())
        plt.imsave(buffer, pixels, format="png", metadata={"Software": None})
        pictures.append(buffer.getvalue())
    plt.close(fig)
    return pictures


def animation(frames: Sequence, labels: Sequence[str] | None = None, milliseconds: int = 120):
    """A matplotlib animation of uint8 pictures as an HTML player.

    It needs neither a kernel nor a network, and the same frames give the same HTML.

    Args:
      frames: pictures [F, H, W, 3] of one size.
      labels: one title per frame, or None.
      milliseconds: time per frame.

    Returns: an IPython HTML object. Raises: ValueError if there are no frames.
    """

    if len(frames) == 0:
        raise ValueError("frames must hold at least one picture, got none")
    height, width = np.shape(frames[0])[:2]
    fig, ax = plt.subplots(figsize=(5, 5 * height / width + 0.3))
    picture = ax.imshow(frames[0], interpolation="nearest")
    ax.set_axis_off()

    def show(i):
        picture.set_data(frames[i])
        ax.set_title("" if labels is None else labels[i])

    html = FuncAnimation(fig, show, len(frames), interval=milliseconds).to_jshtml()
    plt.close(fig)
    return HTML(_self_contained(html))


# Text for the buttons of matplotlib's player, whose icons come from a server elsewhere.
_BUTTONS = {
    "fa-minus": "−",
    "fa-fast-backward": "|◀",
    "fa-step-backward": "‹",
    "fa-play fa-flip-horizontal": "◀",
    "fa-pause": "❚❚",
    "fa-play": "▶",
    "fa-step-forward": "›",
    "fa-fast-forward": "▶|",
    "fa-plus": "+",
}


def _self_contained(html: str) -> str:
    """The player without its stylesheet from the network, and with an id that is no accident."""
    html = re.sub(r'<link rel="stylesheet"[^>]*>', "", html)
    for icon, text in _BUTTONS.items():
        html = html.replace(f'<i class="fa {icon}"></i>', text)
    accident = re.search(r"_anim_img([0-9a-f]{32})", html).group(1)
    chosen = hashlib.sha256(html.replace(accident, "").encode()).hexdigest()[:32]
    return html.replace(accident, chosen)


def explorer(
    frames: Mapping[str, Sequence[bytes]] | Sequence[bytes],
    labels: Sequence[str],
    *,
    slider: str = "t",
    choice: str = "show",
    start: int = 0,
) -> ipywidgets.VBox:
    """A slider over pictures, with a menu where there is more than one series of them.

    Args:
      frames: PNG pictures, one per label; or a name -> pictures mapping, one entry per series.
      labels: what the readout says at each position.
      slider: the slider's name.
      choice: the menu's name.
      start: the slider's first position.

    Returns: a widget with attributes `slider`, `menu`, `readout` and `frame`, to be shown as the
      last value of a cell.
    Raises: ValueError if a series does not have one picture per label, or start is not one.
    """
    series = dict(frames) if isinstance(frames, Mapping) else {"": frames}
    if not series:
        raise ValueError("frames must hold at least one series, got none")
    for name, pictures in series.items():
        if len(pictures) != len(labels) or not len(labels):
            raise ValueError(
                f"frames must hold one picture per label, {len(labels)}, "
                f"got {len(pictures)} in series {name!r}"
            )
    if not 0 <= start < len(labels):
        raise ValueError(f"start must be in 0 … {len(labels) - 1}, got {start}")

    position = ipywidgets.IntSlider(
        start, 0, len(labels) - 1, description=slider, readout=False, continuous_update=True
    )
    menu = ipywidgets.Dropdown(options=list(series), description=choice)
    readout = ipywidgets.Label()
    frame = ipywidgets.Image(format="png")
    for part, css in ((position, "slider"), (menu, "menu"), (readout, "readout"), (frame, "frame")):
        part.add_class(f"course-{css}")

    def show(_=None):
        readout.value = labels[position.value]
        frame.value = series[menu.value][position.value]

    show()
    position.observe(show, "value")
    menu.observe(show, "value")
    controls = [position, readout] if len(series) == 1 else [menu, position, readout]
    box = ipywidgets.VBox([ipywidgets.HBox(controls), frame], layout=_PLAIN)
    box.slider, box.menu, box.readout, box.frame = position, menu, readout, frame
    _record(box.model_id, series, list(labels), slider, choice, start)
    return box


def _record(model_id: str, series: dict, labels: list[str], slider: str, choice: str, start: int):
    """Writes an explorer into the folder that `_RECORDS` names, if any; its model_id finds it."""
    folder = os.environ.get(_RECORDS)
    if folder:
        pictures = {
            name: [base64.b64encode(picture).decode() for picture in frames]
            for name, frames in series.items()
        }
        told = dict(slider=slider, choice=choice, start=start, labels=labels, series=pictures)
        Path(folder, f"{model_id}.json").write_text(json.dumps(told), encoding="utf-8")


def live(
    respond: Callable, values: Sequence, *, slider: str = "value", start: int = 0
) -> ipywidgets.VBox:
    """A slider that runs a function at every move: for when the run itself is the point.

    Args:
      respond: ``respond(value) -> (text, png)``: the readout and the picture for a value. It is
        called once at the start, and at every place that the slider comes to.
      values: what the slider's positions stand for.
      slider: the slider's name.
      start: the slider's first position.

    An error in respond is shown in the readout, and raised as well: in a page nobody sees an
    exception that a callback raises.

    Returns: a widget with attributes `slider`, `readout` and `frame`.
    Raises: ValueError if there are no values, or start is not a position.
    """
    if not 0 <= start < len(values):
        raise ValueError(f"start must be a position in values, 0 … {len(values) - 1}, got {start}")
    position = ipywidgets.IntSlider(
        start, 0, len(values) - 1, description=slider, readout=False, continuous_update=False
    )
    readout = ipywidgets.Label()
    frame = ipywidgets.Image(format="png")
    for part, css in ((position, "slider"), (readout, "readout"), (frame, "frame")):
        part.add_class(f"course-{css}")

    def show(_=None):
        _show_response(respond, values[position.value], readout, frame)

    show()
    position.observe(show, "value")
    box = ipywidgets.VBox([ipywidgets.HBox([position, readout]), frame], layout=_PLAIN)
    box.slider, box.readout, box.frame = position, readout, frame
    return box


def _show_response(respond: Callable, value, readout, frame) -> None:
    """Shows what respond(value) returns; an error is shown too, before it is raised again."""
    try:
        readout.value, frame.value = respond(value)
    except Exception as error:
        readout.value = f"{type(error).__name__}: {error}"
        raise


def mask_editor(respond: Callable, hidden, *, action: str = "fill in") -> ipywidgets.HBox:
    """Fields to hide or show by clicking, and a button that runs a function on the mask so drawn.

    Args:
      respond: ``respond(hidden) -> (text, png)``, hidden bool [rows, columns]: the readout and the
        picture for a mask. It is called once at the start, and at every press of the button.
      hidden: the mask at the start, bool [rows, columns].
      action: what the button says.

    An error in respond at the start is raised. Behind the button it is shown in the readout and
    logged with its traceback: ipywidgets lets no button's callback raise.

    Returns: a widget with attributes `fields` (rows of toggle buttons), `button`, `readout` and
      `frame`.
    Raises: ValueError if hidden does not have two axes, or is empty.
    """
    hidden = np.asarray(hidden, bool)
    if hidden.ndim != 2 or hidden.size == 0:
        raise ValueError(f"hidden must have shape [rows, columns], got {list(hidden.shape)}")
    fields = [[_field(value) for value in row] for row in hidden]
    button = ipywidgets.Button(description=action, button_style="primary")
    readout = ipywidgets.Label()
    frame = ipywidgets.Image(format="png")
    for part, css in ((button, "action"), (readout, "readout"), (frame, "frame")):
        part.add_class(f"course-{css}")

    def show(_=None):
        drawn = np.array([[field.value for field in row] for row in fields])
        _show_response(respond, drawn, readout, frame)

    show()
    button.on_click(show)
    grid = ipywidgets.VBox([ipywidgets.HBox(row) for row in fields])
    box = ipywidgets.HBox([ipywidgets.VBox([grid, button, readout]), frame], layout=_PLAIN)
    box.fields, box.button, box.readout, box.frame = fields, button, readout, frame
    return box


def judging(
    pictures: Sequence[Sequence[bytes]], dealt: Deal, question: str = "Which one looks real?"
) -> ipywidgets.VBox:
    """Two pictures side by side, without a word about their origin, and three buttons below.

    A press notes the judgement and shows the next pair. After the last one the buttons are grey. A
    judgement cannot be taken back, as in a real study.

    Args:
      pictures: PNG pictures of each of K methods.
      dealt: from `judgements.deal`, for as many methods and pictures.
      question: what the judge is asked.

    Returns: a widget with attributes `left` and `right` (pictures), `buttons` (left, neither,
      right), `readout`, and `outcomes`: a list with "first", "tie" or "second" for each press.
      With ``dealt.pairs[:len(outcomes)]`` it is what `judgements.tally` takes.
    Raises: ValueError if a method or a picture that was dealt is not there.
    """
    counts = [len(row) for row in pictures]
    if dealt.pairs.max() >= len(counts) or (dealt.items >= np.take(counts, dealt.pairs)).any():
        raise ValueError(f"dealt must name pictures that are there, {counts}, got others as well")
    left, right = (ipywidgets.Image(format="png") for _ in range(2))
    buttons = [
        ipywidgets.Button(description=word, button_style="info")
        for word in ("the left one", "neither", "the right one")
    ]
    readout = ipywidgets.Label()
    parts = [(left, "left"), (right, "right"), (readout, "readout")]
    for part, css in parts + [(button, "judge") for button in buttons]:
        part.add_class(f"course-{css}")
    outcomes: list[str] = []

    def show():
        done, n = len(outcomes), len(dealt.pairs)
        readout.value = f"{done} of {n} judged"
        if done == n:
            for button in buttons:
                button.disabled = True
            return
        for side, picture in enumerate((left, right)):
            method, item = dealt.pairs[done, side], dealt.items[done, side]
            picture.value = pictures[method][item]

    def judge(outcome):
        def on_click(_):
            if len(outcomes) < len(dealt.pairs):  # a quick second press may come too late
                outcomes.append(outcome)
                show()

        return on_click

    for button, outcome in zip(buttons, ("first", "tie", "second"), strict=True):
        button.on_click(judge(outcome))
    show()
    rows = [ipywidgets.HBox([left, right]), ipywidgets.HBox(buttons), readout]
    box = ipywidgets.VBox([ipywidgets.Label(question), *rows], layout=_PLAIN)
    box.left, box.right, box.buttons, box.readout = left, right, buttons, readout
    box.outcomes = outcomes
    return box


def _field(hidden: bool) -> ipywidgets.ToggleButton:
    """One field of a mask: coloured while it hides."""
    size = {"width": "28px", "height": "28px", "margin": "1px", "padding": "0"}
    field = ipywidgets.ToggleButton(bool(hidden), layout=size)
    field.add_class("course-field")

    def colour(_=None):
        field.button_style = "info" if field.value else ""

    colour()
    field.observe(colour, "value")
    return field
