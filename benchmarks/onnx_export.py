"""Writes the digits' denoiser as an ONNX file, and records how it was checked.

    pip install -c constraints.txt -e ".[lab,onnx]"
    python benchmarks/onnx_export.py            # converts, checks and records
    python benchmarks/onnx_export.py --check    # only checks the file that is there

The file, diffusion_course/weights/digits.onnx, holds the network and its weights: inputs x
[B, 8, 8, 1], t [B] and label [B], output v [B, 8, 8, 1]. The converter does not know how the course
chooses a convolution for a CPU, so the network is traced with the plain one.
"""

import argparse
import json
import logging
import platform
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from diffusion_course import files, weights
from diffusion_course.models import fast
from diffusion_course.weights.card import sha256

COURSE = Path(__file__).resolve().parent.parent
MODEL = COURSE / "diffusion_course" / "weights" / "digits.onnx"
RECORD = COURSE / "benchmarks" / "results" / "onnx_export.json"
NAMES, OPSET, REPEATS = ["x", "t", "label"], 21, 30


def convert(released: weights.Released) -> bytes:
    """The network as the content of an ONNX file that takes any batch."""
    logging.disable(logging.WARNING)  # plugins of the converter for packages that are not here
    from jax2onnx import to_onnx

    ways = fast.conv3x3, fast.dense
    fast.conv3x3, fast.dense = fast.plain_conv, fast.plain_dense  # no choice of a platform
    try:
        (b,) = export.symbolic_shape("B")
        shapes = [((b, 8, 8, 1), jnp.float32), ((b,), jnp.float32), ((b,), jnp.int32)]
        inputs = [jax.ShapeDtypeStruct(*each) for each in shapes]
        network = lambda x, t, label: released.model(x, t, label)  # noqa: E731
        graph = to_onnx(network, inputs, model_name="digits", opset=OPSET, input_names=NAMES,
                        output_names=["v"])  # fmt: skip
    finally:
        fast.conv3x3, fast.dense = ways
    note = graph.metadata_props.add()
    note.key, note.value = "weights_sha256", released.card.sha256
    return graph.SerializeToString()


def requests(batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    return {
        "x": np.float32(rng.normal(size=(batch, 8, 8, 1))),
        "t": np.float32(rng.uniform(0, 1, batch)),
        "label": np.int32(rng.integers(0, 11, batch)),
    }


def measure(released: weights.Released) -> list[dict]:
    """Differences and times of the file in onnxruntime (one thread) beside the jitted model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODEL), options)
    forward = jax.jit(lambda model, *given: model(*given))
    rows = []
    for batch in (1, 2, 16, 64):
        given = requests(batch)
        ways = {
            "onnxruntime": lambda given=given: session.run(None, given)[0],
            "jax": lambda given=given: np.asarray(forward(released.model, *given.values())),
        }
        out = {name: run() for name, run in ways.items()}
        seconds = {name: [] for name in ways}
        for _ in range(REPEATS):  # in turns, so that both meet the same disturbances
            for name, run in ways.items():
                begin = perf_counter()
                run()
                seconds[name].append(perf_counter() - begin)
        difference = float(np.abs(out["onnxruntime"] - out["jax"]).max())
        milliseconds = {n: [round(1e3 * q, 3) for q in np.quantile(s, (0.1, 0.5))]
                        for n, s in seconds.items()}  # fmt: skip
        rows.append({"batch": batch, "difference": difference, "milliseconds": milliseconds})
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    released = weights.load("digits")
    if not arguments.check:
        files.write(MODEL, convert(released))
    rows = measure(released)
    if max(row["difference"] for row in rows) > 1e-4:
        raise SystemExit("the ONNX file and the model differ by more than 1e-4")
    if not arguments.check:
        packages = ("jax", "flax", "jax2onnx", "onnx", "onnxruntime")
        record = {
            "onnx": sha256(MODEL.read_bytes()),
            "bytes": MODEL.stat().st_size,
            "weights_sha256": released.card.sha256,
            "opset": OPSET,
            "milliseconds": "10 % and 50 % quantiles of 30 runs in turns; 1 thread",
            "versions": {name: version(name) for name in packages},
            "machine": platform.machine(),
            "rows": rows,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
