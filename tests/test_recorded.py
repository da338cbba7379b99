"""The numbers that a chapter shows from a recorded benchmark are those of the record."""

import ast
import base64
import json
import re
import zlib
from pathlib import Path

import pytest

from diffusion_course import weights
from diffusion_course.weights import card

COURSE = Path(__file__).resolve().parent.parent


def record(name):
    return json.loads((COURSE / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


def in_chapter(chapter, name):
    """The literal that a chapter's source binds to a name."""
    source = (COURSE / "notebooks" / "source" / f"{chapter}.py").read_text(encoding="utf-8")
    (value,) = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]
    ]
    return ast.literal_eval(value)


def test_chapter_04_shows_the_recorded_learning_rates():
    source = (COURSE / "notebooks" / "source" / "04_networks.py").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^# \| (\de-\d) \| ([\d.]+), ([\d.]+) \| ([\d.]+), ([\d.]+) \|$", source)
    shown = [[float(number) for number in row] for row in rows]
    found = [[r["rate"], *r["error"], *r["frechet"]] for r in record("settings")["rows"]]
    assert shown == found and len(found) == 5


def test_chapter_06_shows_the_recorded_distances_of_these_weights():
    found = record("many_steps")
    shown = in_chapter("06_ddim", "RECORDED")
    assert {f"eta = {eta:g}, {n} steps" for eta, n in shown} == set(found["frechet"])
    for (eta, n), values in shown.items():
        assert list(values) == pytest.approx(
            found["frechet"][f"eta = {eta:g}, {n} steps"], abs=6e-4
        )
    for name, digest in found["sha256"].items():
        assert weights.load(name).card.sha256 == digest
    assert found["sha256"]["digits"].startswith(in_chapter("06_ddim", "WEIGHTS"))


def test_chapter_11_shows_the_recorded_race_on_mnist():
    shown, rows = in_chapter("11_solvers", "MNIST_RACE"), record("solvers")["rows"]
    found = {(r["solver"], r["evaluations"], r["seed"]): r["frechet"] for r in rows}
    assert len(found) == 9 * 3 * 3 + 3
    for seed, value in enumerate(in_chapter("11_solvers", "MNIST_FLOW")):
        assert abs(value - found.pop(("2M", 100, seed))) <= 5.1e-4
    for solver, budgets in shown.items():
        for evaluations, starts in zip((6, 10, 20), budgets, strict=True):
            for seed, value in enumerate(starts):
                assert abs(value - found.pop((solver, evaluations, seed))) <= 5.1e-4
    assert not found


def test_chapter_15_shows_the_recorded_ranks():
    found = {
        row["rank"]: (row["new"]["all"], row["old"]["all"]) for row in record("shapes_lora")["rows"]
    }
    assert in_chapter("15_text", "BY_RANK") == found and record("shapes_lora")["samples"] == 64


def test_chapter_15_shows_the_recorded_overlaps_of_two_kinds_of_maps():
    found = record("control_maps")
    assert (found["samples"], found["draws"], found["steps"]) == (48, 3, 10)
    for name, released in (("edges", "shapes_control"), ("silhouette", "shapes_control_mask")):
        path = weights.FOLDER / f"{released}.safetensors"
        assert found["sha256"][name] == card.load_card(path).sha256
    rows = {
        (row["caption"] + ", w = 1" * (row["w"] == 1), row["control"] or "no control"): row
        for row in found["rows"]
    }
    assert len(rows) == 12
    overlap = in_chapter("15_text", "OVERLAP")
    shown = {(caption, name): row[name] for caption, row in overlap.items() for name in row}
    assert {key: pytest.approx(row["mask"], abs=5.1e-4) for key, row in rows.items()} == {
        key: list(value) for key, value in shown.items()
    }
    for name, values in in_chapter("15_text", "EDGES_AGREE").items():
        assert list(values) == pytest.approx(rows["none", name]["edge"], abs=5.1e-4)
    for table, caption, of, what in (
        ("SHAPE_RIGHT", "none", "of picture", "shape"),
        ("POSITION_RIGHT", "none", "of picture", "position"),
        ("SIZE_RIGHT", "none", "of picture", "size"),
        ("CAPTION_WINS", "another's", "of caption", "all"),
        ("CAPTION_WINS_UNGUIDED", "another's, w = 1", "of caption", "all"),
    ):
        for name, values in in_chapter("15_text", table).items():
            recorded = [draw[what] for draw in rows[caption, name][of]]
            assert list(values) == pytest.approx(recorded, abs=5.1e-4)


def test_chapter_14_shows_the_recorded_comparison():
    shown = in_chapter("14_latent_diffusion", "RECORDED")
    for name, row in shown.items():
        found = record("latents")[name]
        for w, pair in row.items():
            if w.startswith("w="):
                rows = [found[kind]["quality"][w] for kind in ("pixels", "latents")]
                assert pair == tuple(quality["accuracy"] for quality in rows)
                assert {quality["samples"] for quality in rows} == {1000}
            else:
                assert pair == pytest.approx(found["ratios"][w], abs=6e-4)


def test_chapter_12_shows_the_recorded_tables():
    found, seeds = record("edm"), 3
    mean = lambda rows, key: sum(row[key] for row in rows) / seeds  # noqa: E731
    shown = in_chapter("12_edm", "RECORDED")
    assert list(shown) == list(found["ablation"])
    for name, (distances, share, errors) in shown.items():
        rows = found["ablation"][name]
        assert distances == [row["frechet"] for row in rows] and len(rows) == seeds
        assert share == pytest.approx(mean(rows, "recognised"), abs=6e-4)
        expected = [sum(level) / seeds for level in zip(*(r["error"] for r in rows), strict=True)]
        assert errors == pytest.approx(expected, abs=6e-5)
    few, floor = found["few digits"], found["few digits"].pop("unseen digits")
    shown = in_chapter("12_edm", "RECORDED_FEW")
    assert list(shown) == list(few)
    for name, values in shown.items():
        keys = ("unseen loss", "looks moved", "nearest", "frechet")
        expected = [mean(few[name], key) for key in keys]
        assert list(values[:2]) == pytest.approx(expected[:2], abs=6e-4)
        assert list(values[2:]) == pytest.approx(expected[2:], abs=6e-3)
    assert in_chapter("12_edm", "FEW_UNSEEN") == (floor["looks moved"], floor["nearest"])
    judge = found["sha256"]["digits_classifier"]
    assert judge == weights.load("digits_classifier").card.sha256


def test_chapter_16_shows_the_recorded_transformers():
    found = record("transformer_parts")
    found["shapes"] = {"2, 48, 4": found["parts"]["adaLN-Zero"]} | found["shapes"]
    for table, name in (
        ("parts", "RECORDED_PARTS"),
        ("shapes", "RECORDED_SHAPES"),
        ("targets", "RECORDED_TARGETS"),
    ):
        shown = in_chapter("16_transformers", name)
        keys = [key if isinstance(key, str) else ", ".join(map(str, key)) for key in shown]
        assert keys == list(found[table])
        for key, (errors, distances) in zip(keys, shown.values(), strict=True):
            rows = found[table][key]["seeds"]
            assert list(errors) == [row["error"] for row in rows] and len(rows) == 3
            assert list(distances) == [row["frechet"] for row in rows]
    judge = found["sha256"]["digits_classifier"]
    assert judge == weights.load("digits_classifier").card.sha256
    networks = {
        "DiT {1}×{2}/{0}".format(*key): values
        for key, values in in_chapter("16_transformers", "RECORDED_MNIST").items()
    }
    rows = record("transformers")["rows"]
    assert networks == {r["network"]: (r["gflops"], r["unseen loss"], r["frechet"]) for r in rows}


def test_chapter_18_shows_the_recorded_wall():
    found, shown = record("wall"), in_chapter("18_flow_map", "MNIST_WALL")
    assert in_chapter("18_flow_map", "mnist_floor") == pytest.approx(
        found["floor"]["to the data"], abs=6e-4
    )
    (starts,) = found["starts"].values()
    assert in_chapter("18_flow_map", "MNIST_STARTS") == pytest.approx(starts, abs=6e-4)
    tried = found["consistency training, settings tried, 1 evaluation"]
    spoilt, *others = (t["recognised"] for t in tried)
    assert in_chapter("18_flow_map", "MNIST_SPOILT") == pytest.approx(spoilt, abs=6e-4)
    assert spoilt < 0.2 < 0.9 < min(others)
    slow, fast = (t for t in tried if t["start"] and t["grids"] == [8, 16, 32, 64])
    assert (slow["rate"], fast["rate"]) == (2e-4, 1e-3) and slow["huber"] == fast["huber"]
    assert in_chapter("18_flow_map", "MNIST_FASTER") == pytest.approx(fast["to the data"], abs=6e-4)
    columns = ("recognised", "to the data", "to the teacher", "coverage")
    rounding = (6e-4, 6e-3, 6e-3, 6e-4)
    for row in found["rows"]:
        values = shown[row["method"]][row["evaluations"]]
        for value, column, most in zip(values, columns, rounding, strict=True):
            assert abs(value - row[column]) <= most, (row["method"], row["evaluations"], column)
    assert len(found["rows"]) == sum(map(len, shown.values()))


def test_chapter_04_shows_the_recorded_networks_without_a_part_and_averages():
    found = record("network_parts")
    assert in_chapter("04_networks", "RECORDED") == found["parts"]
    columns = ("0.0", "0.9", "0.99", None, "warm-up", "0.9999")  # None: the best of the grid
    for n, shown in in_chapter("04_networks", "OTHER_RUNS").items():
        assert len(shown) == len(found["averages"]) == 3
        for row, run in zip(shown, found["averages"], strict=True):
            grid = [error for d, error in run[str(n)].items() if d != "warm-up"]
            assert row == tuple(run[str(n)][d] if d else min(grid) for d in columns)


def test_chapter_21_shows_the_recorded_race():
    found, chapter = record("which_model"), "21_which_model"
    assert found["complete"] and found["budget"] == 30
    judge = found["sha256"]["digits_classifier"]
    assert judge == weights.load("digits_classifier").card.sha256
    rows = {name: [r for r in found["rows"] if r["model"] == name] for name in found["summary"]}
    race, more = in_chapter(chapter, "RACE"), in_chapter(chapter, "MORE")
    assert list(race) == list(more) == list(rows)
    keys = ("precision", "recall", "recognised", "copies", "processor seconds per 100")

    def rounding(key, value):
        return 6e-4 if "seconds" not in key else 6e-5 if value < 1 else 6e-3

    for name, seeds in rows.items():
        assert [r["seed"] for r in seeds] == list(range(len(seeds)))
        distances, covered = race[name]
        assert list(distances) == pytest.approx([r["frechet"] for r in seeds], abs=6e-3)
        assert list(covered) == pytest.approx([r["coverage"] for r in seeds], abs=6e-4)
        for value, key in zip(more[name], keys, strict=True):
            if value is None:
                assert key not in seeds[0]
                continue
            mean = sum(r[key] for r in seeds) / len(seeds)
            assert value == pytest.approx(mean, abs=rounding(key, mean))
    for name, parts in in_chapter(chapter, "BITS").items():
        for values, part in zip(parts, ("test", "train"), strict=True):
            bits = [r[f"bits, {part}"] for r in rows[name]]
            assert list(values) == pytest.approx(bits, abs=6e-4)
    worst = in_chapter(chapter, "WORST_CLASS_OF_GAN")
    assert list(worst) == [r["worst class"] for r in rows["GAN"]]


def test_chapter_21_tells_what_the_runs_took():
    rows = [r for r in record("which_model")["rows"] if "steps" in r]
    took = [r["processor seconds"] for r in rows]
    assert min(took) >= 24 and max(took) < 39
    assert {r["steps"] for r in rows if r["contender"] == "diffusion"} == {590}
    sizes = [r["parameters"] for r in rows]
    assert 4.8 < max(sizes) / min(sizes) < 5.3
    assert all(r["finite"] and not r["failed"] for r in rows)
    assert max(record("many_steps")["frechet"]["eta = 0, 50 steps"]) < 1  # the released digits


def test_chapter_21_shows_the_recorded_pictures():
    chapter, rows = "21_which_model", record("which_model")["rows"]
    source = (COURSE / "notebooks" / "source" / f"{chapter}.py").read_text(encoding="utf-8")
    drawn = next(
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DRAWN"
    )
    for key, names in zip(drawn.keys, drawn.values, strict=True):
        packed = in_chapter(chapter, key.id)
        levels = zlib.decompress(base64.b85decode("".join(packed.split())))
        expected = [
            "0123456789abcdefg".index(k)
            for name in ast.literal_eval(names)
            for image in next(r for r in rows if r["model"] == name and r["seed"] == 0)["images"]
            for k in image
        ]
        assert list(levels) == expected


def test_chapter_22_shows_the_recorded_program_of_a_tpu():
    found = record("tpu_compile")
    for name, (flops, moved, seconds) in in_chapter("22_scaling", "RECORDED_TPU").items():
        program = found["programs"][name]
        assert (flops, moved) == (program["flops"], program["hbm_bytes"])
        assert seconds == pytest.approx(program["bound"]["seconds"], rel=2e-3)
    (kind, all_reduce) = next(iter(program["collectives"].items()))
    count, size, seconds = in_chapter("22_scaling", "ALL_REDUCE")
    assert kind == "all-reduce" and (count, size) == (all_reduce["count"], all_reduce["bytes"])
    assert seconds == pytest.approx(program["bound"]["network_seconds"], rel=2e-3)
    for chip, numbers in in_chapter("22_scaling", "CHIPS").items():
        assert list(numbers) == [found["chips"][chip][k] for k in ("flops", "hbm", "ici")]


def test_chapter_26_shows_the_recorded_board_and_no_cheat_leads_it():
    found = record("leaderboard")
    rows = [row for row in found["rows"] if row["evaluations"] in (1, 2, 4, 8)]
    (goal,) = [row for row in found["rows"] if row["evaluations"] == 50]
    shown = in_chapter("26_capstone", "RECORDED")
    assert goal["frechet"][0] == pytest.approx(in_chapter("26_capstone", "GOAL"), abs=5e-3)
    board = {(row["name"], row["evaluations"]): row["frechet"] for row in rows}
    assert {name for name, _ in board} == set(shown) and len(rows) == 4 * len(shown)
    for name, values in shown.items():
        for budget, value in zip((1, 2, 4, 8), values, strict=True):
            assert board[name, budget][0] == pytest.approx(value, abs=5.1e-3)
    for name, half in in_chapter("26_capstone", "HALVES").items():
        value, low, high = board[name, 8]
        assert (high - low) / 2 == pytest.approx(half, abs=6e-3)
    for name, digest in found["sha256"].items():
        assert weights.load(name).card.sha256 == digest
    # Cheats that know weights, images and classes: behind an honest baseline at every budget.
    assert len(found["cheats"]) == 8 * 4
    for row in found["cheats"]:
        best = min(
            board[name, row["evaluations"]][0] for name in ("DDIM", "DDIM, with noise on top")
        )
        assert row["status"] == "refused" or row["frechet"][0] > best


def test_chapter_25_shows_the_recorded_marks_and_times():
    marks = record("watermark")
    shown = in_chapter("25_product", "RECORDED")
    assert shown == {name: (r["correlation"], r["found"]) for name, r in marks["rows"].items()}
    assert marks["pictures"] == 200 and all(len(s) == 200 for s in marks["scores"].values())
    assert marks["weights_sha256"] == weights.load("mnist").card.sha256
    times = record("onnx_export")
    for name, told in (("onnxruntime", "RECORDED_MS"), ("jax", "JAX_MS")):
        found = {row["batch"]: row["milliseconds"][name][0] for row in times["rows"]}
        assert in_chapter("25_product", told) == found


def test_chapter_18_shows_the_recorded_latent_students_of_these_weights():
    found = record("latent_consistency")
    shown, other, times, first, floor = (
        in_chapter("18_flow_map", f"LCM_{name}")
        for name in ("RECORD", "OTHER", "MS", "FIRST", "FLOOR")
    )
    assert found["seeds"] == [0, 1, 2] and found["samples"] == 240 and found["first"]["count"] == 12
    assert set(shown) | {"other noise"} == set(found["rows"])
    for name, by_scale in shown.items():
        assert list(by_scale) == [1, 2, 3]
        for w, (distances, share, mean_square) in by_scale.items():
            draws = found["rows"][name][f"w={w}"]
            assert distances == pytest.approx([d["frechet"] for d in draws], abs=5.1e-3)
            for told, what in ((share, "accuracy"), (mean_square, "to_teacher")):
                assert told == pytest.approx(sum(d[what] for d in draws) / 3, abs=5.1e-4)
    for w, told in other.items():
        assert told == pytest.approx(sum(found["rows"]["other noise"][f"w={w}"]) / 3, abs=5.1e-4)
    for name, told in first.items():
        assert told == pytest.approx(found["first"]["to_teacher"][name], abs=5.1e-4)
    assert times == pytest.approx({n: found["milliseconds"][n] for n in times}, abs=0.051)
    assert floor == pytest.approx(found["floor"], abs=5.1e-3)
    assert found["student_sha256"] == weights.load("shapes_lcm").card.sha256
    assert found["teacher_sha256"] == weights.load("shapes_latent").card.sha256


def test_chapter_24_shows_the_recorded_molecules():
    found = record("molecules")["rows"]
    right = (0.95, 1.475, 0.95)  # of the bonds, in ångström
    for row in (row for rows in found.values() for row in rows):
        row["off"] = round(max(abs(a - b) for a, b in zip(row["bonds"], right, strict=True)), 3)
    names = ("error", "turned", "scatter", "off", "near", "right")
    shown = {name: [tuple(row[n] for n in names) for row in rows] for name, rows in found.items()}
    assert in_chapter("24_beyond_images", "RECORDED") == shown


def test_chapter_23_shows_the_recorded_stages_of_these_weights():
    found = record("cascades")
    shown, floor = (in_chapter("23_cascades_video", name) for name in ("RECORDED", "FLOOR"))
    assert found["seeds"] == [0, 1, 2] and len(found["rows"]) == 3 * len(shown)
    for name, rows in found["rows"].items():
        kind, _, seed = name.partition(", seed ")
        levels = {row: v for row, v in rows.items() if row not in ("samples", "floor")}
        assert rows["samples"] == 300 and list(shown[kind]) == list(levels)
        for row, v in levels.items():
            frechet, *others = shown[kind][row][int(seed)]
            assert frechet == pytest.approx(v["frechet"], abs=0.051), (name, row)
            assert others == pytest.approx([v["shape"], v["kept"]], abs=5.1e-4), (name, row)
        assert floor == pytest.approx((rows["floor"]["frechet"], rows["floor"]["shape"]), abs=0.05)
    assert found["base_sha256"] == weights.load("shapes_8").card.sha256
    assert found["stage_sha256"] == weights.load("shapes_8to16").card.sha256


def test_chapter_23_shows_the_recorded_whole_cascade_of_these_weights():
    found = record("cascades")["stack"]
    rows, agree, seconds = (
        in_chapter("23_cascades_video", name) for name in ("STACK", "AGREE", "SECONDS")
    )
    assert found["samples"] == 150 and found["steps"] == 15 and len(found["draws"]) == 3
    assert seconds == found["processor_seconds_a_picture"]
    for draw, recorded in enumerate(found["draws"]):
        shown = {name.replace("enlarged", "enlargement"): v[draw] for name, v in rows.items()}
        for name, (frechet, shape) in shown.items():
            of = recorded.pop(name)
            assert (frechet, shape) == (
                pytest.approx(of["frechet"], abs=0.051), pytest.approx(of["shape"], abs=5.1e-4)
            )  # fmt: skip
        for name, shares in agree.items():
            kind, _, sizes = name.partition(", ")
            of = recorded[f"{kind} agree"].pop(sizes)
            del of["all"]
            assert list(shares[draw]) == pytest.approx([*of.values()], abs=5.1e-4)
        assert recorded == {"true agree": {}, "drawn agree": {}}  # nothing is left out
    assert found["sha256"] == {name: weights.load(name).card.sha256 for name in found["sha256"]}
    assert len(found["sha256"]) == 4


def test_chapter_23_shows_the_recorded_clips_of_these_weights():
    found = record("clips")
    rows, runs = found["rows"], [found["rows"][f"seed {n}"] for n in (1, 2, 3)]
    shown = {name: in_chapter("23_cascades_video", name) for name in ("SCHEDULES", "AT", "LONG")}
    names = ("motion error", "colour spread", "speeds of the data")
    for name, told in shown["SCHEDULES"].items():
        recorded = [rows["data"]] if name == "data" else [run[name] for run in runs]
        for row, numbers in zip(recorded, told, strict=True):
            assert numbers == pytest.approx([row[n] for n in names], abs=0.0051), name
    assert list(shown["AT"]) == found["at"]
    for time, told in shown["LONG"].items():
        for run, (kind, colour) in zip(runs, told, strict=True):
            row = run[f"context time {time:g}"]
            assert kind == pytest.approx(row["kind"], abs=0.0051)
            assert colour == pytest.approx(row["colour"], abs=0.0051)
    assert found["sha256"] == weights.load("clips").card.sha256
    assert rows["seed 1"]["full"] == weights.load("clips").card.metrics["full"]


def test_chapter_25_shows_the_recorded_forgetting_of_these_weights():
    found = record("unlearning")
    shown, after = (in_chapter("25_product", name) for name in ("UNLEARNING", "AFTER"))
    assert found["seeds"] == [0, 1] and found["pictures"] == 250
    assert (found["sevens_to_learn_from"], found["train_steps"]) == (20, 6000)
    assert list(found["rows"]) == [f"{name}, seed {seed}" for name in shown for seed in (0, 1)]
    asked = ("label 7", "any digit", "variation", "others right")
    for row, measured in found["rows"].items():
        name, _, seed = row.partition(", seed ")
        (*shares, frechet), later = shown[name][int(seed)]
        assert shares == [measured[way] for way in asked], row
        assert frechet == pytest.approx(measured["others frechet"], abs=5.1e-3), row
        steps = measured["sevens after steps"]
        assert (list(later), [f"{k}" for k in after]) == (list(steps.values()), list(steps)), row
    right, frechet = in_chapter("25_product", "UNSEEN_OTHERS")
    assert right == found["unseen"]["others right"]
    assert frechet == pytest.approx(found["unseen"]["others frechet"], abs=5.1e-4)
    assert found["weights_sha256"] == weights.load("digits").card.sha256
    assert found["judge_sha256"] == weights.load("digits_classifier").card.sha256
