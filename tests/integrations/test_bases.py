"""SGG on SGD, Lion and LAMB by name in a Trainer, resumed in another process: Adam's options must not reach them."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from gradscale import SGGSGD, OptionError, SGGLamb, SGGLion

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER / "scripts"))
import tiny  # noqa: E402

NAMED = {
    "plain": ("sgg_sgd", SGGSGD, "recluster_interval=0.5", 0.1),
    "nesterov": ("sgg_sgd", SGGSGD, "momentum=0.9,nesterov=true", 3e-2),
    "lion": ("sgg_lion", SGGLion, "recluster_interval=2,labels=live", 1e-3),
    "lamb": ("sgg_lamb", SGGLamb, "recluster_interval=2,trust_clip=true", 1e-2),
}


def arguments(folder, name, **options):
    optim, _, optim_args, learning_rate = NAMED[name]
    options = {"optim_args": optim_args, "learning_rate": learning_rate, "max_steps": 6, "save_steps": 4, **options}
    return TrainingArguments(
        output_dir=str(folder),
        optim=optim,
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )


def make(folder, name, **options):
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(4, len(tiny.WORDS), (10,), generator=generator) for _ in range(32)]
    data = [{"input_ids": ids, "labels": ids} for ids in tokens]
    return Trainer(model=tiny.model(), args=arguments(folder, name, **options), train_dataset=data)


RESUME = """
import sys
from pathlib import Path
import torch
from tests.integrations.test_bases import NAMED, make
torch.set_num_threads(1)
for name in NAMED:
    trainer = make(Path(sys.argv[1], "resumed", name), name, weight_decay=0.01)
    trainer.train(resume_from_checkpoint=str(Path(sys.argv[1], name, "checkpoint-4")))
    saved = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.optimizer.state_dict()}
    torch.save(saved, Path(sys.argv[1], f"{name}.pt"))
"""


def test_runs_by_name_and_the_same_runs_resumed_in_a_new_process(tmp_path, monkeypatch):
    if version("transformers").startswith("4.46."):
        # It reads its own random state, numpy objects, as torch has refused to since 2.6, whatever the optimizer.
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    ends = {}
    for name, (_, cls, _, _) in NAMED.items():
        trainer = make(tmp_path / name, name, weight_decay=0.01)
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert type(optimizer) is cls
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 6 and losses[-1] < losses[0], name
        assert any("sgg/scale_mean" in entry for entry in trainer.state.log_history), name
        ends[name] = trainer.model.state_dict(), optimizer.state_dict()["state"]
    subprocess.run([sys.executable, "-c", RESUME, str(tmp_path)], check=True, cwd=FOLDER.parents[1])
    for name, (weights, states) in ends.items():
        saved = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert all(torch.equal(value, saved["model"][key]) for key, value in weights.items()), name
        for index, state in states.items():
            assert all(torch.equal(value, saved["optimizer"]["state"][index][key]) for key, value in state.items())


def test_options_of_adam_are_taken_where_they_are_the_bases_own(tmp_path):
    options = {"optim_args": None, "adam_beta1": 0.5, "adam_epsilon": 1e-3, "learning_rate": 0.125}
    groups = {}
    for name in ("plain", "lion", "lamb"):
        trainer = make(tmp_path, name, **options)
        trainer.create_optimizer()
        groups[name] = trainer.optimizer.param_groups[0]
    assert all(group["lr"] == 0.125 and group["recluster_interval"] == 0.05 for group in groups.values())
    assert "betas" not in groups["plain"] and groups["lion"]["betas"] == (0.9, 0.99)
    assert (groups["lamb"]["betas"], groups["lamb"]["eps"]) == ((0.5, 0.999), 1e-6)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("plain", "nesterov=true", ["nesterov=True needs momentum above 0"]),
        ("plain", "betas=[0.9,0.99]", ["betas", "sgg_sgd"]),
        ("plain", "momentum=1", ["momentum=1", "[0, 1)"]),
        ("lion", "eps=1e-8", ["eps", "sgg_lion"]),
        ("lion", "betas=[0.9,1]", ["betas", "[0, 1)"]),
        ("lamb", "trust_clip=2", ["trust_clip=2"]),
        ("lamb", "adapt_vector=true", ["adapt_vector", "did you mean 'adapt_vectors'"]),
        ("lamb", "amsgrad=true", ["amsgrad", "sgg_lamb"]),
    ],
)
def test_refused_when_the_arguments_are_made(name, text, words, tmp_path):
    with pytest.raises(OptionError) as error:
        arguments(tmp_path, name, optim_args=text)
    for word in ["--optim_args", *words]:
        assert word in str(error.value)
