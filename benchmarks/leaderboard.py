"""The capstone's board: every chapter's sampler, and every cheat, on one seed of games.

    python benchmarks/leaderboard.py [--images 1000] [--out benchmarks/results/leaderboard.json]

The released network of the 8×8 digits, 1, 2, 4 and 8 evaluations per image, the same noise, classes
and rotations for all. Every player is written as soon as it is known, and a second run goes on
where the first one stopped. Cheats know the weights, the training images and the classes, which no
submission does. The reference is DDIM with 50 evaluations.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from machine import describe

from diffusion_course import weights
from diffusion_course.data import digits
from diffusion_course.evaluation import metrics, quality
from diffusion_course.leaderboard import baselines, board, cheats, game, match, scores

SEED = "recorded"
REFERENCE = "DDIM, 50 evaluations"


def as_json(row: board.Row) -> dict:
    """A row without its pictures; numbers with four digits."""
    found = {"name": row.name, "chapter": row.chapter, "evaluations": row.evaluations}
    found |= {"used": row.used, "status": row.status}
    for measure in board.MEASURES if row.score else ():
        found[measure] = [round(float(end), 4) for end in getattr(row.score, measure)]
    return found


def real(judge: scores.Judge, images: int) -> dict:
    """The same measures of real images: training images for coverage, unseen ones for Fréchet."""
    train, test = digits.load("train"), digits.load("test")
    rows = np.random.default_rng(0).permutation(len(train.x))[:images]
    covering = judge.score(train.x[rows], train.labels[rows])
    unseen = metrics.frechet(quality.judge_all(judge.classifier, test.x)[1], judge.moments)
    return {
        "coverage": round(covering.coverage.value, 4),
        "frechet": round(unseen, 4),
        "frechet_images": len(test.x),
    }


def cheating(name: str, dealer: game.Dealer, judge: scores.Judge) -> list[board.Row]:
    """The rows of one cheat."""
    train = digits.load("train")
    rows = []
    for budget in game.BUDGETS:
        new = dealer.game(budget)
        sample = cheats.all_of_them(new, dealer.backbone, train.x, train.labels)[name]
        rows += board.rows_of(name, "", match.here(sample, dealer, [budget]), dealer, judge)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="per budget")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/leaderboard.json"))
    arguments = parser.parse_args()
    dealer = game.Dealer(game.digits(), SEED, arguments.images)
    judge = scores.judge()
    names = ("digits", "digits_classifier")
    found = {
        "machine": describe(),
        "seed": SEED,
        "images": arguments.images,
        "sha256": {name: weights.load(name).card.sha256 for name in names},
        "real": real(judge, arguments.images),
        "rows": [],
        "cheats": [],
    }
    if arguments.out.exists():
        before = json.loads(arguments.out.read_text())
        same = all(before[key] == found[key] for key in ("seed", "images", "sha256"))
        found = before if same else found
    known = {row["name"] for row in found["rows"] + found["cheats"]}

    def note(kind: str, rows: list[board.Row]) -> None:
        found[kind] += [as_json(row) for row in rows]
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        print(*(f"{r.name} {r.evaluations}: {r.score and r.score.frechet}" for r in rows), sep="\n")

    for name in baselines.BASELINES:
        if name not in known:
            note("rows", board.baselines(dealer, judge, [name]))
    if REFERENCE not in known:
        sample = baselines.BASELINES["DDIM"][1]
        played = match.here(sample, dealer, [50])
        note("rows", board.rows_of(REFERENCE, "06", played, dealer, judge))
    some = cheats.all_of_them(dealer.game(1), dealer.backbone, *_train())
    for name in some:
        if name not in known:
            note("cheats", cheating(name, dealer, judge))


def _train() -> tuple[np.ndarray, np.ndarray]:
    train = digits.load("train")
    return train.x, train.labels


if __name__ == "__main__":
    main()
