"""Guards against numbers that look better than the runs were: invented iterations, hidden divergence, mixed-up rows."""

import pytest

from gradscale.vision.curve import summarize, target_of
from gradscale.vision.methods import Cell, Method
from gradscale.vision.tables import iterations, make_tables, mean_and_spread


def evaluation(step, accuracy, loss=1.0):
    return {"step": step, "eval_accuracy": accuracy, "eval_loss": loss}


def run(accuracy=90.0, steps=100, status="finished", best=95.0, milliseconds=10.0):
    return {
        "accuracy": accuracy,
        "steps_to_target": steps,
        "status": status,
        "best_accuracy": best,
        "best_step": 150,
        "milliseconds_per_step": milliseconds,
    }


def test_a_log_gives_the_last_the_best_and_the_first_step_at_the_target():
    log = [
        {"step": 5, "loss": 2.0},
        evaluation(10, 0.5),
        evaluation(20, 0.9, loss=0.5),
        evaluation(30, 0.7),
        evaluation(40, 0.9),
        {"step": 40, "train_loss": 1.0},
    ]
    result = summarize(log, target_accuracy=70)
    assert result["curve"] == [(10, 50), (20, 90), (30, 70), (40, 90)]
    assert (result["accuracy"], result["best_accuracy"], result["best_step"]) == (90, 90, 20)
    assert (result["steps_to_target"], result["target_accuracy"], result["status"]) == (20, 70, "finished")
    assert result["validation_loss"] == 1.0


@pytest.mark.parametrize(("target", "step"), [(50, 10), (50.1, 20), (90, 20), (90.01, None)])
def test_a_target_is_reached_at_the_first_evaluation_that_is_at_least_it(target, step):
    assert target_of([(10, 50.0), (20, 90.0), (30, 89.0)], target)["steps_to_target"] == step


def test_a_target_that_is_met_exactly_is_reached_whatever_the_rounding():
    curve = [(1, 100 * (count / 360)) for count in (341, 342)]
    assert target_of(curve[1:], 95)["steps_to_target"] == 1 and target_of(curve[:1], 95)["steps_to_target"] is None
    for images in range(1, 2000):  # every share of a validation split of this size
        assert target_of([(1, 100 * (images / 2000))], images / 20)["steps_to_target"] == 1


@pytest.mark.parametrize(
    "log",
    [
        [evaluation(10, 0.1, loss=float("nan"))],
        [{"step": 5, "loss": float("inf")}, evaluation(10, 0.1)],
    ],
)
def test_a_loss_that_is_not_finite_is_a_divergence(log):
    result = summarize(log, target_accuracy=50)
    assert result["status"] == "diverged" and result["steps_to_target"] is None


def test_a_mean_has_its_spread_where_there_is_one():
    assert mean_and_spread([90.0, 91.0, 92.0], 2) == "91.00 ± 1.00"
    assert mean_and_spread([1000, 3000], 0) == "2,000 ± 1,414"
    assert mean_and_spread([91.0], 2) == "91.00"


def test_iterations_of_seeds_that_missed_the_target_are_not_invented():
    assert iterations([run(steps=100), run(steps=120)]) == "110 ± 14"
    assert iterations([run(steps=100), run(steps=None), run(steps=120)]) == "110 ± 14 (2 of 3 seeds)"
    assert iterations([run(steps=100), run(steps=None)]) == "100 (1 of 2 seeds)"
    assert iterations([run(steps=None)] * 3) == "not reached"
    assert iterations([run(steps=1)]) == "1"


def tables(models, *, seeds=2):
    """A study of two methods with resets and one without, in two tables; accuracies tell the cells apart."""
    resets = {"soft": {"decay": 0.1}, "hard": {}}
    methods = (
        Method("LARS", "Baseline", "a", 1.0, {"beta": 1}),
        Method("LARS", "DGS", "a", 2.0, {"beta": 1}, resets),
        Method("Adam", "DGS", "b", 3e-4, {}, resets, weight_decay=0.0),
    )
    accuracy, results = 10.0, {}
    for model, own in models.items():
        for method in methods:
            for reset in own if method.reset_args else (None,):
                for seed in range(seeds):
                    results[Cell(model, method, reset, seed)] = run(accuracy + 2 * seed)
                accuracy += 10
    return make_tables(
        results, models=models, methods=methods, seeds=seeds, data="pictures", target=95, weight_decay=1e-4
    )


def test_the_layout_is_that_of_the_papers_two_tables():
    lars, adam, peaks = tables({"resnet20": ("soft",), "resnet32": ("hard",)})
    assert lars.header == adam.header == ("Method", "Reset", "Accuracy (%)", "Iterations to 95 %")
    assert lars.heading == "LARS on pictures (2 seeds, mean ± standard deviation)"
    assert lars.rows == [
        ["ResNet20 - Baseline", "Soft", "11.00 ± 1.41", "100 ± 0"],
        ["ResNet20 - DGS", "Soft", "21.00 ± 1.41", "100 ± 0"],
        ["ResNet32 - Baseline", "Hard", "41.00 ± 1.41", "100 ± 0"],
        ["ResNet32 - DGS", "Hard", "51.00 ± 1.41", "100 ± 0"],
    ]
    assert [row[:3] for row in adam.rows] == [
        ["ResNet20 - DGS", "Soft", "31.00 ± 1.41"],
        ["ResNet32 - DGS", "Hard", "61.00 ± 1.41"],
    ]
    assert peaks.rows[1] == [
        *("LARS: ResNet20 - DGS", "Soft", "a", "beta=1, decay=0.1", "2", "0.0001"),
        *("95.00 ± 0.00, 150 ± 0", "10.0 ± 0.0"),
    ]
    assert [row[2:6] for row in peaks.rows[-1:]] == [["b", "-", "0.0003", "0"]]


def test_all_combinations_have_a_line_and_a_baseline_stands_under_both_resets():
    lars, *_ = tables({"resnet20": ("soft", "hard")}, seeds=1)
    assert lars.heading.endswith("(1 seed)")
    assert [row[:3] for row in lars.rows] == [
        ["ResNet20 - Baseline", "Soft", "10.00"],
        ["ResNet20 - DGS", "Soft", "20.00"],
        ["ResNet20 - Baseline", "Hard", "10.00"],
        ["ResNet20 - DGS", "Hard", "30.00"],
    ]


def test_divergence_is_said_beside_the_accuracy():
    method = Method("LARS", "DGS", "a", 1.0)
    results = {Cell("resnet20", method, None, seed): run(10.0 * seed) for seed in range(2)}
    results[Cell("resnet20", method, None, 2)] = run(5.0, steps=None, status="diverged", milliseconds=None)
    lars, _ = make_tables(
        results, models={"resnet20": ("soft",)}, methods=[method], seeds=3, data="x", target=9, weight_decay=0
    )
    assert lars.rows == [["ResNet20 - DGS", "Soft", "5.00 ± 5.00 (1 of 3 diverged)", "100 ± 0 (2 of 3 seeds)"]]


def test_text_and_markdown_say_the_same():
    lars, *_ = tables({"resnet20": ("soft",)})
    lines = lars.markdown.splitlines()
    assert lines[0] == f"### {lars.heading}" and lines[3] == "| --- | --- | --: | --: |"
    assert lines[4] == "| ResNet20 - Baseline | Soft | 11.00 ± 1.41 | 100 ± 0 |"
    assert "ResNet20 - Baseline  Soft   11.00 ± 1.41" in lars.text.splitlines()[3]
