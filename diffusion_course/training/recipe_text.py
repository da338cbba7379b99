"""Recipes of models that read captions, and of the judge of what they draw."""

from dataclasses import dataclass
from typing import ClassVar

from diffusion_course import checks
from diffusion_course.data import shapes
from diffusion_course.models import control
from diffusion_course.training.recipe import DiffusionRecipe, Training


@dataclass(frozen=True, kw_only=True)
class AttributesRecipe(Training):
    """Every setting of the training of a classifier of all attributes of the shapes.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with its answers.
      noise: standard deviation of the noise that is added to the pixels.
      samples: unseen images that it is measured on.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("answers",)
    # Samples are never quite clean: the judge must not depend on single pixels.
    noise: float = 0.1
    samples: int = 6000

    def __post_init__(self):
        super().__post_init__()
        checks.within("noise", self.noise, 0, 1)
        checks.integer("samples", self.samples, minimum=1)


@dataclass(frozen=True, kw_only=True)
class TextRecipe(DiffusionRecipe):
    """Every setting of the training of a diffusion model with captions of the shapes.

    Attributes:
      dataset, process, kind, steps, batch_size, learning_rate, ema, seed, options, scales, samples,
        sampling_steps: as in `DiffusionRecipe`.
      model: description for `weights.build`; its num_classes is the number of words.
      label_dropout: share of captions replaced by the null caption.
      judge: name of the released classifier that says whether a caption is obeyed.
      held_out: one of so many combinations of attributes is left out of the training; see
        `shapes.held_out`.

    Raises: ValueError for a value outside its range.
    """

    judge: str
    held_out: int = shapes.HELD_OUT

    def __post_init__(self):
        super().__post_init__()
        checks.integer("held_out", self.held_out, minimum=2)


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(Training):
    """Every setting of the training of a contrastive pair.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with its num_words.
      painter: name of the released model whose samples it scores when it is measured.
      noise: as in `AttributesRecipe`.
      held_out: as in `TextRecipe`.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("num_words",)
    painter: str
    noise: float = 0.1
    held_out: int = shapes.HELD_OUT

    def __post_init__(self):
        super().__post_init__()
        checks.within("noise", self.noise, 0, 1)
        checks.integer("held_out", self.held_out, minimum=2)


@dataclass(frozen=True, kw_only=True)
class ControlRecipe(Training):
    """Every setting of the training of a ControlNet, which steers a model of captions by a map.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with that of its base.
      base: name of the released model that is steered, and whose encoder it starts from.
      map: what the control sees of an image, a name in `control.MAPS`.
      process: that of the base.
      kind: what the base predicts.
      label_dropout: share of captions replaced by the null caption, so that the control learns to
        read the map by itself.
      held_out: as in `TextRecipe`.
      judge: name of the released classifier that says whether a caption is obeyed.
      strengths: of the control, at which it is measured.
      scales: guidance scales at which it is measured at each strength.
      samples: that are measured at each of these.
      sampling_steps: of DDIM for them.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("base", "control_channels")
    base: str
    map: str = "edges"
    process: dict
    kind: str
    label_dropout: float = 0.5
    held_out: int = shapes.HELD_OUT
    judge: str
    strengths: tuple[float, ...] = (0.0, 1.0)
    scales: tuple[float, ...] = (0.0, 2.0)
    samples: int = 48
    sampling_steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        checks.one_of("map", self.map, control.MAPS)
        checks.within("label_dropout", self.label_dropout, 0, 1)
        checks.integer("held_out", self.held_out, minimum=2)
        checks.within("strengths", self.strengths, -1e6, 1e6)
        checks.within("scales", self.scales, -1e6, 1e6)
        checks.integer("samples", self.samples, minimum=2)
        checks.integer("sampling_steps", self.sampling_steps, minimum=1)


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe(Training):
    """Every setting of the training of an adapter of low rank, by which a model learns one word.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with that of its base as its model.
      base: name of the released model that is changed.
      process: that of the base.
      kind: what the base predicts.
      kept: number of images of the six shapes that it is trained on as well, as often as on the new
        ones, so that they stay what they are; see `objectives_text.examples`.
      judge: name of the released classifier that says whether a caption is obeyed.
      guidance: w of the samples that it is measured on.
      samples: that are measured, of the new shape and of the six each.
      sampling_steps: of DDIM for them.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("model", "rank")
    base: str
    process: dict
    kind: str
    kept: int
    judge: str
    guidance: float = 2.0
    samples: int = 64
    sampling_steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        checks.integer("kept", self.kept, minimum=0)
        checks.within("guidance", self.guidance, -1e6, 1e6)
        checks.integer("samples", self.samples, minimum=2)
        checks.integer("sampling_steps", self.sampling_steps, minimum=1)


CaptionRecipe = AttributesRecipe | TextRecipe | ContrastiveRecipe | ControlRecipe | AdapterRecipe
