"""What crosses the sandbox's wall: honest messages arrive as they are, all others are refused."""

import base64
import contextlib
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import examples

from diffusion_course.grading import wire
from diffusion_course.grading.exercise import Failure
from diffusion_course.grading.inputs import GaussianDenoiser

many = settings(examples, max_examples=100)

DTYPES = sorted(wire._DTYPES)


def across(value):
    """What arrives: everything is JSON on the way."""
    return wire.decode(json.dumps(value).encode())


def array(**changes):
    """A message with an array of shape [2, 3]."""
    data = base64.b64encode(np.arange(6, dtype=np.float32).tobytes()).decode()
    return {"dtype": "float32", "shape": [2, 3], "data": data} | changes


# -------------------------------------------------------------------------- honest messages


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
def test_an_array_of_any_dtype_and_shape_arrives_as_it_is(dtype, shape):
    value = np.random.default_rng(5).integers(0, 120, shape).astype(dtype)
    got = wire.unpack(across(wire.pack(value)))
    assert got.dtype == dtype and got.shape == shape
    np.testing.assert_array_equal(got, value)


@many
@given(hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, min_side=0)))
def test_not_a_bit_of_an_array_is_lost(value):
    got = wire.unpack_array(across(wire.pack(value)))
    assert got.tobytes() == value.tobytes() and got.shape == value.shape


def test_an_array_in_another_order_of_memory_arrives_in_its_own():
    whole = np.arange(24.0).reshape(2, 3, 4)
    for value in (whole.T, whole[:, ::-2], whole.T[::2]):
        np.testing.assert_array_equal(wire.unpack(across(wire.pack(value))), value)


@pytest.mark.parametrize("value", [3, -2.75, 1e-300, "vp", "β\n", "", True, None, 10**30])
def test_plain_values_arrive_as_they_are(value):
    got = wire.unpack(across(wire.pack(value)))
    assert got == value and type(got) is type(value)


def test_a_function_arrives_as_an_equal_one():
    denoiser = GaussianDenoiser(mean=0.3, std=1.7)
    got = wire.unpack(across(wire.pack(denoiser)))
    assert got == denoiser
    assert got(np.float64(0.4), 0.8, 0.6) == denoiser(np.float64(0.4), 0.8, 0.6)


def test_an_outcome_of_arrays_arrives_as_it_is():
    outcome = (np.array([1.5, np.nan, -np.inf]), np.array(7), np.zeros((0, 2), bool))
    got = wire.unpack_outcome(across(wire.pack_outcome(outcome)))
    assert len(got) == 3
    for a, b in zip(got, outcome, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("status", ["error", "not attempted"])
def test_a_failure_arrives_as_it_is(status):
    failure = Failure(status, "your code raised ValueError: β ≠ 1")
    assert wire.unpack_outcome(across(wire.pack_outcome(failure))) == failure


@pytest.mark.parametrize("dtype", ["g", ">f8", ">i4", "G"])
def test_unusual_dtypes_of_honest_arrays_arrive_as_plain_ones(dtype):
    value = np.array([3, 0, 117]).astype(dtype)
    (got,) = wire.unpack_outcome(across(wire.pack_outcome((value,))))
    np.testing.assert_array_equal(got, value)
    assert got.dtype.kind == value.dtype.kind


def test_an_honest_list_of_many_numbers_is_no_attack():
    outcome = tuple(np.float64(i) for i in range(24))
    got = wire.unpack_outcome(across(wire.pack_outcome(outcome)))
    assert got.status == "error" and "24 arrays" in got.message


# ------------------------------------------------------------------------- all the others


@pytest.mark.parametrize(
    "message",
    [
        array(dtype="object"),
        array(dtype="O"),
        array(dtype="float128"),
        array(dtype="<f4"),
        array(dtype="datetime64[s]"),
        array(dtype="U6"),
        array(dtype="V4"),
        array(dtype="f4,f4"),
        array(dtype=None),
        array(dtype=["float32"]),
        array(dtype={"names": ["a"]}),
        array(shape=[-2, -3]),
        array(shape=[2, -1]),
        array(shape=[6, 1.0]),
        array(shape=[True, 6]),
        array(shape=["6"]),
        array(shape=6),
        array(shape=None),
        array(shape={"0": 6}),
        array(shape=[10**9, 10**9]),
        array(shape=[10**400]),
        array(shape=[1] * 17 + [6]),
        array(shape=[2, 4]),
        array(shape=[2, 2]),
        array(shape=[]),
        array(shape=[0], data="AAAA"),
        array(shape=[0] + [wire.MAX_BYTES] * 9, data=""),
        array(data="not base64!"),
        array(data="AAA"),
        array(data="AAAA\n" * 8),
        array(data="ββββ"),
        array(data=""),
        array(data=None),
        array(data=7),
        array(data=["AAAA"]),
        {"dtype": "float32", "shape": [2, 3]},
        {},
        [],
        [1, 2],
        "array",
        None,
        3.5,
        True,
    ],
    ids=lambda m: str(m)[:50],
)  # fmt: skip
def test_a_message_that_is_no_array_is_malformed(message):
    with pytest.raises(wire.Malformed):
        wire.unpack_array(message)
    with pytest.raises(wire.Malformed):
        wire.unpack_outcome({"arrays": [message]})


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "right",
        7,
        {},
        {"arrays": None},
        {"arrays": {"0": array()}},
        {"arrays": "AAAA"},
        {"arrays": [array()] * 17},
        {"status": "right", "message": ""},
        {"status": "partly right", "message": ""},
        {"status": "timeout", "message": ""},
        {"status": ["error"], "message": ""},
        {"status": "error"},
        {"status": "error", "message": None},
        {"status": "error", "message": ["x"]},
        {"message": "x"},
    ],
    ids=lambda m: str(m)[:50],
)
def test_a_message_that_is_no_outcome_is_malformed(message):
    with pytest.raises(wire.Malformed):
        wire.unpack_outcome(message)


def test_a_long_message_is_cut():
    got = wire.unpack_outcome({"status": "error", "message": "x" * 100_000})
    assert len(got.message) == 400


@pytest.mark.parametrize("text", ["\ud800", "a \udcff b", "\udfff" * 500])
def test_a_message_can_be_written_to_a_file(text):
    got = wire.unpack_outcome(across({"status": "error", "message": text}))
    assert len(got.message.encode("utf-8")) <= 400


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"{'a': 1}",
        b'{"a": 1',
        b'{"a": 1} {"b": 2}',
        b"\xff\xfe\x00",
        b"\x80\x04K\x01.",  # a pickle
        b"\x00" * 50,
        b"[" * 10**6,
        b'{"a":' * 10**6,
        b"[" * 10**6 + b"]" * 10**6,
        b"9" * 10**6,
        b"[" + b"-" * 99 + b"1]",
        b'"\\ud8',
    ],
    ids=lambda line: str(line[:20]),
)  # fmt: skip
def test_a_line_that_is_no_json_is_malformed(line):
    with pytest.raises(wire.Malformed):
        wire.decode(line)


def test_a_line_may_be_long_but_not_too_long():
    longest = b'"' + b"x" * (wire.MAX_BYTES - 2) + b'"'
    assert len(wire.decode(longest)) == wire.MAX_BYTES - 2
    with pytest.raises(wire.Malformed, match="too long"):
        wire.decode(longest + b" ")


@many
@given(st.binary(max_size=200))
@example(b'{"a": NaN}')
@example('{"a": "β"}'.encode("utf-16"))
def test_any_bytes_are_json_or_malformed(line):
    with contextlib.suppress(wire.Malformed):
        wire.decode(line)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["arrays", "status", "message", "dtype", "shape", "data", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
sizes = st.integers(-1, 3) | st.sampled_from([10**4, wire.MAX_BYTES, 2**63, True, 1.0])
arrays = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "object", "str"]) | json_values,
        "shape": st.lists(sizes, max_size=18) | json_values,
        "data": st.binary(max_size=32).map(lambda b: base64.b64encode(b).decode()) | json_values,
    }
)
outcomes = st.fixed_dictionaries({"arrays": st.lists(arrays | json_values, max_size=3)})


@many
@given(json_values | arrays)
def test_anything_is_an_array_or_malformed(message):
    try:
        got = wire.unpack_array(message)
    except wire.Malformed:
        return
    assert isinstance(got, np.ndarray) and got.dtype.kind in "biufc" and got.nbytes <= 32


@many
@given(json_values | outcomes)
def test_anything_is_an_outcome_or_malformed(message):
    try:
        got = wire.unpack_outcome(message)
    except wire.Malformed:
        return
    if isinstance(got, Failure):
        assert got.status in ("error", "not attempted") and len(got.message) <= 400
    else:
        assert all(isinstance(part, np.ndarray) for part in got)
