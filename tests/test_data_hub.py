"""Data sets of the hub without the hub: real or tiny local copies, and servers on this computer."""

import contextlib
import http.server
import io
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from diffusion_course import data
from diffusion_course.data import DataUnavailableError, cache, hub

REAL = Path(__file__).parents[2] / "shared" / "data"
NAMES = ["mnist", "fashion_mnist", "cifar10"]
real_copies = [
    pytest.param(n, marks=pytest.mark.skipif(not (REAL / n).is_dir(), reason="no local copy"))
    for n in ("mnist", "cifar10")
]


@pytest.fixture(autouse=True)
def on_an_island(monkeypatch, tmp_path):
    """An empty cache, no local copy, and no way to any computer but this one."""
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("DIFFUSION_COURSE_DATA", raising=False)
    connect = socket.socket.connect

    def connect_to_myself(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test wanted to talk to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_myself)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def png(pixels) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(name: str, n: int, seed: int = 0):
    """Random pictures, uint8 and not square, with labels; the first holds both extremes."""
    rng = np.random.default_rng(seed)
    shape = (n, 6, 9, 3) if name == "cifar10" else (n, 6, 9)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
    return pixels, rng.integers(0, 10, n)


def table(name: str, pixels, labels, label_names=tuple("jihgfedcba"), column=None):
    """A `datasets.Dataset` with the hub's columns."""
    import datasets

    column = column or hub.SPECS[name].column
    label = datasets.ClassLabel(names=list(label_names)) if label_names else datasets.Value("int64")
    return datasets.Dataset.from_dict(
        {column: [{"bytes": png(p), "path": None} for p in pixels], "label": labels.tolist()},
        features=datasets.Features({column: datasets.Image(), "label": label}),
    )


@contextlib.contextmanager
def quiet():
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def small(monkeypatch):
    """As if the pictures of the hub had the size of `pictures`."""
    small = {n: s._replace(shape=(6, 9, s.shape[2])) for n, s in hub.SPECS.items()}
    monkeypatch.setattr(hub, "SPECS", small)


@pytest.fixture
def copies(monkeypatch, tmp_path, small):
    """A folder of local copies, announced by the variable; call it to write one."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(folder))

    def write(name, file="train-00000-of-00001.parquet", n=13, seed=0, **options):
        pixels, labels = pictures(name, n, seed)
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            table(name, pixels, labels, **options).to_parquet(str(path))
        return pixels, labels

    write.folder = folder
    return write


def load(name, split="train"):
    return data.load(name, split, progress=False)


def as_stored(dataset):
    """Pixels 0..255 of the images in [-1, 1], without the channel axis of grey ones."""
    pixels = np.rint((dataset.x.astype(np.float64) + 1) * 127.5).astype(np.uint8)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def cache_files() -> list[Path]:
    return sorted((Path(os.environ["DIFFUSION_COURSE_CACHE"]) / "data").glob("*"))


# Local copies


@pytest.mark.parametrize("name", NAMES)
def test_a_local_copy_gives_back_the_pixels_labels_and_names_it_was_written_with(name, copies):
    pixels, labels = copies(name)
    loaded = load(name)
    assert loaded.x.shape == (13, 6, 9, 3 if name == "cifar10" else 1)
    np.testing.assert_array_equal(as_stored(loaded), pixels)
    assert loaded.x.min() == -1 and loaded.x.max() == 1
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.label_names == tuple("jihgfedcba")  # those of the files, not the usual ones
    assert loaded.card.name == name and loaded.card.licence


@pytest.mark.parametrize("name", real_copies)
def test_the_real_copies_load_with_ten_balanced_classes(name, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(REAL))
    loaded = load(name, "test")
    size, channels = (28, 1) if name == "mnist" else (32, 3)
    assert loaded.x.shape == (len(loaded), size, size, channels)
    assert loaded.label_names == hub.SPECS[name].label_names
    counts = np.bincount(loaded.labels, minlength=10)
    assert counts.min() > 0.08 * len(loaded) and counts.max() < 0.12 * len(loaded)
    if name == "mnist":  # the first labels of the published test set
        assert loaded.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize("name", real_copies)
def test_the_cache_gives_exactly_what_decoding_gave(name, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(REAL))
    first, second = load(name, "test"), load(name, "test")
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.label_names == second.label_names and first.card == second.card


def test_parts_are_joined_in_their_order(copies):
    second, _ = copies("mnist", "train-00001-of-00002.parquet", n=5, seed=1)
    first, _ = copies("mnist", "train-00000-of-00002.parquet", n=4, seed=2)
    copies("mnist", "test-00000-of-00001.parquet", n=3, seed=3)
    np.testing.assert_array_equal(as_stored(load("mnist")), np.concatenate([first, second]))


def test_the_hub_s_inner_folder_is_found(copies):
    pixels, _ = copies("cifar10", "plain_text/train-00000-of-00001.parquet")
    np.testing.assert_array_equal(as_stored(load("cifar10")), pixels)


def test_a_copy_that_has_lost_its_label_names_gets_the_usual_ones(copies):
    copies("fashion_mnist", label_names=())
    assert load("fashion_mnist").label_names[-1] == "Ankle boot"


def test_a_missing_part_is_an_error_not_a_smaller_data_set(copies):
    copies("mnist", "train-00000-of-00002.parquet")
    with pytest.raises(DataUnavailableError, match=r"1 train file.* names count 2"):
        load("mnist")


def test_a_folder_without_the_data_set_is_an_error_even_if_the_hub_is_there(copies, monkeypatch):
    monkeypatch.setattr(hub, "hub_reachable", lambda: pytest.fail("the hub was asked"))
    copies("cifar10")
    with pytest.raises(DataUnavailableError, match=r"no mnist/train-.*unset DIFFUSION_COURSE") as e:
        load("mnist")
    assert f"{copies.folder} holds cifar10" in str(e.value)
    assert data.source_of("mnist") == "unavailable"
    assert data.source_of("cifar10") == "local copy"
    assert data.source_of("cifar10", "test") == "unavailable"


def test_a_folder_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataUnavailableError, match="gone is not a folder"):
        load("mnist")


def test_a_copy_with_other_columns_says_which(copies):
    copies("cifar10", column="picture")
    with pytest.raises(DataUnavailableError, match=r"no column \['img'\], only .*picture"):
        load("cifar10")


def test_a_damaged_copy_is_named(copies):
    copies("mnist")
    (copies.folder / "mnist" / "train-00000-of-00001.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(
        DataUnavailableError, match=r"local copy of mnist in .* could not be loaded"
    ):
        load("mnist")
    assert not cache_files()


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", "")
    assert data.local_folder() is None


def test_the_variable_names_the_local_folder(monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", os.path.join("~", "copies"))
    assert data.local_folder() == Path.home() / "copies"


def test_loading_leaves_the_bars_of_datasets_as_they_were(copies):
    import datasets

    copies("mnist")
    load("mnist")
    assert not datasets.are_progress_bars_disabled()


def test_the_bar_can_be_switched_off(copies, capfd):
    copies("mnist")
    load("mnist")
    assert capfd.readouterr() == ("", "")
    copies("mnist", seed=1)
    data.load("mnist")
    assert "decoding" in capfd.readouterr().err


# The cache


def test_the_second_load_decodes_nothing(copies, monkeypatch):
    copies("mnist")
    first = load("mnist")
    monkeypatch.setattr(hub, "decode", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(load("mnist").x, first.x)
    assert len(cache_files()) == 1 and cache_files()[0].suffix == ".npz"


def test_a_changed_copy_is_decoded_again(copies):
    copies("mnist", seed=1)
    before = load("mnist")
    file = copies.folder / "mnist" / "train-00000-of-00001.parquet"
    pixels, _ = copies("mnist", seed=2)
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))  # however coarse the disk's clock
    np.testing.assert_array_equal(as_stored(load("mnist")), pixels)
    assert (as_stored(before) != pixels).any()


def test_name_size_and_time_of_the_files_each_tell_one_source_from_another(tmp_path):
    def place(name="train-0.parquet", content=b"abc", time_ns=10**18, data_set="mnist"):
        file = tmp_path / name
        file.write_bytes(content)
        os.utime(file, ns=(0, time_ns))
        return cache.location(data_set, "train", [file])

    others = [
        place(name="train-1.parquet"),
        place(content=b"abcd"),
        place(time_ns=10**18 + 10**9),
        place(data_set="cifar10"),
        cache.location("mnist", "train", "ylecun/mnist"),
        cache.location("mnist", "test", "ylecun/mnist"),
    ]
    assert place() == place()
    assert len({place(), *others}) == 7


@pytest.mark.parametrize("damage", ["cut short", "one byte", "empty", "other content"])
def test_a_damaged_cache_is_decoded_anew_with_a_warning(copies, damage):
    pixels, _ = copies("mnist")
    load("mnist")
    (file,) = cache_files()
    whole = file.read_bytes()
    middle = whole.find(pixels.tobytes()) + pixels.size // 2
    file.write_bytes(
        {
            "cut short": whole[: len(whole) // 2],
            "one byte": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
            "empty": b"",
            "other content": b"PK but not an archive",
        }[damage]
    )
    with pytest.warns(UserWarning, match="is damaged .*decoding again"):
        again = load("mnist")
    np.testing.assert_array_equal(as_stored(again), pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the damage has been repaired
        load("mnist")


def test_a_write_that_breaks_off_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.np, "savez", lambda *_, **__: 1 / 0)
    decoded = cache.Decoded(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32), ("a",))
    with pytest.raises(ZeroDivisionError):
        cache.write(tmp_path / "x.npz", decoded)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_costs_a_warning_only(copies, monkeypatch, tmp_path):
    pixels, _ = copies("mnist")
    (tmp_path / "occupied").write_text("a file where a folder should be")
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path / "occupied"))
    with pytest.warns(UserWarning, match="could not be written"):
        np.testing.assert_array_equal(as_stored(load("mnist")), pixels)


def test_what_was_once_decoded_from_the_hub_serves_offline(monkeypatch, small):
    import datasets

    pixels, labels = pictures("cifar10", 7)
    asked = []

    def download(repository, split):
        asked.append((repository, split))
        return table("cifar10", pixels, labels)

    monkeypatch.setattr(datasets, "load_dataset", download)
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    assert data.source_of("cifar10") == "hub"
    load("cifar10")
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    assert data.source_of("cifar10") == "cache"
    assert data.source_of("cifar10", "test") == "unavailable"
    np.testing.assert_array_equal(as_stored(load("cifar10")), pixels)
    assert asked == [("uoft-cs/cifar10", "train")]


def test_the_cache_of_a_local_copy_never_stands_in_for_the_hub(copies, monkeypatch):
    copies("mnist")
    load("mnist")
    monkeypatch.delenv("DIFFUSION_COURSE_DATA")
    with pytest.raises(DataUnavailableError):
        load("mnist")


# The hub


@pytest.fixture
def server(monkeypatch):
    """Start a server that answers every request with one status; its address is the endpoint."""
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:

        def start(status: int) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_HEAD(self):
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

                do_GET = do_HEAD

                def log_message(self, *_):
                    pass

            running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            stack.callback(running.server_close)
            stack.callback(running.shutdown)
            threading.Thread(target=running.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{running.server_address[1]}"
            monkeypatch.setattr(constants, "ENDPOINT", address)
            return address

        yield start


@pytest.mark.parametrize(
    ("status", "reachable"), [(200, True), (401, True), (404, True), (500, False), (503, False)]
)
def test_every_answer_but_a_server_error_shows_that_the_hub_is_there(server, status, reachable):
    server(status)
    assert data.hub_reachable() is reachable


def test_offline_mode_means_no_hub(server, monkeypatch):
    from huggingface_hub import constants

    server(200)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert data.hub_reachable() is False


def test_a_closed_port_means_no_hub():
    assert data.hub_reachable() is False


def test_a_server_that_never_answers_is_given_up_after_the_deadline(monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        start = time.monotonic()
        assert data.hub_reachable(timeout=0.3) is False
        assert time.monotonic() - start < 5  # the deadline, and time to spare on a busy computer


def test_a_look_up_of_the_name_that_hangs_is_given_up_after_the_deadline(monkeypatch):
    from huggingface_hub import constants

    released, asked = threading.Event(), threading.Event()

    def hang(*_, **__):
        asked.set()
        released.wait(60)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    try:
        assert data.hub_reachable(timeout=0.5) is False
        assert time.monotonic() - start < 10
        assert asked.wait(30)  # it was the look-up that it waited for
    finally:
        released.set()


def test_without_hub_and_copy_the_error_names_both_remedies():
    assert data.source_of("mnist") == "unavailable"
    with pytest.raises(DataUnavailableError, match=r"connect to the network .* DIFFUSION_COURSE_D"):
        load("mnist")


@pytest.mark.parametrize("there", [False, True])
def test_a_fresh_process_fails_clearly_and_soon(server, there):
    """The whole path with the real client: a closed port, then a hub that lacks the data set."""
    address = server(404) if there else f"http://127.0.0.1:{closed_port()}"
    program = (
        "import time; from diffusion_course import data\n"
        "start = time.monotonic()\n"
        "try: data.load('fashion_mnist')\n"
        "except data.DataUnavailableError as error: print(error)\n"
        "print(time.monotonic() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    *message, seconds = done.stdout.splitlines()
    assert "DIFFUSION_COURSE_DATA" in " ".join(message), done.stderr
    assert ("on the hub" if there else f"{address} does not answer") in " ".join(message)
    assert float(seconds) < 15


# What a copy must hold


def labelled(labels):
    """The columns of a table of mnist, with labels of any kind."""
    import datasets

    pixels, _ = pictures("mnist", len(labels))
    rows = {"image": [{"bytes": png(p), "path": None} for p in pixels], "label": labels}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.0, 3.7], r"labels must be whole numbers, got 0\.0"),
        ([3, None], r"labels must be whole numbers, got None"),
        ([[1], [2]], r"labels must be whole numbers, got \[1\]"),
        (["0", "3"], r"labels must be whole numbers, got '0'"),
        ([True, False], r"labels must be whole numbers, got True"),
        ([0, 10], r"labels must lie in \[0, 10\), got 10"),
        ([0, -1], r"labels must lie in \[0, 10\), got -1"),
        ([0, 2**32 + 1], r"labels must lie in \[0, 10\), got 4294967297"),
    ],
)
def test_labels_that_name_no_class_are_refused_and_not_kept(labels, said, copies):
    folder = copies.folder / "mnist"
    folder.mkdir()
    with quiet():
        labelled(labels).to_parquet(str(folder / "train.parquet"))
    for _ in range(2):  # nothing was kept that the second time would find
        with pytest.raises(DataUnavailableError, match=rf"local copy of mnist .*{said}"):
            load("mnist")
    assert cache_files() == []


def test_pictures_of_another_size_are_refused(copies, monkeypatch):
    copies("mnist")
    specs = {"mnist": hub.SPECS["mnist"]._replace(shape=(28, 28, 1))}
    monkeypatch.setattr(hub, "SPECS", specs)
    with pytest.raises(
        DataUnavailableError,
        match=r"pictures must be 28 × 28 × 1, got 6 × 9 × 1.*Replace that copy",
    ):
        load("mnist")
    assert cache_files() == []


@pytest.mark.parametrize("part", ["train-00000-of-00002.parquet", "train.parquet"])
def test_a_part_that_is_there_twice_is_no_whole_copy(part, copies):
    for folder in ("a", "b"):
        copies("mnist", f"{folder}/{part}")
    with pytest.raises(DataUnavailableError, match=rf"each part once: {part} is there 2 times"):
        load("mnist")


def test_a_link_that_leads_nowhere_is_told(copies):
    folder = copies.folder / "mnist"
    folder.mkdir()
    (folder / "train.parquet").symlink_to(folder / "gone.parquet")
    with pytest.raises(DataUnavailableError, match=r"train\.parquet, which is no file"):
        load("mnist")
