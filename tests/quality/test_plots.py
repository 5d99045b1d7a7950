"""Pictures of studies with many optimizers name those that matter, and stay readable."""

import matplotlib.figure
import pytest

from gradscale.quality.plots import draw
from gradscale.quality.statistics import lines
from gradscale.quality.study import study_of

RATES = (1e-3, 2e-3)


def result(loss):
    curve = [(10, 1.0, loss + 1), (20, 2.0, loss)]
    return {"status": "finished", "validation_loss": loss, "curve": curve, "groupings": [], "seconds": 2.0}


@pytest.mark.parametrize(("count", "named"), [(4, 4), (14, 10)])
def test_of_many_optimizers_the_baseline_and_the_lowest_are_named_and_all_are_drawn(
    tmp_path, monkeypatch, count, named
):
    names = ["adamw", *(f"other-{n}" for n in range(1, count))]
    arms = {name: {"optim": "torch.optim.AdamW", "learning_rates": list(RATES)} for name in names}
    study = study_of({"model_config": "llama-1m", "corpus": "stdlib", "seeds": [1], "optimizers": arms})
    # The baseline is the worst, and the last the best.
    results = {(name, lr, 1): result(5 - 0.1 * n + lr) for n, name in enumerate(names) for lr in RATES}
    found = lines(results, dict.fromkeys(names, RATES), "adamw", seeds=(1,), select_seeds=(1,), know_nothing=6.0)
    figures = {}
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, path, **k: (figures.update({path: self}), save(self, path))
    )
    paths = draw(study, found, results, tmp_path)
    assert len(paths) == 4 and all(path.stat().st_size > 1000 for path in paths)
    for path in (tmp_path / "curves.svg", tmp_path / "learning_rates.svg"):
        (axes,) = figures[path].axes
        assert len(axes.get_lines()) == count
        labels = [text.get_text().split(",")[0] for text in figures[path].legends[0].get_texts()]
        assert labels == ["adamw", *reversed(names[1:])][:named]
