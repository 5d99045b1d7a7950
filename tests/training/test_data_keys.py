"""`streaming` and `packing` in whole runs.

Guards against a resumed stream that begins anew, and losses over what is no text.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradscale.cli.train import main
from gradscale.training.errors import ConfigError
from gradscale.training.settings import read_command


@pytest.fixture
def rows(tmp_path, workplace):
    """A data set whose documents are lines, with a validation split, as a folder that `load_dataset` reads."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for split in ("train", "validation"):
        lines = (workplace / f"{split}.txt").read_text().splitlines()
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


@pytest.fixture
def on_rows(settings, rows):
    plain = {name: value for name, value in settings.items() if name not in ("train_files", "validation_files")}
    return plain | {"dataset_name": str(rows), "logging_steps": 1, "optim": "sgg_adamw"}


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one, two):
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_streamed_run_reads_in_order_and_resumes_where_it_was(on_rows, write, tmp_path, capsys):
    # 20 steps take more than one pass over the 120 documents.
    more = {"streaming": True, "max_steps": 20, "save_steps": 15, "gradient_accumulation_steps": 2}
    config = write(on_rows | more | {"optim_args": {"recluster_interval": 4}})
    whole, rest = tmp_path / "out", tmp_path / "rest"
    assert main([config]) == 0
    assert "training streamed" in capsys.readouterr().out
    run = json.loads((whole / "run.json").read_text())
    assert run["status"] == "finished" and run["tokens"] == 20 * 2 * 4 * 32 and run["validation_loss"] > 0
    assert main([config, "--output_dir", str(rest), "--resume_from_checkpoint", str(whole / "checkpoint-15")]) == 0
    assert_same(weights(whole), weights(rest))
    assert losses(whole) == losses(rest)


def test_a_stream_trains_on_the_first_blocks_of_the_data(on_rows, write, tmp_path):
    """The first loss of a streamed run is that of the untrained model on the first block, computed here by hand."""
    config = write(on_rows | {"streaming": True, "max_steps": 1, "learning_rate": 0, "per_device_train_batch_size": 2})
    assert main([config]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = [json.loads(line)["text"] for line in (tmp_path / "rows" / "train.jsonl").read_text().splitlines()[:9]]
    ids = [token for line in lines for token in (*tokenizer(line)["input_ids"], tokenizer.eos_token_id)]
    blocks = torch.tensor(ids[:64]).view(2, 32)
    with torch.no_grad():
        scores = model(blocks).logits[:, :-1]
    expected = cross_entropy(scores.flatten(0, 1), blocks[:, 1:].flatten()).item()
    assert losses(tmp_path / "out")[0] == pytest.approx(expected, rel=1e-3)


def test_documents_that_are_not_packed_stay_apart(on_rows, write, tmp_path, capsys):
    config = write(on_rows | {"packing": False, "block_size": 64, "max_steps": 3, "per_device_eval_batch_size": 1})
    assert main([config]) == 0
    assert "training 120 documents of 64 tokens each" in capsys.readouterr().out
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = []
    for line in (tmp_path / "rows" / "validation.jsonl").read_text().splitlines():
        ids = torch.tensor([*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id][:64])
        with torch.no_grad():
            expected.append(cross_entropy(model(ids[None]).logits[0, :-1].double(), ids[1:]).item())
    assert run["validation_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--streaming", "--max_steps", "-1"], "streaming needs max_steps"),
        (["--streaming", "--max_train_tokens", "1000"], "max_train_tokens is not allowed with it"),
        (["--streaming", "--no_packing"], "packing=false is not allowed with streaming=true"),
    ],
)
def test_what_cannot_be_streamed_is_refused(on_rows, write, options, message):
    with pytest.raises(ConfigError, match=message):
        read_command([write(on_rows), *options])


def test_ranks_share_a_stream_and_the_base_of_an_adapter(on_rows, write, tmp_path):
    """Two processes see what one sees in batches twice as large."""
    lora = {"r": 4, "target_modules": "all-linear"}
    more = {"streaming": True, "max_steps": 4, "lora": lora, "optim_args": {"recluster_interval": 2}}
    config = write(on_rows | more)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "gradscale.cli.main", "train", config, "--output_dir", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert main([config, "--per_device_train_batch_size", "8"]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "out"), rel=1e-4)
    one, two = (load_file(tmp_path / name / "base" / "model.safetensors") for name in ("out", "two"))
    assert_same(one, two)
    assert (tmp_path / "two" / "adapter_model.safetensors").is_file()
