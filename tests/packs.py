"""A pack that several files of tests look into."""

import io
import zipfile
from pathlib import Path

import nbformat

from diffusion_course.app import cli, pack

COURSE = Path(__file__).resolve().parent.parent
WHEEL = "diffusion_course-9-py3-none-any.whl"


def packed():
    """What lies in a pack of chapters 01 and 03, by its path."""
    archive = zipfile.ZipFile(io.BytesIO(pack.pack(COURSE, ["3", "01_forward_process", "03"])))
    return {name: archive.read(name) for name in archive.namelist()}


def notebook(files, name):
    return nbformat.reads(files[f"workshop/{name}"].decode(), as_version=4)


def code(cells):
    return [cell.source for cell in cells if cell.cell_type == "code"]


def command(capsys, *arguments):
    """Runs the command line in this process: exit code and standard error."""
    capsys.readouterr()
    code = cli.main(arguments)
    return code, capsys.readouterr().err
