"""A dry run counts what is there and what is missing, and neither trains nor writes; several studies are compared."""

import json

import pytest

from gradscale.cli.bench import main
from gradscale.quality.cell import Cell
from gradscale.quality.plan import plan
from gradscale.quality.pool import Store
from gradscale.quality.study import study_of
from gradscale.quality.tasks import compare
from gradscale.training.errors import ConfigError

STUDY = {
    "model_config": "llama-1m",
    "corpus": "stdlib",
    "steps": 10,
    "select_seeds": [1],
    "seeds": [11, 12],
    "learning_rates": [1e-3, 2e-3],
    "optimizers": {
        "adamw": {"optim": "torch.optim.AdamW"},
        "sgg": {"optim": "sgg_adamw", "steps": 20},
        "fixed": {"optim": "torch.optim.AdamW", "learning_rates": [1e-3], "multipliers_from": "sgg"},
    },
}


def result(loss, seconds):
    curve = [(10, seconds, loss)]
    return {"status": "finished", "validation_loss": loss, "curve": curve, "groupings": [], "seconds": seconds}


def test_a_plan_counts_cells_and_knows_times_by_what_has_finished(tmp_path):
    study = study_of(STUDY)
    store = Store(tmp_path, study)
    assert [(row.finished, row.missing, row.seconds) for row in plan(study, tmp_path)] == [
        (0, 4, None),
        (0, 4, None),
        (0, 3, None),
    ]
    store.put(Cell("adamw", 1e-3, 1), result(2.0, 5.0))
    store.put(Cell("adamw", 2e-3, 1), result(1.9, 5.0))
    store.put(Cell("adamw", 2e-3, 11), result(1.9, 5.0))
    adamw, sgg, fixed = plan(study, tmp_path)
    assert (adamw.finished, adamw.missing, adamw.seconds) == (3, 1, pytest.approx(5.0))
    # Of others, per step: twice the steps take twice the time.
    assert (sgg.finished, sgg.missing, sgg.seconds) == (0, 4, pytest.approx(40.0))
    assert (fixed.finished, fixed.missing, fixed.seconds) == (0, 3, pytest.approx(15.0))


def test_cells_with_the_multipliers_of_another_optimizer_are_found_once_that_has_finished(tmp_path):
    study = study_of(STUDY)
    store = Store(tmp_path, study)
    for lr, seed in ((1e-3, 1), (2e-3, 1), (1e-3, 11), (1e-3, 12)):
        groupings = [(5, {"layer": [[float(seed)], [4]]})]
        store.put(Cell("sgg", lr, seed), {**result(1.0 + lr, 8.0), "groupings": groupings})
    store.put(Cell("fixed", 1e-3, 1, (("layer", 11.5),)), result(2.0, 5.0))
    _, sgg, fixed = plan(study, tmp_path)
    assert (sgg.finished, sgg.missing) == (4, 0) and (fixed.finished, fixed.missing) == (1, 2)


def test_a_dry_run_writes_nothing_and_says_what_is_wrong(tmp_path, capsys):
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(json.dumps(STUDY))
    assert main(["quality", str(path), "--output_dir", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "| `sgg` | 0.001 0.002 | 0 | 4 | ? |" in said and "0 cells finished, 11 missing: no cell has" in said
    assert not out.exists()
    path.write_text(json.dumps(STUDY).replace("sgg_adamw", "sgg_adam_w"))
    assert main(["quality", str(path), "--output_dir", str(out), "--dry-run"]) == 2
    assert "did you mean 'sgg_adamw'" in capsys.readouterr().err


def report(folder, **differences):
    """A finished study in which optimizers differ from the baseline by (mean, half)."""
    lines = [{"arm": "adamw", "difference": None}]
    lines += [{"arm": arm, "difference": {"mean": mean, "half": half}} for arm, (mean, half) in differences.items()]
    folder.mkdir()
    (folder / "quality.json").write_text(json.dumps({"baseline": "adamw", "optimizers": lines}))
    return folder


def test_the_worst_case_over_tasks_is_the_highest_difference_and_intervals_say_whether_it_is_harmless(tmp_path):
    one = report(tmp_path / "one", safe=(-0.02, 0.01), wide=(-0.02, 0.03), worse=(-0.1, 0.001), lost=(None, None))
    two = report(tmp_path / "two", safe=(0.001, 0.003), wide=(-0.01, 0.001), worse=(0.02, 0.001), lost=(0.0, 0.0))
    text = compare({"code": one, "prose": two})
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `wide` | -0.0100 ± 0.0010 | prose | no | -0.0200 ± 0.0300 | -0.0100 ± 0.0010 |",
        "| `safe` | +0.0010 ± 0.0030 | prose | yes | -0.0200 ± 0.0100 | +0.0010 ± 0.0030 |",
        "| `worse` | +0.0200 ± 0.0010 | prose | no | -0.1000 ± 0.0010 | +0.0200 ± 0.0010 |",
        "| `lost` | diverged | code | no | diverged | +0.0000 ± 0.0000 |",
    ]


def test_what_was_not_tried_everywhere_or_on_one_seed_alone_is_not_called_harmless(tmp_path):
    one = report(tmp_path / "one", some=(-0.02, 0.01), single=(-0.02, None))
    text = compare({"code": one, "prose": report(tmp_path / "two", single=(-0.01, 0.001))})
    assert "| `single` | -0.0100 ± 0.0010 | prose | ? | -0.0200 |" in text
    assert "| `some` | -0.0200 ± 0.0100 | code |  | -0.0200 ± 0.0100 |  |" in text


def test_finished_studies_are_compared_by_their_folders(tmp_path, capsys):
    folders = [str(report(tmp_path / name, sgg=(-0.01, 0.001))) for name in ("one", "two")]
    assert main(["quality", *folders, "--output_dir", str(tmp_path / "out")]) == 0
    assert "| `sgg` | -0.0100 ± 0.0010 | one | yes |" in capsys.readouterr().out
    assert "`sgg`" in (tmp_path / "out/quality-tasks.md").read_text()
    (tmp_path / "empty").mkdir()
    assert main(["quality", folders[0], str(tmp_path / "empty")]) == 2
    assert "has no quality.json of a study" in capsys.readouterr().err
    assert main(["quality", folders[0], folders[0]]) == 2
    assert "give each another name" in capsys.readouterr().err


def test_studies_with_different_baselines_are_not_compared(tmp_path):
    one, two = report(tmp_path / "one"), report(tmp_path / "two")
    (two / "quality.json").write_text((two / "quality.json").read_text().replace("adamw", "lion"))
    with pytest.raises(ConfigError, match="different baselines: adamw, lion"):
        compare({"one": one, "two": two})
