"""The keys `lora` and `quantization` of `gradscale train`, with real runs of a tiny model.

Guards against adapters that nobody can use because what lies below them is lost, resumed runs that differ, and
options that PEFT or bitsandbytes take without a word.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from gradscale.cli.train import main
from gradscale.training.errors import ConfigError
from gradscale.training.settings import read_command

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}
SGG = {"optim": "sgg_adamw", "optim_args": {"recluster_interval": 2}}
FOUR_BIT = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "float32",
}
# bitsandbytes' kernels for CPUs want rows in multiples of 32, and columns in multiples of a quantized block of 64.
WIDE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def loss_by_hand(folder, text):
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    blocks = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    with torch.no_grad():
        scores = model(blocks).logits[:, :-1].double()
    return cross_entropy(scores.flatten(0, 1), blocks[:, 1:].flatten()).item()


def test_what_is_saved_is_the_model_that_was_measured(settings, write, tmp_path, workplace):
    assert main([write(settings | SGG | {"lora": LORA})]) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert 0 < run["trained_parameters"] < run["parameters"]
    expected = loss_by_hand(tmp_path / "out", (workplace / "validation.txt").read_text())
    assert run["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_has_the_same_base_and_ends_alike(settings, write, tmp_path):
    config = write(settings | SGG | {"lora": {**LORA, "lora_dropout": 0.1}, "save_steps": 4})
    whole, rest = tmp_path / "out", tmp_path / "rest"
    assert main([config]) == 0
    # Also where the seed would not bring the frozen weights back: what was written then counts.
    base = whole / "base" / "model.safetensors"
    assert base.is_file()
    assert main([config, "--output_dir", str(rest), "--resume_from_checkpoint", str(whole / "checkpoint-4")]) == 0
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, rest))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    written = json.loads((rest / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert written == str(base.parent.resolve()) and not (rest / "base").exists()


def test_starting_anew_makes_a_new_base(settings, write, tmp_path):
    config = write(settings | {"lora": LORA, "max_steps": 1})
    assert main([config]) == 0
    first = load_file(tmp_path / "out" / "base" / "model.safetensors")
    assert main([config, "--seed", "7", "--overwrite_output_dir"]) == 0
    second = load_file(tmp_path / "out" / "base" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(first[name], second[name])
    # Without an adapter nothing of one is left; what no run wrote stays.
    (tmp_path / "out" / "notes.md").write_text("not of a run")
    assert main([config, "--lora", "null", "--overwrite_output_dir"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "notes.md" in names and not names & {"base", "adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_compared_optimizers_start_from_the_same_adapter(settings, write, tmp_path):
    """Until the first grouping, SGG on AdamW as it is does what AdamW does."""
    more = {"lora": {**LORA, "target_modules": "all-linear"}, "compare_optim": ["adamw_torch"], "logging_steps": 1}
    own = {"recluster_interval": 6, "nesterov": False}
    assert main([write(settings | SGG | more | {"optim_args": own})]) == 0
    histories = []
    for name in ("sgg_adamw", "adamw_torch"):
        state = json.loads((tmp_path / "out" / name / "trainer_state.json").read_text())
        histories.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
    assert histories[0][:6] == pytest.approx(histories[1][:6], rel=1e-5) and histories[0] != histories[1]


@pytest.mark.parametrize("quantization", [FOUR_BIT, {"load_in_8bit": True}], ids=["4bit", "8bit"])
def test_a_quantized_model_trains_its_adapter_and_resumes(settings, write, tmp_path, quantization, capsys):
    more = {"model_config": WIDE, "lora": LORA, "quantization": quantization, "save_steps": 4}
    config = write(settings | SGG | more)
    assert main([config]) == 0
    whole, rest = tmp_path / "out", tmp_path / "rest"
    run = json.loads((whole / "run.json").read_text())
    # As many as without quantization: packed bytes are not parameters.
    assert main([write(settings | {"model_config": WIDE, "lora": LORA, "max_steps": 1, "output_dir": str(rest)})]) == 0
    assert run["parameters"] == json.loads((rest / "run.json").read_text())["parameters"]
    config = write(settings | SGG | more | {"output_dir": str(tmp_path / "again")})
    assert main([config, "--resume_from_checkpoint", str(whole / "checkpoint-4")]) == 0
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, tmp_path / "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_gradient_checkpointing_reaches_the_adapter(settings, write, tmp_path):
    config = write(settings | {"lora": LORA, "max_steps": 2})
    assert main([config]) == 0
    assert main([config, "--gradient_checkpointing", "--output_dir", str(tmp_path / "less")]) == 0
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "less"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
        assert "lora_B" not in name or one[name].abs().max() > 0


def test_an_adapter_on_a_model_from_a_folder(settings, write, tmp_path):
    assert main([write(settings)]) == 0
    tuning = {key: value for key, value in settings.items() if key not in ("model_config", "vocab_size")}
    more = {"model_name_or_path": str(tmp_path / "out"), "output_dir": str(tmp_path / "tuned"), "lora": LORA}
    assert main([write(tuning | more, "b.yaml"), "--learning_rate", "1e-9"]) == 0
    before, after = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("out", "tuned"))
    # With no learning to speak of, it is the model that it started from.
    assert after["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-4)
    assert not (tmp_path / "tuned" / "base").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "{rank: 8}"], "lora: there is no 'rank'"),
        (["--lora", "{lora_alfa: 8}"], "lora: there is no 'lora_alfa', did you mean 'lora_alpha'?"),
        (["--lora", "{r: 0}"], "lora: r=0 is not allowed: expected an integer of at least 1"),
        (["--lora", "{r: eight}"], "lora: r='eight' is not allowed"),
        (["--lora", "{lora_dropout: 1.0}"], "lora: lora_dropout=1.0 is not allowed: expected a number in [0, 1)"),
        (["--lora", "{target_modules: [1]}"], "lora: target_modules=[1] is not allowed: expected a list of module"),
        (["--lora", "{modules_to_save: lm_head}"], "modules_to_save='lm_head' is not allowed: expected a list"),
        (["--lora", "{use_dora: 1}"], "lora: use_dora=1 is not allowed: expected true or false"),
        (["--lora", "{task_type: SEQ_CLS}"], "lora: there is no 'task_type'"),
        (["--lora", "8"], "lora='8' is not allowed: expected a mapping"),
        (["--quantization", "{load_in_4bit: true}"], "quantization is given without lora"),
        (["--lora", "{r: 8}", "--quantization", "{}"], "quantization: set one of load_in_4bit, load_in_8bit to true"),
        (["--lora", "{r: 8}", "--quantization", "{load_in_4bits: true}"], "did you mean 'load_in_4bit'?"),
        (["--lora", "{r: 8}", "--quantization", "{load_in_4bit: true, load_in_8bit: true}"], "load_in_8bit are both"),
        (
            ["--lora", "{r: 8}", "--quantization", "{load_in_4bit: true, bnb_4bit_compute_dtype: bf17}"],
            "quantization: ",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_loads(settings, write, tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        read_command([write(settings), *options])
    assert message in str(caught.value)


def test_a_missing_library_is_named(settings, write, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    for module, key, options in (
        ("peft", "lora", ["--lora", "{r: 8}"]),
        ("bitsandbytes", "quantization", ["--lora", "{r: 8}", "--quantization", "{load_in_4bit: true}"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name, gone=module: None if name == gone else found(name))
            with pytest.raises(ConfigError, match=f"{key} needs {module}: pip install 'gradscale"):
                read_command([write(settings), *options])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora": {"target_modules": ["q_prj"]}}, "lora: Target modules"),
        ({"lora": LORA, "optim": "sgg_adamw", "optim_target_modules": ["nowhere"]}, "nowhere"),
    ],
)
def test_what_does_not_fit_the_model_leaves_nothing_behind(settings, write, tmp_path, capsys, more, message):
    assert main([write(settings | more)]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.*"))
