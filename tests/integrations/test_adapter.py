"""The adapters in a Trainer, which is given the optimizer; guards against a resumed run that is another one."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from gradscale import DGS, SGG

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
import tiny  # noqa: E402

ADAPTERS = {
    "DGS": lambda base: DGS(base, form="normalized", importance_decay=0.9, reset_every=3),
    "SGG": lambda base: SGG(base, recluster_interval=0.25, total_steps="deferred"),
}


def make(folder, name, **options):
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(4, len(tiny.WORDS), (10,), generator=generator) for _ in range(32)]
    args = TrainingArguments(
        output_dir=str(folder),
        learning_rate=1e-2,
        max_steps=8,
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    model = tiny.model()
    optimizer = ADAPTERS[name](torch.optim.NAdam(model.parameters(), lr=1e-2))
    data = [{"input_ids": ids, "labels": ids} for ids in tokens]
    return Trainer(model=model, args=args, train_dataset=data, optimizers=(optimizer, None))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_run_and_the_same_run_resumed(name, tmp_path, monkeypatch):
    if version("transformers").startswith("4.46."):
        # It reads its own random state, numpy objects, as torch has refused to since 2.6, whatever the optimizer.
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    whole = make(tmp_path / "whole", name, save_steps=4)
    whole.train()
    adapter = whole.optimizer.optimizer
    assert type(adapter).__name__ == name and isinstance(adapter.base_optimizer, torch.optim.NAdam)
    if name == "SGG":
        assert adapter.grouping_report.step == 8 and adapter.param_groups[0]["sgg_total_steps"] == 8
        assert [entry["step"] for entry in whole.state.log_history if "sgg/scale_mean" in entry] == [2, 4, 6, 8]
    else:
        assert all(bool((own["dgs_importance"] > 0).any()) for own in adapter.state_dict()["state"].values())
    rates = [entry["learning_rate"] for entry in whole.state.log_history if "learning_rate" in entry]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]
    resumed = make(tmp_path / "resumed", name, save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
