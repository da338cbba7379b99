"""Chromium, and JupyterLab in it: one server for all tests of a file.

def test_it(lab):
    page = lab.open("notebooks/x.ipynb")
    cells = lab.run_all(page)
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import compiler
import pytest

TOKEN = "course"
STARTED_IN = 60  # seconds for the server; it takes 3 to 10
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Lab's idle indicator is not a signal that a notebook can be run: await what it awaits itself.
RUN_ALL = """async () => {
  const app = window.jupyterapp, w = app.shell.currentWidget;
  await app.restored; await w.context.ready; await w.sessionContext.ready;
  await w.sessionContext.session.kernel.info;
  await app.commands.execute('notebook:run-all-cells');
  const cells = Array.from(w.content.model.cells).filter(cell => cell.type === 'code');
  return cells.map(cell => ({
    source: cell.sharedModel.getSource(),
    count: cell.executionCount,
    errors: cell.sharedModel.getOutputs().filter(output => output.output_type === 'error'),
  }));
}"""


def find_chromium():
    """Chromium's path; skips the test where it, or Playwright, is missing, but fails in CI."""
    missing = None
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        missing = "no chromium on the PATH (Debian: apt install chromium)"
    else:
        try:
            import playwright.sync_api  # noqa: F401
        except ImportError:
            missing = 'no playwright (pip install "diffusion-course[dev]")'
    if missing and os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(missing, pytrace=False)
    if missing:
        pytest.skip(missing)
    return path


@contextlib.contextmanager
def launched():
    """Chromium, driven by Playwright; skips or fails as `find_chromium`."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Lab:
    """A running JupyterLab and a browser that looks at it.

    Attributes:
      folder: what it serves.
      outside: every request that left this computer; tests assert that there is none.
    """

    def __init__(self, address: str, browser, folder: Path):
        self.address, self.browser, self.folder, self.outside = address, browser, folder, []

    def open(self, name: str):
        """A new page showing the notebook, its kernel's session at hand."""
        page = self.browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on("request", self._note)
        page.goto(f"{self.address}/lab/tree/{name}?token={TOKEN}&reset", timeout=60_000)
        page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext", timeout=60_000
        )
        return page

    def run_all(self, page, timeout: float = 300) -> list[dict]:
        """Run every cell; source, execution count and error outputs of each code cell."""
        page.set_default_timeout(timeout * 1000)
        return page.evaluate(RUN_ALL)

    def close(self, page) -> None:
        """Closes a page and ends its kernel, which would keep its memory."""
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        page.close()

    def _note(self, request):
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1":
            self.outside.append(request.url)


@contextlib.contextmanager
def serve(folder: Path, state: Path):
    """JupyterLab on a free port, serving `folder`, all its own files in `state`."""
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # else cells leave the page
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, value in settings.items():
        file = state / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    # A kernel compiles as for a reader, and so finds what the notebooks have compiled.
    environment = compiler.without(dict(os.environ)) | {
        "JUPYTER_CONFIG_DIR": str(state / "config"),
        "JUPYTER_DATA_DIR": str(state / "data"),
        "JUPYTER_RUNTIME_DIR": str(state / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"),
        "IPYTHONDIR": str(state / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        # The kernels import the tested code, installed or not.
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
        ),
    }
    log = state / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the kernels can be ended with it
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/api/status?token={TOKEN}", server, log)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(url: str, server, log: Path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves
    end = time.monotonic() + STARTED_IN
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            opener.open(url, timeout=2).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def course_in_browser(root: Path):
    """A `Lab` over a copy of the course's notebooks, in `root`; more may be put into its folder."""
    served, state = root / "course", root / "state"
    state.mkdir()
    source = Path(__file__).resolve().parent.parent / "notebooks"
    shutil.copytree(source, served / "notebooks", ignore=shutil.ignore_patterns(".*", "__*"))
    with launched() as browser, serve(served, state) as address:
        yield Lab(address, browser, served)


# Of a file and not of a run: Playwright refuses a second start while the first is not closed.
@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """`course_in_browser` for all tests of a file."""
    with course_in_browser(tmp_path_factory.mktemp("lab")) as found:
        yield found
