"""The worker of this library for `time_to_quality.py`: trains and samples as chapter 03 does."""

from dataclasses import replace

import jax
import numpy as np
from worker import serve

from diffusion_course import data, samplers, sampling, setup, weights
from diffusion_course.training import recipes


class Ours:
    def train(self, steps: int, seed: int, learning_rate: float, model: dict | None) -> dict:
        """A whole run of the recipe "digits" with these settings."""
        changes = {"steps": steps, "seed": seed, "learning_rate": learning_rate}
        self.recipe = replace(recipes.RECIPES["digits"], **changes)
        if model:
            self.recipe = replace(self.recipe, model=model)
        run = recipes.run(self.recipe, data.load("digits"), progress=False)
        self.model = run.ema
        after_first = (steps - 1) * self.recipe.batch_size / run.history.images_per_second
        return {"seconds_after_first_step": after_first, "last_loss": run.history.loss[-1]}

    def sample(self, path: str, count: int, steps: int) -> None:
        p = weights.build_process(self.recipe.process)
        grid = sampling.uniform(steps)
        generate = sampling.generator(p, self.recipe.kind, samplers.ddim(p), grid, (8, 8, 1))
        labels = np.arange(count) % 10
        key = jax.random.key(self.recipe.seed + 1)
        np.savez(path, x=generate(self.model, key, count, labels), labels=labels)


def main() -> None:
    setup("cpu", quiet=True)
    ours = Ours()
    serve({"train": ours.train, "sample": ours.sample})


if __name__ == "__main__":
    main()
