"""`gradscale run`: start a script, module or command in which transformers knows gradscale's optimizers.

A Python script or module runs in this process, any other command replaces it, so exit codes and signals are its own.
Python processes below are reached through PYTHONPATH (see `child_site/sitecustomize.py`).
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HELP = """\
usage: {program} [--] SCRIPT.py [ARGS ...]
       {program} -m MODULE [ARGS ...]
       {program} COMMAND [ARGS ...]

Run a training script, unchanged, with gradscale's optimizers known to transformers:

  {program} run_clm.py --optim sgg_adamw --optim_args "n_clusters=3,recluster_interval=0.05" ...
  {program} -m trl.scripts.sft --optim sgg_adamw ...
  {program} torchrun --nproc_per_node 2 train.py --optim sgg_adamw ...
  {program} accelerate launch train.py ...      (deepspeed and any other command likewise)

The script's own Python processes (launchers, data workers, spawned ranks) are reached too.
Inside another launcher: torchrun --nproc_per_node 2 -m gradscale.run train.py ...
                         deepspeed --num_gpus 2 --module gradscale.run train.py ..."""

_CHILD_SITE = str(Path(__file__).with_name("child_site"))
_USAGE_ERROR, _NOT_FOUND = 2, 127  # the shell's exit codes


def main(argv: Sequence[str], *, program: str = "gradscale run") -> int:
    """Run what `argv` names; return the exit code (a command that replaces this process never returns)."""
    arguments = list(argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP.format(program=program))
        return 0
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    # DeepSpeed's launcher gives it to what it starts; it is meant for the script.
    local_rank = [arguments.pop(0)] if arguments and arguments[0].startswith("--local_rank=") else []
    if not arguments:
        return _fail("nothing to run", program, _USAGE_ERROR, usage=True)
    target, *rest = arguments
    if target == "-m":
        if not rest:
            return _fail("-m needs the name of a module", program, _USAGE_ERROR, usage=True)
        return _run_module(rest[0], [*local_rank, *rest[1:]], program)
    rest = [*local_rank, *rest]
    if target.startswith("-"):
        message = f"unknown option {target!r}; options of the script go after its name"
        return _fail(message, program, _USAGE_ERROR, usage=True)
    if _is_python(target):
        return _run_script(target, rest, program)
    executable = shutil.which(target)
    if executable is None:
        return _fail(f"no such script or command: {target!r}{_near(target)}", program, _NOT_FOUND)
    return _replace_process(executable, [target, *rest])


def _fail(message: str, program: str, code: int, *, usage: bool = False) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    if usage:
        print(HELP.format(program=program), file=sys.stderr)
    return code


def _is_python(target: str) -> bool:
    """Tell whether `target` is for this interpreter: *.py, a folder or archive with __main__, or a plain script."""
    path = Path(target)
    if path.suffix in (".py", ".pyc", ".pyz", ".zip"):
        return True
    if path.is_dir():
        return (path / "__main__.py").is_file()
    return path.is_file() and not os.access(path, os.X_OK)


def _register() -> None:
    """Make this process and all Python processes below it know gradscale's optimizers."""
    import gradscale  # noqa: F401  # its import registers

    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != _CHILD_SITE]
    os.environ["PYTHONPATH"] = os.pathsep.join([_CHILD_SITE, *paths])


def _run_script(script: str, arguments: list[str], program: str) -> int:
    path = Path(script)
    if not path.exists():
        return _fail(f"no such script: {script!r}{_near(script)}", program, _USAGE_ERROR)
    _register()
    sys.argv = [script, *arguments]
    if path.suffix in (".py", ".pyc") or path.is_file() and path.suffix not in (".pyz", ".zip"):
        # As the interpreter does: imports look beside the script first, not where this command was started.
        sys.path[0] = str(path.resolve().parent)
    else:
        del sys.path[0]  # runpy puts the folder or archive itself there
    runpy.run_path(script, run_name="__main__")
    return 0


def _run_module(module: str, arguments: list[str], program: str) -> int:
    _register()
    sys.path[0] = os.getcwd()
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        found = False
    if not found:
        return _fail(f"no module named {module!r}", program, _USAGE_ERROR)
    sys.argv = [module, *arguments]  # runpy replaces the first with the module's file
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _replace_process(executable: str, arguments: list[str]) -> int:
    _register()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # exec on Windows returns to the shell before the command has ended
        return subprocess.call([executable, *arguments[1:]])
    os.execv(executable, arguments)


def _near(target: str) -> str:
    """Return ", did you mean ...?" with a script beside the missing one, or a usual launcher."""
    path = Path(target)
    folder = path.parent
    scripts = [str(folder / entry.name) for entry in folder.glob("*.py")] if folder.is_dir() else []
    names = [*scripts, "torchrun", "accelerate", "deepspeed", "python"]
    close = difflib.get_close_matches(str(path), names, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""
