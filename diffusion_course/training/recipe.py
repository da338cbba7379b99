"""What a recipe is: every setting of a training, as data. Nothing runs here."""

from dataclasses import dataclass, field
from typing import ClassVar

from diffusion_course import checks


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every recipe says; each one documents these fields with its own.

    Attributes:
      dataset: name for `data.load`; the split "train" is used.
      model: description for `weights.build`.
      steps: number of training steps.
      batch_size: examples per step.
      learning_rate: peak of Adam's rate.
      ema: decay of the averaged weights.
      seed: of initialisation, batches and noise.
      options: further arguments for `data.load`.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("num_classes",)  # what the model's description must hold
    dataset: str
    model: dict
    steps: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    ema: float = 0.999
    seed: int = 0
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.model, dict) or not set(self.needs) <= self.model.keys():
            wanted = " and ".join(self.needs)
            raise ValueError(f"model must be a dict with {wanted} in it, got {self.model!r}")
        checks.integer("steps", self.steps, minimum=1)
        checks.integer("batch_size", self.batch_size, minimum=1)
        checks.above("learning_rate", self.learning_rate, 0)
        checks.within("ema", self.ema, 0, 1, ends="[)")
        checks.integer("seed", self.seed, minimum=0)


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(Training):
    """Every setting of the training of a class-conditional diffusion model.

    Attributes:
      dataset: name for `data.load`; the split "train" is used.
      model: description for `weights.build`, with its num_classes.
      process: description for `weights.build_process`.
      kind: what the model predicts.
      steps: number of training steps.
      batch_size: examples per step.
      learning_rate: peak of Adam's rate.
      ema: decay of the averaged weights.
      label_dropout: share of labels replaced by the null class.
      seed: of initialisation, batches and noise.
      options: further arguments for `data.load`.
      scales: guidance scales at which the model is measured.
      samples: that are measured at each scale.
      sampling_steps: of DDIM for them.

    Raises: ValueError for a value outside its range.
    """

    process: dict
    kind: str
    # As Ho & Salimans 2022 (arXiv:2207.12598): a tenth is enough to learn D without a label.
    label_dropout: float = 0.1
    scales: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0)
    samples: int = 500
    sampling_steps: int = 50

    def __post_init__(self):
        super().__post_init__()
        checks.within("label_dropout", self.label_dropout, 0, 1)
        checks.within("scales", self.scales, -1e6, 1e6)
        checks.integer("samples", self.samples, minimum=2)
        checks.integer("sampling_steps", self.sampling_steps, minimum=1)


@dataclass(frozen=True, kw_only=True)
class LatentRecipe(DiffusionRecipe):
    """Every setting of the training of a diffusion model in the latents of a released autoencoder.

    The data set is encoded once, before the first step.

    Attributes:
      dataset, model, process, kind, steps, batch_size, learning_rate, ema, label_dropout, seed,
        options, scales, samples, sampling_steps: as in `DiffusionRecipe`; the dataset is one of
        images, and the model one of latents.
      autoencoder: name of released weights, such as "shapes_vae".

    Raises: ValueError for a value outside its range.
    """

    autoencoder: str


@dataclass(frozen=True, kw_only=True)
class CascadeRecipe(DiffusionRecipe):
    """Every setting of the training of a stage that enlarges images.

    Attributes:
      dataset, process, kind, steps, batch_size, learning_rate, ema, label_dropout, seed, options,
        samples, sampling_steps: as in `DiffusionRecipe`; the dataset holds the large images.
      model: description for `weights.build`, with its factor and num_classes.
      scales: of guidance of the base's samples, which are enlarged without guidance.
      base: name of the released model whose samples are enlarged when the stage is measured; it
        may be a stage itself.
      judge: name of the released classifier that measures the large images.
      highest: the level of the noise on the small images is uniform in [0, highest].
      levels: at which the stage is measured.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("factor", "num_classes")
    scales: tuple[float, ...] = (1.0,)
    base: str
    judge: str
    highest: float
    levels: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5)

    def __post_init__(self):
        super().__post_init__()
        checks.within("highest", self.highest, 0, 1)
        checks.within("levels", self.levels, 0, 1)


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(Training):
    """Every setting of the training of a model of clips, with a noise level for each frame.

    Attributes:
      dataset, steps, learning_rate, ema, seed, options: as in `DiffusionRecipe`; the dataset is one
        of clips.
      model: description for `weights.build`, with its image_size; without classes.
      batch_size: clips per step.
      process: description for `weights.build_process`.
      kind: what the model predicts; not "edm".
      images: so many clips of a batch are cut into single frames; fewer than batch_size.
      samples: clips that are drawn along each schedule when the model is measured.
      sampling_steps: of DDIM for each frame.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("image_size",)
    process: dict
    kind: str
    images: int = 0
    samples: int = 48
    sampling_steps: int = 24

    def __post_init__(self):
        super().__post_init__()
        checks.integer("images", self.images, minimum=0, maximum=self.batch_size - 1)
        checks.integer("samples", self.samples, minimum=2)
        checks.integer("sampling_steps", self.sampling_steps, minimum=1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Training):
    """Every setting of the training of an autoencoder, whose latents a diffusion model may have.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with its latent_channels.
      beta: weight of the rate; see `latent.autoencoder_loss`.
      features: weight of the feature loss.
      judge: name of the released classifier whose features these are.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("latent_channels",)
    beta: float
    features: float
    judge: str

    def __post_init__(self):
        super().__post_init__()
        checks.within("beta", self.beta, 0, 1e6)
        checks.within("features", self.features, 0, 1e6)


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Training):
    """Every setting of the training of a classifier: the judge of a data set's samples.

    Attributes:
      dataset: name for `data.load`; the split "train" is used.
      model: description for `weights.build`, with its num_classes.
      steps: number of training steps.
      batch_size: images per step.
      learning_rate: peak of Adam's rate.
      ema: decay of the averaged weights.
      seed: of initialisation, batches, shifts and noise.
      options: further arguments for `data.load`.
      shift: images are moved by up to this many pixels each way.
      noise: standard deviation of the noise that is added to the pixels.
      smoothing: share of the target that is spread over all classes.

    Raises: ValueError for a value outside its range.
    """

    # Between 1e-3 and 3e-3 it makes no difference: after 500 steps on the digits all of them are
    # right on 98.6 to 99.2 % of the unseen ones.
    learning_rate: float = 2e-3
    # A generated digit may sit a pixel aside and is never quite clean: the judge must not depend
    # on single pixels. Noise of .1 is 5 % of the range [-1, 1].
    shift: int = 1
    noise: float = 0.1
    # Keeps the logits, and with them the features, from growing without end once all is right.
    smoothing: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        checks.integer("shift", self.shift, minimum=0)
        checks.within("noise", self.noise, 0, 1)
        checks.within("smoothing", self.smoothing, 0, 1, ends="[)")


@dataclass(frozen=True, kw_only=True)
class _FewSteps(Training):
    """What the recipes of few-step models have in common besides `Training`."""

    process: dict
    kind: str
    guidance: float
    evaluations: tuple[int, ...] = (1, 2, 4)
    samples: int = 500

    def __post_init__(self):
        super().__post_init__()
        checks.within("guidance", self.guidance, -1e6, 1e6)
        for count in self.evaluations:
            checks.integer("evaluations", count, minimum=1)
        checks.integer("samples", self.samples, minimum=2)


@dataclass(frozen=True, kw_only=True)
class ConsistencyRecipe(_FewSteps):
    """Every setting of the consistency distillation of a released model, the teacher.

    The student starts from the teacher's weights.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model, process, kind: the teacher's.
      guidance: w of the teacher's steps, and with it of all that the student makes.
      evaluations: the numbers of evaluations at which the student is measured.
      samples: that are measured at each of them.
      teacher: name of released weights.
      grid: number of the times 1/grid, 2/grid, … 1.
      huber: c of the pseudo-Huber distance.

    Raises: ValueError for a value outside its range.
    """

    teacher: str
    grid: int
    huber: float

    def __post_init__(self):
        super().__post_init__()
        checks.integer("grid", self.grid, minimum=1)
        checks.above("huber", self.huber, 0)


@dataclass(frozen=True, kw_only=True)
class LatentConsistencyRecipe(ConsistencyRecipe):
    """Every setting of a latent consistency model: the teacher works in latents, and w is told.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options, process, kind, evaluations,
        samples, teacher, grid, huber: as in `ConsistencyRecipe`; the dataset is one of images, and
        the teacher one of latents.
      model: the teacher's, with ``extras = 1``.
      guidance: w at which the student is measured.
      autoencoder: name of released weights, the teacher's.
      skip: length of the teacher's steps, in steps of the grid.
      least: the smallest w that the student learns.
      most: the largest.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("num_classes", "extras")
    autoencoder: str
    skip: int
    least: float
    most: float

    def __post_init__(self):
        super().__post_init__()
        checks.integer("skip", self.skip, minimum=1, maximum=self.grid)
        checks.above("most", self.most, 0)
        checks.within("least", self.least, 0, self.most, ends="[)")
        checks.within("guidance", self.guidance, self.least, self.most)


@dataclass(frozen=True, kw_only=True)
class MeanFlowRecipe(_FewSteps):
    """Every setting of the training of a mean velocity from nothing.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with its num_classes and ``extras = 1``.
      process: that of a rectified flow.
      kind: "flow".
      guidance: w of the velocity that is learnt.
      evaluations: the numbers of evaluations at which the model is measured.
      samples: that are measured at each of them.
      label_dropout: share of labels replaced by the null class.

    Raises: ValueError for a value outside its range.
    """

    process: dict = field(default_factory=lambda: {"name": "rectified_flow"})
    kind: str = "flow"
    label_dropout: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        checks.within("label_dropout", self.label_dropout, 0, 1)
