"""``python -m diffusion_course`` is the command ``diffusion-course``."""

import sys

from diffusion_course.app.cli import main

sys.exit(main())
