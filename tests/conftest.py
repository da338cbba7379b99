"""What every test gets."""

import pytest
from browser import lab  # noqa: F401 (a fixture, for test_browser.py)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside():
    """Tests see the course's defaults, whatever the shell that runs them has set."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DIFFUSION_COURSE_PROFILE", "DIFFUSION_COURSE_COMPILE_CACHE"):
            patch.delenv(name, raising=False)
        yield
