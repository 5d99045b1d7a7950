"""`python -m gradscale` is the command line."""

import subprocess
import sys


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gradscale", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_prints_the_version() -> None:
    done = _run("--version")
    assert done.returncode == 0 and done.stdout.startswith("gradscale "), done


def test_returns_the_exit_code_of_the_command() -> None:
    done = _run("benhc")
    assert done.returncode == 2 and "benhc" in done.stderr, done
