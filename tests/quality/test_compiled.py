"""A compiled model trains as the one it was made of: same weights, same data, same groupings.

Guards against a study in which `compile` changes more than rounding, such as a step that is taken before the first.
"""

import pytest

from gradscale.quality.cell import Cell, train
from gradscale.quality.study import study_of
from tests.training.conftest import make_text

MODEL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
SGG = {"optim": "sgg_adamw", "options": {"recluster_interval": 2}, "learning_rates": [1e-2]}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "text.txt").write_text(make_text(60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield study_of(
            {
                "model_config": {**MODEL, "num_attention_heads": 2},
                "train_files": [str(folder / "text.txt")],
                "vocab_size": 260,
                "block_size": 16,
                "max_eval_tokens": 256,
                "steps": 5,
                "batch_size": 4,
                "eval_every": 1,
                "optimizers": {
                    "plain": SGG,
                    "compiled": {**SGG, "compile": True, "micro_batch_size": 2},
                },
            }
        )


def test_compiling_changes_rounding_alone(study):
    found = {name: train(study, Cell(name, 1e-2, 1)) for name in study.arms}
    plain, compiled = ([loss for *_, loss in found[name]["curve"]] for name in ("plain", "compiled"))
    assert len(plain) == 5 and plain == pytest.approx(compiled, rel=1e-3)
    assert plain[-1] < plain[0]
    assert [step for step, _ in found["compiled"]["groupings"]] == [2, 4]
