"""The parts that need only the standard library, under every supported Python that this machine has."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradscale

HERE = Path(__file__).parent
FILES = ("test_import_hook", "test_enum_members", "test_registration")


@functools.cache
def find_python(version):
    """Path of a working Python of this version on PATH or under pyenv, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.startswith(version + "."):
            return candidate
    return None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_standard_library_parts(version):
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        pytest.skip("this is the Python that runs pytest: the files run directly")
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} on PATH or under pyenv")
    package = Path(gradscale.__file__).parent.parent
    done = subprocess.run(
        [python, "-m", "unittest", *FILES],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{package_of_autoload()}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stderr and "Ran 0" not in done.stderr


def package_of_autoload():
    import gradscale_autoload

    return Path(gradscale_autoload.__file__).parent
