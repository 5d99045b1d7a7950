"""`gradscale run`: a script must notice no difference from `python script.py`, save that the names are known.

A stand-in `transformers` keeps the processes cheap; the real one is launched in tests/integrations/test_scripts.py.
"""

import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import gradscale
from gradscale.cli.main import SUBCOMMANDS
from gradscale.cli.main import main as dispatch
from gradscale.cli.run import main
from gradscale.registry import REGISTRY

RUN = [sys.executable, "-m", "gradscale.run"]
NAMES = "from transformers.training_args import OptimizerNames; print([name.value for name in OptimizerNames])"
OURS = str(["sgd", *REGISTRY])


@pytest.fixture
def folder(tmp_path):
    package = tmp_path / "lib" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "training_args.py").write_text(
        "from enum import Enum\nclass OptimizerNames(str, Enum):\n    SGD = 'sgd'\n"
        "class TrainingArguments:\n    def __post_init__(self): pass\n"
    )
    (tmp_path / "work").mkdir()
    return tmp_path


def run(folder, command, *, code=0, cwd=None, path=(), **environment):
    package = Path(gradscale.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, folder / "lib", package])), **environment}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd or folder, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def write(folder, name, text):
    target = folder / name
    target.parent.mkdir(exist_ok=True, parents=True)
    target.write_text(textwrap.dedent(text))
    return target


LOOK = """
    import sys, os, json
    import beside
    assert __name__ == "__main__" and sys.modules["__main__"].__dict__ is globals()
    print(json.dumps([sys.argv, sys.path[0], os.path.realpath(__file__), os.getcwd()]))
"""


def test_a_script_sees_what_python_shows_it(folder):
    script = write(folder, "work/script.py", LOOK)
    write(folder, "work/beside.py", "")
    plain = run(folder, [sys.executable, "work/script.py", "--a", "-m", "x y"])
    ours = run(folder, [*RUN, "work/script.py", "--a", "-m", "x y"])
    assert ours.stdout == plain.stdout and str(script) in ours.stdout


def test_a_module_sees_what_python_shows_it(folder):
    write(folder, "pack/__init__.py", "")
    write(folder, "pack/part.py", LOOK + "    assert __package__ == 'pack' and __spec__.name == 'pack.part'\n")
    write(folder, "beside.py", "")
    plain = run(folder, [sys.executable, "-m", "pack.part", "--a"])
    assert run(folder, [*RUN, "-m", "pack.part", "--a"]).stdout == plain.stdout


def test_the_rank_that_a_launcher_puts_first_goes_to_the_script(folder):
    script = write(folder, "work/script.py", "import sys; print(sys.argv[1:])")
    done = run(folder, [*RUN, "--local_rank=1", script, "--x"])
    assert done.stdout.strip() == "['--local_rank=1', '--x']"


def test_folders_and_archives(folder):
    write(folder, "app/__main__.py", "import helper; print(helper.value, __name__)")
    write(folder, "app/helper.py", "value = 'folder'")
    assert run(folder, [*RUN, "app"]).stdout == "folder __main__\n"
    with zipfile.ZipFile(folder / "app.pyz", "w") as file:
        file.write(folder / "app/__main__.py", "__main__.py")
        file.writestr("helper.py", "value = 'archive'")
    assert run(folder, [*RUN, "app.pyz"]).stdout == "archive __main__\n"


def test_this_process_and_its_children_know_the_names(folder):
    script = write(
        folder,
        "script.py",
        f"""
        import subprocess, sys, multiprocessing
        def names():
            {NAMES}
        if __name__ == "__main__":
            names()
            sys.stdout.flush()
            subprocess.run([sys.executable, "-c", {NAMES!r}], check=True)
            process = multiprocessing.get_context("spawn").Process(target=names)
            process.start(); process.join()
            sys.exit(process.exitcode)
        """,
    )
    assert run(folder, [*RUN, script]).stdout.splitlines() == [OURS] * 3
    assert run(folder, [sys.executable, script]).stdout.splitlines() == ["['sgd']"] * 3


def test_a_command_and_its_children_know_the_names(folder):
    write(folder, "script.py", NAMES)
    assert run(folder, [*RUN, sys.executable, "script.py"]).stdout == OURS + "\n"
    assert run(folder, [*RUN, "--", "sh", "-c", f"{sys.executable} script.py"]).stdout == OURS + "\n"


def test_another_sitecustomize_still_runs(folder):
    write(folder, "site/sitecustomize.py", "value = 'theirs'")
    script = write(
        folder, "script.py", "import sitecustomize; print(sitecustomize.value, sitecustomize.__file__)\n" + NAMES
    )
    out = run(folder, [*RUN, sys.executable, script], path=[folder / "site"]).stdout
    assert out.splitlines() == [f"theirs {folder / 'site' / 'sitecustomize.py'}", OURS]


def test_a_child_that_cannot_import_gradscale_starts_all_the_same(folder):
    write(folder, "broken/gradscale/__init__.py", "raise RuntimeError('broken')")
    script = write(
        folder,
        "script.py",
        f"""
        import os, subprocess, sys
        first, *rest = os.environ["PYTHONPATH"].split(os.pathsep)
        env = dict(os.environ, PYTHONPATH=os.pathsep.join([first, {str(folder / "broken")!r}, *rest]))
        sys.exit(subprocess.call([sys.executable, "-c", "import sys; print('sitecustomize' in sys.modules)"], env=env))
        """,
    )
    done = run(folder, [*RUN, script])
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_python_path_holds_our_entry_once(folder):
    script = write(folder, "script.py", "import os; print(os.environ['PYTHONPATH'].count('child_site'))")
    assert run(folder, [*RUN, *RUN, script]).stdout == "1\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [("import sys; sys.exit(7)", 7), ("import sys; sys.exit('bye')", 1), ("1 / 0", 1), ("import os; os._exit(9)", 9)],
)
def test_exit_codes(folder, body, code):
    script = write(folder, "script.py", body)
    run(folder, [*RUN, script], code=code)
    run(folder, [*RUN, sys.executable, script], code=code)


@pytest.mark.parametrize("prefix", [[], [sys.executable]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals(folder, prefix, number):
    script = write(folder, "script.py", "import time; print('ready', flush=True); time.sleep(30)")
    env = {**os.environ, "PYTHONPATH": str(Path(gradscale.__file__).parent.parent)}
    with subprocess.Popen(
        [*RUN, *prefix, str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(60) == -number


def test_a_traceback_names_the_script(folder):
    script = write(folder, "script.py", "\n\nraise KeyError('mine')\n")
    assert f'File "{script}", line 3' in run(folder, [*RUN, script], code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["nothing to run", "usage: gradscale run"]),
        (["train_llm.py"], 2, ["no such script: 'train_llm.py'", "did you mean 'train_lm.py'?"]),
        (["folder/script.py"], 2, ["no such script: 'folder/script.py'"]),
        (["tochrun", "x.py"], 127, ["no such script or command: 'tochrun'", "did you mean 'torchrun'?"]),
        (["train_lm"], 127, ["no such script or command: 'train_lm'", "did you mean 'train_lm.py'?"]),
        (["-m"], 2, ["-m needs the name of a module"]),
        (["-m", "no_such_package.part"], 2, ["no module named 'no_such_package.part'"]),
        (["--optim", "x"], 2, ["unknown option '--optim'", "after its name"]),
    ],
)
def test_errors(folder, monkeypatch, capsys, arguments, code, words):
    write(folder, "train_lm.py", "")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    assert main(arguments) == code
    error = capsys.readouterr().err
    for word in words:
        assert word in error


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(capsys, flag):
    assert main([flag]) == 0
    assert "torchrun" in capsys.readouterr().out
    assert dispatch([flag]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in SUBCOMMANDS)


def test_dispatcher(capsys):
    assert dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"gradscale {gradscale.__version__}\n"
    assert dispatch([]) == 2
    assert "usage: gradscale" in capsys.readouterr().out
    assert dispatch(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert dispatch(["run", "--help"]) == 0
