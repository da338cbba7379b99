"""The ONNX file of the digits' denoiser: the released weights, in a process without JAX."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from diffusion_course import weights

MODEL = weights.FOLDER / "digits.onnx"
RECORD = Path(__file__).parent.parent / "benchmarks" / "results" / "onnx_export.json"

CLIENT = """
import sys, numpy as np, onnxruntime
net = onnxruntime.InferenceSession(sys.argv[1])
given = dict(np.load("given.npz"))
np.save("v.npy", net.run(None, given)[0])
assert not {"jax", "flax", "diffusion_course"} & set(sys.modules)
print(net.get_modelmeta().custom_metadata_map["weights_sha256"])
"""


def test_the_onnx_file_is_the_recorded_one():
    note = json.loads(RECORD.read_text("utf-8"))
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() == note["onnx"]
    assert max(row["difference"] for row in note["rows"]) < 1e-4


def test_a_process_without_jax_gets_the_numbers_of_the_released_model(tmp_path):
    released, rng = weights.load("digits"), np.random.default_rng(0)
    x = np.float32(rng.normal(0.2, 1.3, (11, 8, 8, 1)))
    t, label = np.linspace(0, 1, 11, dtype=np.float32), np.arange(11, dtype=np.int32)
    np.savez(tmp_path / "given.npz", x=x, t=t, label=label)
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, str(MODEL)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == released.card.sha256
    expected = np.asarray(jax.jit(lambda model, *given: model(*given))(released.model, x, t, label))
    found = np.load(tmp_path / "v.npy")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.5
