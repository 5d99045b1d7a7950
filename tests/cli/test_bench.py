"""What `gradscale bench` measures and how it ends: its numbers are quoted, so they must be of what they name."""

import json
import re
import statistics
import sys

import matplotlib.image
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradscale.bench import contestants
from gradscale.bench.shapes import WORKLOADS
from gradscale.cli.bench import main
from gradscale.optim.scaled import ScaledOptimizer

TINY = WORKLOADS["tiny"]
IN_LAYERS = sum(shape[0] * shape[1] for shape in TINY.shapes if len(shape) == 2)
FUSED, LIVE = "torch.optim.AdamW:fused=True", "sgg_adamw:labels=live"
ROUNDS, STEPS = 3, 2
FEW = 0.03  # bytes per parameter of scales, boundaries and step counts in so small a model


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The report of a run, and the groupings that the optimizers made meanwhile, by class and number of steps."""
    file = tmp_path_factory.mktemp("bench") / "steps.json"
    groupings, seen = {}, {}

    def watch(optimizer, args, kwargs):
        if isinstance(optimizer, ScaledOptimizer):
            steps_of, made = groupings.setdefault(id(optimizer), [0, 0])
            new = optimizer.grouping_report is not seen.get(id(optimizer))
            seen[id(optimizer)] = optimizer.grouping_report
            groupings[id(optimizer)] = [steps_of + 1, made + new]

    hook = register_optimizer_step_post_hook(watch)
    try:
        against = ["--against", FUSED, LIVE, "torch.optim.SGD:lr=0.1,momentum=0.9"]
        how = ["--repeats", str(ROUNDS), "--steps", str(STEPS), "--interval", "100", "--threads", "1"]
        assert main(["step", "--shapes", "tiny", "--json", str(file), *how, *against]) == 0
    finally:
        hook.remove()
    return json.loads(file.read_text()), list(groupings.values())


def entries(report):
    (result,) = report["results"]
    return {entry["optimizer"]: entry for entry in result["optimizers"]}


def test_a_report_says_what_was_measured_and_where(steps):
    report, _ = steps
    assert report["machine"]["torch"] == torch.__version__ and report["machine"]["threads"] == 1
    assert report["machine"]["cpu"] and report["machine"]["date"].startswith("20")
    assert (
        report["method"] | {"dtype": "float32", "rounds": ROUNDS, "steps": STEPS, "interval": 100} == report["method"]
    )
    (result,) = report["results"]
    assert (result["tensors"], result["parameters"]) == (TINY.tensors, TINY.parameters)
    assert result["shared"] == "nothing" and result["peak_memory_bytes"] > 0 and report["skipped"] == []
    assert [entry["class"].rpartition(".")[2] for entry in result["optimizers"]] == [
        "SGGAdamW",
        "AdamW",
        "SGGAdamW",
        "SGD",
    ]


def test_ratios_are_those_of_the_raw_times_to_the_first_of_against(steps):
    found = entries(steps[0])
    turns = {name: [statistics.median(turn) for turn in entry["raw_seconds"]] for name, entry in found.items()}
    assert [name for name, entry in found.items() if entry["is_baseline"]] == [FUSED]
    for name, entry in found.items():
        assert [len(turn) for turn in entry["raw_seconds"]] == [STEPS] * ROUNDS
        ratios = [time / base for time, base in zip(turns[name], turns[FUSED], strict=True)]
        assert entry["ratio"]["median"] == pytest.approx(statistics.median(ratios))
        assert 0 < entry["ratio"]["q1"] <= entry["ratio"]["median"] <= entry["ratio"]["q3"]
        assert entry["first_step_seconds"] > 0
        per_parameter = statistics.median(turns[name]) / TINY.parameters
        assert entry["nanoseconds_per_parameter"]["median"] == pytest.approx(1e9 * per_parameter)
        assert 0 < entry["share_of_in_place_pass"]["median"]
    assert found[FUSED]["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}


def test_a_grouping_costs_what_its_step_takes_longer_and_is_spread_over_the_interval(steps):
    found = entries(steps[0])
    base = [statistics.median(turn) for turn in found[FUSED]["raw_seconds"]]
    for name in ("sgg_adamw", LIVE):
        plain = [statistics.median(turn) for turn in found[name]["raw_seconds"]]
        grouping = found[name]["grouping"]
        costs = [turn[0] - step for turn, step in zip(grouping["raw_seconds"], plain, strict=True)]
        assert grouping["seconds"]["median"] == pytest.approx(statistics.median(costs))
        in_steps = [cost / step for cost, step in zip(costs, base, strict=True)]
        assert grouping["baseline_steps"]["median"] == pytest.approx(statistics.median(in_steps))
        amortized = [(s + cost / 100) / b for s, cost, b in zip(plain, costs, base, strict=True)]
        assert found[name]["amortized_ratio"]["median"] == pytest.approx(statistics.median(amortized))
    assert all(found[name]["grouping"] is found[name]["amortized_ratio"] is None for name in found if "torch" in name)


def test_only_the_steps_that_are_counted_as_groupings_group(steps):
    # The first step, the first grouping, one more step; then the rounds.
    assert steps[1] == [[3 + ROUNDS * STEPS + ROUNDS, 1 + ROUNDS]] * 2


def test_state_and_bytes_moved_are_counted(steps):
    found = entries(steps[0])
    number = TINY.parameters
    frozen, live, sgd = found["sgg_adamw"], found[LIVE], found["torch.optim.SGD:lr=0.1,momentum=0.9"]
    assert frozen["state_bytes"]["labels"] == IN_LAYERS and "labels" not in live["state_bytes"]
    assert live["state_bytes"]["exp_avg"] == live["state_bytes"]["exp_avg_sq"] == 4 * number
    assert frozen["state_bytes_per_parameter"] == pytest.approx(8 + IN_LAYERS / number, abs=FEW)
    assert live["state_bytes_per_parameter"] == pytest.approx(8, abs=FEW)
    assert frozen["beyond_adamw"] == frozen["state_bytes_per_parameter"] - 8
    assert found[FUSED]["state_bytes"] == {"step": 4 * TINY.tensors, "exp_avg": 4 * number, "exp_avg_sq": 4 * number}
    assert frozen["moved_bytes"] / number == pytest.approx(29, abs=2 * FEW)
    assert live["moved_bytes"] / number == pytest.approx(28, abs=2 * FEW)
    assert sgd["moved_bytes"] == 5 * 4 * number and sgd["state_bytes_per_parameter"] == 4


def test_the_table_shows_every_optimizer_and_only_step_leaves_groupings_out(capsys):
    command = ["step", "--shapes", "tiny", "--repeats", "3", "--steps", "1", "--against", FUSED]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "tiny: 21 tensors, 0.03M parameters" in text and "own parameters and gradients" in text
    assert f"\n{FUSED}" in text and "amortized" in text and f"to {FUSED}; grouping" in text
    assert main([*command, "--only_step"]) == 0
    text = capsys.readouterr().out
    assert "\nsgg_adamw" in text and "amortized" not in text and "grouping" not in text


def test_with_one_cluster_there_is_no_grouping(tmp_path):
    file = tmp_path / "steps.json"
    command = ["step", "--shapes", "tiny", "--repeats", "3", "--optim_args", "n_clusters=1", "--against", FUSED]
    assert main([*command, "--json", str(file)]) == 0
    found = entries(json.loads(file.read_text()))
    assert found["sgg_adamw:n_clusters=1"]["grouping"] is found["sgg_adamw:n_clusters=1"]["amortized_ratio"] is None


def test_memory_is_measured_for_every_optimizer(tmp_path, capsys):
    file = tmp_path / "memory.json"
    against = [FUSED, "torch.optim.AdamW:foreach=True", LIVE]
    assert main(["memory", "--shapes", "tiny", "--json", str(file), "--against", *against]) == 0
    found = entries(json.loads(file.read_text()))
    fused, foreach = found[FUSED], found["torch.optim.AdamW:foreach=True"]
    assert fused["step_extra_bytes"] < 1000 < 4 * TINY.parameters <= foreach["step_extra_bytes"]
    assert fused["grouping_extra_bytes"] is foreach["grouping_extra_bytes"] is None
    for name in ("sgg_adamw", LIVE):
        assert found[name]["grouping_extra_bytes"] > 65_280 * 8  # at least the counts of a layer
        assert found[name]["step_extra_bytes"] < found[name]["grouping_extra_bytes"]
    assert found["sgg_adamw"]["state_bytes"]["labels"] == IN_LAYERS
    text = capsys.readouterr().out
    assert "exp_avg_sq" in text and "labels" in text and "extra in a grouping" in text


def test_bfloat16_is_compared_with_adamw_in_bfloat16(tmp_path):
    file = tmp_path / "memory.json"
    assert main(["memory", "--shapes", "tiny", "--dtype", "bfloat16", "--json", str(file)]) == 0
    assert entries(json.loads(file.read_text()))[FUSED]["beyond_adamw"] == pytest.approx(0, abs=FEW)


def test_the_plot_is_drawn(tmp_path):
    picture = tmp_path / "ratios.png"
    command = ["step", "--shapes", "tiny", "--repeats", "3", "--steps", "1", "--only_step", "--against", FUSED]
    assert main([*command, "--plot", str(picture)]) == 0
    image = matplotlib.image.imread(picture)
    assert image.shape[0] > 300 and image[..., :3].std() > 0.02


@pytest.mark.parametrize("command", ["step", "memory"])
def test_shapes_that_do_not_fit_are_skipped_and_said_so(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(f"gradscale.bench.{command}.available_bytes", lambda device: 100_000_000)
    file = tmp_path / "out.json"
    assert main([command, "--shapes", "llama-60m", "tiny", "--against", FUSED, "--json", str(file)]) == 1
    report = json.loads(file.read_text())
    assert [result["shapes"] for result in report["results"]] == ["tiny"]
    (reason,) = report["skipped"]
    assert "llama-60m in float32 needs" in reason and "0.1 GB are available" in reason
    assert f"skipped: {reason}" in capsys.readouterr().out


def test_the_number_of_threads_is_set_for_the_measurement_alone(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(
        "gradscale.bench.machine.describe", lambda device: threads.append(torch.get_num_threads()) or MACHINE
    )
    before = torch.get_num_threads()
    main(["memory", "--shapes", "tiny", "--threads", "2", "--against", FUSED])
    assert threads == [2] and torch.get_num_threads() == before


MACHINE = {"gpu": None, "cpu": "a CPU", "threads": 2, "cores": 2, "load": None, "torch": "2", "date": "today"}
FOREIGN = """
import torch

class Modal(torch.optim.SGD):
    '''Steps in training mode only, as schedule-free optimizers do.'''
    training = False

    def train(self):
        self.training = True

    def step(self, closure=None):
        if not self.training:
            raise RuntimeError("not in training mode")
        return super().step(closure)

class Fails(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("no kernel for this\\nsecond line")

function = len
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A package of optimizers that is not torch's, one module of which cannot be imported."""
    (tmp_path / "foreign_optimizers.py").write_text(FOREIGN)
    (tmp_path / "broken_optimizers.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("foreign_optimizers", None)


def test_optimizers_that_step_in_training_mode_only_are_put_into_it(foreign, capsys):
    against = ["--against", "foreign_optimizers.Modal:lr=0.1"]
    assert main(["step", "--shapes", "tiny", "--repeats", "3", "--only_step", *against]) == 0
    assert "\nforeign_optimizers.Modal:lr=0.1 " in capsys.readouterr().out


REFUSED = {
    "an optimizer": (["--optim", "sgg_adamx"], "did you mean 'sgg_adam"),
    "an option": (["--optim_args", "n_cluster=3"], "did you mean 'n_clusters'"),
    "a value": (["--optim_args", "labels=warm"], "labels='warm' is not allowed"),
    "the interval": (["--optim_args", "recluster_interval=7"], "recluster_interval=7 .* --interval"),
    "another interval": (["--against", "sgg_adam:recluster_interval=7"], "--against sgg_adam:.*--interval"),
    "an option of a registered one": (["--against", "sgg_adam:n_cluster=3"], "--against sgg_adam:n_cluster=3: unknown"),
    "a short name": (["--against", "AdamW"], "'AdamW' is unknown.*as in torch.optim.AdamW"),
    "a near name": (["--against", "sgg_adan"], "did you mean 'sgg_adam"),
    "no module": (["--against", "no_such.module.AdamW"], "no_such.module cannot be imported: ModuleNotFoundError"),
    "a broken module": (["--against", "broken_optimizers.X"], "cannot be imported: ZeroDivisionError"),
    "no class": (["--against", "torch.optim.AdamV"], "torch.optim has no 'AdamV', did you mean 'Adam"),
    "no optimizer": (["--against", "foreign_optimizers.function"], "no subclass of torch.optim.Optimizer"),
    "an unknown keyword": (["--against", "torch.optim.AdamW:fuse=True"], "does not run: TypeError: .*'fuse'"),
    "a keyword out of range": (["--against", "torch.optim.AdamW:lr=-1"], "does not run: ValueError: Invalid learning"),
    "no literal": (["--against", "torch.optim.AdamW:lr=1/3"], "lr=1/3 is malformed"),
    "a call": (["--against", "torch.optim.AdamW:lr=exit(3)"], r"lr=exit\(3\) is malformed"),
    "no value": (["--against", "torch.optim.AdamW:fused"], "'fused' is malformed: expected name=value"),
    "twice": (["--against", "torch.optim.AdamW:lr=1,lr=2"], "lr is given twice"),
    "a bracket": (["--against", "torch.optim.AdamW:betas=(1,2"], "is not closed"),
    "a step that fails": (
        ["--against", "foreign_optimizers.Fails"],
        "does not run: RuntimeError: no kernel for this\n$",
    ),
    "a tensor that it does not take": (["--against", "torch.optim.Muon"], "does not run: ValueError"),
    "a device": (["--device", "tpu"], "--device tpu: expected cpu, cuda"),
    "a GPU that is not there": (["--device", "cuda:99"], "--device cuda:99: torch sees"),
    "no folder": (["--json", "/no/such/folder/x.json"], "there is no folder '/no/such/folder'"),
    "a folder": (["--json", "/"], "this is a folder"),
    "no folder of the plot": (["--plot", "/no/such/folder/x.png"], "there is no folder"),
    "a kind of picture": (["--plot", "x.gif"], "expected .png, .svg or .pdf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_one_line_before_anything_is_measured(name, foreign, monkeypatch, capfd):
    options, message = REFUSED[name]
    monkeypatch.setattr("gradscale.bench.step.measure", None)
    assert main(["step", *options]) == 2
    out, err = capfd.readouterr()
    assert not out and err.startswith("gradscale bench step: ") and err.count("\n") == 1
    assert re.search(message, err), err


def test_without_matplotlib_the_plot_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("gradscale.bench.step.measure", None)
    assert main(["step", "--plot", "x.png"]) == 2
    assert capsys.readouterr().err == "gradscale bench step: --plot needs matplotlib: pip install 'gradscale[plot]'\n"


@pytest.mark.parametrize(
    "options",
    [[], ["stp"], ["step", "--shapes", "llama-60"], ["step", "--repeats", "2"], ["step", "--interval", "0"]]
    + [["memory", "--interval", "5"], ["step", "--dtype", "int8"], ["step", "--threads", "x"]],
)
def test_what_is_no_option_or_no_value_of_one_ends_with_exit_status_2(options, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert "--shapes" not in options or "did you mean 'llama-60m'" in capsys.readouterr().err


def test_the_values_of_against_are_literals():
    made = contestants.parse("torch.optim.AdamW:betas=(0.5, 0.9),fused=true,lr=1e-2,foreach=None")
    assert made.options == {"betas": (0.5, 0.9), "fused": True, "lr": 0.01, "foreach": None}
    assert made.cls is torch.optim.AdamW and not made.groups
    assert contestants.parse(LIVE).options == {"labels": "live"} and contestants.parse(LIVE).groups
