"""What benchmarks/tpu_compile.py reads out of a compiled program, on texts and small programs."""

import importlib
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from diffusion_course import weights

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "benchmarks"))
roofline = importlib.import_module("tpu_roofline")
programs = importlib.import_module("tpu_programs")
script = importlib.import_module("tpu_compile")

# As libtpu 0.0.42.1 writes it, shortened. S(1) is the memory on the chip.
TEXT = """\
HloModule jit_step, is_scheduled=true

%cut (param_0.1: f32[4096], param_1.1: f32[3,3]) -> f32[128] {
  %param_0.1 = f32[4096]{0:T(1024)} parameter(0)
  %param_1.1 = f32[3,3]{1,0:T(8,128)} parameter(1)
  %slice.7 = f32[128]{0:T(128)} slice(%param_0.1), slice={[128:256]}
  ROOT %sum.1 = f32[128]{0:T(128)} negate(%slice.7)
}

%body (arg.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %gte.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %gte.2 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg.1), index=1
  %tanh.1 = f32[8,128]{1,0:T(8,128)} tanh(%gte.2)
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%gte.1, %tanh.1)
}

%condition (arg.2: (s32[], f32[8,128])) -> pred[] {
  %arg.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %less.1 = pred[]{:T(512)} constant(true)
}

ENTRY %main.9 (x.1: f32[10,200], p.1: f32[4096]) -> f32[10,200] {
  %x.1 = f32[10,200]{1,0:T(8,128)} parameter(0)
  %p.1 = f32[4096]{0:T(1024)} parameter(1)
  %k.1 = f32[3,3]{1,0:T(8,128)} constant({...})
  %start.1 = f32[8,128]{1,0:T(8,128)} constant({...})
  %zero.1 = s32[]{:T(128)} constant(0)
  %h.1 = bf16[20]{0:T(1024)(128)(2,1)} constant({...})
  %near.1 = f32[10,200]{1,0:T(8,128)S(1)} copy(%x.1)
  %fusion.1 = f32[128]{0:T(128)} fusion(%p.1, %k.1), kind=kLoop, calls=%cut
  %all-reduce.1 = f32[10,200]{1,0:T(8,128)} all-reduce(%near.1), channel_id=1
  %both.2 = (f32[4096]{0:T(1024)}, bf16[20]{0:T(1024)(128)(2,1)}) all-reduce-start(%p.1, %h.1)
  %summed.2 = (f32[4096]{0:T(1024)}, bf16[20]{0:T(1024)(128)(2,1)}) all-reduce-done(%both.2)
  %gather.3 = (f32[128]{0:T(128)}, f32[1024]{0:T(1024)}) all-gather-start(%fusion.1)
  %gathered.3 = f32[1024]{0:T(1024)} all-gather-done(%gather.3)
  %tuple.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero.1, %start.1)
  %while.1 = (s32[], f32[8,128]{1,0}) while(%tuple.2), condition=%condition, body=%body
  ROOT %copy.9 = f32[10,200]{1,0:T(8,128)} copy(%near.1)
}
"""
TILED = 16 * 256 * 4  # bytes of f32[10,200] in tiles of 8 × 128


def test_an_array_takes_whole_tiles_of_its_two_fastest_axes():
    (image,) = roofline.buffers("bf16[64,14,14,32]{3,2,1,0:T(8,128)(2,1)}")
    assert image.plain == 64 * 14 * 14 * 32 * 2
    assert image.padded == 64 * 14 * 16 * 128 * 2
    # The batch as the fastest axis: 64 become 128, and 32 channels are four times 8.
    (turned,) = roofline.buffers("bf16[64,14,14,32]{0,3,2,1:T(8,128)(2,1)}")
    assert turned.padded == 2 * image.plain
    (near, number, mask) = roofline.buffers("(s8[5]{0:T(128)S(1)}, f32[], pred[3,3]{1,0:T(8,128)})")
    assert (near.plain, near.padded, near.space) == (5, 128, 1)
    assert (number.plain, number.padded, number.space) == (4, 4, 0)
    assert (mask.plain, mask.padded) == (9, 1024)
    assert roofline.buffers("token[]") == []


def test_collectives_are_counted_by_kind_where_they_start():
    assert roofline.collectives(TEXT) == {
        "all-reduce": {"count": 2, "bytes": 10 * 200 * 4 + 4096 * 4 + 20 * 2},
        "all-gather": {"count": 1, "bytes": 1024 * 4},
    }


def test_bytes_go_to_the_memory_that_holds_them():
    found = roofline.traffic(TEXT)
    # To the chip and back by two copies, and the all-reduce reads what lies there.
    assert found["vmem"] == 3 * TILED
    reduced = 2 * (4096 * 4) + 2 * (1024 * 2)  # what it reads, and what it writes
    moved = 3 * TILED + reduced
    # The fusion reads one cut of p, 128 numbers, and all of the kernel.
    moved += 128 * 4 + 128 * 4 + 8 * 128 * 4
    moved += 128 * 4 + 1024 * 4  # the gather
    moved += 2 * 8 * 128 * 4  # one turn of the loop
    assert found["hbm"] == moved
    lost = 3 * (TILED - 8000) + (8 * 128 - 9) * 4 + 2 * (1024 - 20) * 2
    assert found["plain"] == moved - lost
    assert roofline.traffic(TEXT, turns=25)["hbm"] == moved + 24 * 2 * 8 * 128 * 4


def test_the_arrays_that_lose_most_to_tiles_come_first():
    first, second = roofline.padding(TEXT)
    assert first == {
        "array": "f32[10,200]", "count": 3, "bytes": 3 * 8000, "padded": 3 * TILED
    }  # fmt: skip
    assert second["array"] == "bf16[20]"


CHIP = roofline.Chip(flops=100.0, hbm=10.0, ici=5.0, memory=1.0, source="invented")


@pytest.mark.parametrize(
    ("flops", "hbm", "reduced", "limit", "seconds"),
    [(500, 30, 0, "compute", 5), (500, 70, 0, "memory", 7), (500, 70, 40, "network", 12)],
)
def test_the_bound_is_the_largest_of_three_times(flops, hbm, reduced, limit, seconds):
    moved = {"all-reduce": {"count": 1, "bytes": reduced}}
    found = roofline.bound(CHIP, flops, hbm, moved, devices=4)
    assert (found["limit"], found["seconds"]) == (limit, pytest.approx(seconds))
    # A ring of four: three quarters of the bytes are sent to sum them, and again to share the sum.
    assert found["network_seconds"] == pytest.approx(2 * 0.75 * reduced / 5)
    assert found["intensity"] == pytest.approx(flops / hbm)
    assert roofline.bound(CHIP, flops, hbm, moved, devices=1)["network_seconds"] == 0


def test_each_device_sends_what_its_neighbours_lack():
    def sent(kind, devices):
        moved = {kind: {"count": 1, "bytes": 40}}
        return 5 * roofline.bound(CHIP, 1, 1, moved, devices)["network_seconds"]

    # Of 40 gathered bytes a device has ten at first: 30 pass each link of the ring. What a scatter
    # returns is a quarter of what it reads.
    assert sent("all-gather", 4) == pytest.approx(30)
    assert sent("reduce-scatter", 4) == pytest.approx(120)
    assert sent("all-to-all", 4) == pytest.approx(30)
    assert sent("collective-permute", 4) == pytest.approx(40)


def test_the_chips_are_those_of_the_topologies():
    assert {name.split("-")[0] for name in script.TOPOLOGIES} == set(roofline.CHIPS)
    assert all(math.prod(chip[:4]) > 0 and chip.source for chip in roofline.CHIPS.values())


def lowered(batch):
    function, shapes, _ = programs.training("toy2d", "float32", batch)
    return function.trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()


def test_a_compilation_s_name_depends_on_program_devices_and_compiler_alone():
    text = lowered(4)
    assert lowered(4) == text
    key = roofline.key(text, "v5e-1", "1.0")
    assert key == roofline.key(lowered(4), "v5e-1", "1.0") and len(key) == 16
    others = {
        roofline.key(lowered(6), "v5e-1", "1.0"),
        roofline.key(text, "v6e-1", "1.0"),
        roofline.key(text, "v5e-1", "1.1"),
    }
    assert len(others | {key}) == 4


def test_the_cost_of_a_loop_is_that_of_one_turn():
    # Hence a sampler's operations are multiplied by its steps.
    def turns(n):
        def run(x):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), ()), x, None, length=n)[0]

        cost = jax.jit(run).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile()
        return cost.cost_analysis()["flops"]

    assert turns(3) == pytest.approx(turns(30), rel=0.01)


def test_programs_have_the_shapes_of_their_recipes():
    step, (state, (x, labels), key), split = programs.training("toy2d", "float32", 6)
    assert (x.shape, labels.shape, split) == ((6, 2), (6,), (False, True, False))
    new, loss = jax.eval_shape(step, state, (x, labels), key)
    assert loss.shape == () and new.params.shape == state.params.shape
    draw, shapes, split = programs.sampler("toy2d", "float32", 6)
    assert jax.eval_shape(draw, *shapes).shape == (6, 2) and len(split) == len(shapes)
    found = {
        name: tuple(a.shape for a in programs.example(programs.recipes.RECIPES[name], 5))
        for name in ("mnist", "mnist_latent", "shapes_judge", "shapes_text")
    }
    assert found == {
        "mnist": ((5, 28, 28, 1), (5,)),
        "mnist_latent": ((5, 7, 7, 4), (5,)),
        "shapes_judge": ((5, 32, 32, 3), (5, 4)),
        "shapes_text": ((5, 32, 32, 3), (5, 8)),
    }
    assert programs.evaluations("mnist") == 25 and programs.evaluations("mnist_meanflow") == 4


def test_wanted_programs_are_named_once_and_cover_every_recipe():
    wanted, known = script.wanted(), programs.recipes.RECIPES
    names = [script.name_of(program) for program in wanted]
    assert len(set(names)) == len(names)
    assert names[:2] == [f"mnist, training step, {d}, 64, v5e-1" for d in ("bfloat16", "float32")]
    half = {name for name, recipe in known.items() if programs.in_bfloat16(recipe)}
    for topology in ("v5e-1", "v6e-1"):
        for dtype, able in (("float32", set(known)), ("bfloat16", half)):
            kept = [p for p in wanted if (p["topology"], p["dtype"]) == (topology, dtype)]
            assert {p["recipe"] for p in kept if p["what"] == "training step"} == able
            drawn = {p["recipe"] for p in kept if p["what"] == "sampler"}
            assert drawn == set(script._DRAWN) & able
    for topology in ("v5e-8", "v2-8"):
        sharded = {p["recipe"] for p in wanted if p["topology"] == topology}
        assert sharded == {"mnist", "mnist_dit", "mnist_latent", "toy2d"}


def test_what_is_left_out_in_bfloat16_cannot_compute_in_it():
    known = programs.recipes.RECIPES
    able = {name: programs.in_bfloat16(recipe) for name, recipe in known.items()}
    assert able["shapes_control"] and able["shapes_lora"] and not all(able.values())
    for name in (name for name, yes in able.items() if not yes):
        with pytest.raises(ValueError, match="dtype"):
            weights.build(known[name].model, dtype="bfloat16")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """An empty record, four programs, and a compiler that says when it was asked for what."""
    topologies = ("v5e-1", "v6e-1", "v5e-8", "v2-8")
    wanted = [
        programs.Program("toy2d", "training step", "float32", 8, t)._asdict() for t in topologies
    ]
    asked = []

    def attempt(program):
        asked.append((program["topology"], program["known"]))
        if program["known"] == "as before":
            return "unchanged"
        if program["topology"] == "v6e-1":
            return script._plain(program) | {"failed": "no such chip"}
        if len(asked) == 3:
            raise KeyboardInterrupt
        return script._plain(program) | {"key": "as before", "compile_seconds": 1.0}

    monkeypatch.setattr(script, "RESULTS", tmp_path / "record.json")
    monkeypatch.setattr(script, "wanted", lambda: wanted)
    monkeypatch.setattr(script, "attempt", attempt)
    monkeypatch.setattr(script, "compiler_version", lambda: "1.0")
    return asked


def test_a_run_that_is_stopped_goes_on_where_it_was(recorded):
    with pytest.raises(KeyboardInterrupt):
        script.compile_missing([], 1)
    kept = script.read()
    assert [row["topology"] for row in kept["programs"].values()] == ["v5e-1", "v6e-1"]
    assert [name.split(", ")[-1] for name in kept["missing"]] == ["v5e-8", "v2-8"]
    recorded += [("", "")]  # the third question is behind us
    script.compile_missing([], 1)
    # What has failed or was cut off is tried again; what was done is only looked at.
    assert [k for t, k in recorded if t] == [None, None, None, "as before", None, None, None]
    found = script.read()
    assert not found["missing"] and not found["complete"]  # one has failed
    assert len(found["programs"]) == 4


def test_words_choose_programs_and_a_limit_of_time_starts_no_other(recorded):
    script.compile_missing(["v5e", "float32"], 0)
    assert recorded == []
    script.compile_missing(["v5e-1", "float32"], 1)
    assert [topology for topology, _ in recorded] == ["v5e-1"]
    assert len(script.read()["missing"]) == 3


RECORD = script.read()  # before a test looks elsewhere
SHOWN = (COURSE / "docs" / "tpu.md").read_text(encoding="utf-8")


def test_the_page_shows_what_is_recorded():
    # Written by `tpu_compile.py --page`.
    assert f"{script._BEGIN}\n{script.table(RECORD)}\n{script._END}" in SHOWN
    dates = {row["date"] for row in RECORD["programs"].values()}
    assert RECORD["libtpu"] in SHOWN and all(date in SHOWN for date in dates)


def test_what_the_page_says_of_mnist_s_networks():
    def of(name):
        return RECORD["programs"][f"mnist{name}, v5e-1"]

    dit = of("_dit, training step, bfloat16, 128")
    assert dit["bound"]["limit"] == "memory"
    assert (round(dit["hbm_bytes"] / 1e6), round(1e6 * dit["bound"]["seconds"])) == (168, 206)
    assert round(1 - dit["hbm_bytes_unpadded"] / dit["hbm_bytes"], 2) == 0.19
    eight = RECORD["programs"]["mnist_dit, training step, bfloat16, 512, v5e-8"]
    assert (eight["bound"]["limit"], round(1e6 * eight["bound"]["seconds"])) == ("compute", 88)
    many = of("_dit, training step, bfloat16, 512")
    assert round(many["hbm_bytes"] / 1e9, 2) == 2.48
    rates = [round(row["images_per_second_at_most"] / 1e3) for row in (dit, many)]
    assert rates == [623, 169]
    small, large = (of(f", training step, bfloat16, {batch}") for batch in (64, 512))
    assert small["bound"]["limit"] == large["bound"]["limit"] == "compute"
    assert {round(row["images_per_second_at_most"] / 1e6, 2) for row in (small, large)} == {1.07}
    assert [round(1e6 * row["bound"]["seconds"]) for row in (small, large)] == [60, 479]
    assert round(1 - small["hbm_bytes_unpadded"] / small["hbm_bytes"], 2) == 0.04
    assert round(small["bound"]["intensity"]) == 711 and "711 for each byte" in SHOWN


def test_the_recorded_bounds_follow_from_the_recorded_numbers():
    good = {name: row for name, row in RECORD["programs"].items() if "failed" not in row}
    assert good and set(good).isdisjoint(RECORD["missing"])
    for name, row in good.items():
        assert (
            script.name_of(row) == name and row["devices"] == script.TOPOLOGIES[row["topology"]][1]
        )
        chip = roofline.CHIPS[row["topology"].split("-")[0]]
        flops = row["turns"] * row["flops"]
        found = roofline.bound(chip, flops, row["hbm_bytes"], row["collectives"], row["devices"])
        assert found == pytest.approx(row["bound"])
        assert row["images_per_second_at_most"] == pytest.approx(row["batch"] / found["seconds"])
        assert row["memory"]["peak"] < chip.memory
        assert 0 < row["hbm_bytes_unpadded"] <= row["hbm_bytes"]


@pytest.mark.parametrize(
    "network, exact, rounded",
    [("mnist", 175, 85), ("mnist_dit", 119, 86), ("mnist_latent", 90, 34)],
)
def test_what_the_page_says_of_compiling_exact_products(network, exact, rounded):
    name = f"{network}, sampler, {{}}, 512, v5e-1"
    took = [
        RECORD["programs"][name.format(dtype)]["compile_processor_seconds"]
        for dtype in ("float32", "bfloat16")
    ]
    assert [round(seconds) for seconds in took] == [exact, rounded]


def test_what_the_page_says_of_the_plane_s_network():
    one, eight = (
        RECORD["programs"][f"toy2d, training step, float32, 512, v5e-{n}"] for n in (1, 8)
    )
    parameters = 83_714
    assert f"{parameters:,}" in SHOWN
    on_chip = one["vmem_bytes"] / (one["vmem_bytes"] + one["hbm_bytes"])
    assert 0.9 < on_chip < 0.92
    # Read and written: weights, average, two moments.
    assert 2 * 4 * 4 * parameters / one["hbm_bytes"] == pytest.approx(0.98, abs=5e-3)
    assert round(one["bytes_accessed"] / 1e6) == 37
    assert round(one["bytes_accessed"] / one["hbm_bytes"]) == 14
    vectors = one["padding"][0]
    assert vectors["array"] == f"f32[{parameters}]"
    assert vectors["padded"] / vectors["bytes"] - 1 == pytest.approx(3e-3, abs=5e-4)
    assert (one["bound"]["limit"], eight["bound"]["limit"]) == ("memory", "memory")
    assert eight["bound"]["seconds"] == pytest.approx(one["bound"]["seconds"], rel=1e-3)
    assert round(eight["flops"] / one["flops"], 2) == 0.14
    assert eight["collectives"] == {"all-reduce": {"count": 1, "bytes": 4 * (parameters + 1)}}
    assert round(1e6 * eight["bound"]["network_seconds"], 1) == 2.9
    drawn = RECORD["programs"]["toy2d, sampler, float32, 512, v5e-1"]
    assert drawn["bound"]["limit"] == "compute" and drawn["turns"] == 50
    newer = RECORD["programs"]["toy2d, sampler, float32, 512, v6e-1"]
    assert newer["bound"]["limit"] == "memory"
    assert drawn["hbm_bytes_unpadded"] == pytest.approx(49 * 4 * parameters, rel=2e-3)
    assert [round(drawn[f"hbm_bytes{k}"] / 1e6, 1) for k in ("_unpadded", "")] == [16.4, 18.5]
