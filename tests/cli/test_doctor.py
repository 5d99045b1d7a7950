"""What `gradscale doctor` prints and how it ends: job scripts act on the exit status, and users on the words."""

import re
import resource
from pathlib import Path

import pytest
import transformers
from transformers import TrainingArguments

from gradscale.cli.doctor import main
from gradscale.doctor.environment import TESTED
from gradscale.integrations import registration
from tests.cli.doctor_runs import BILLION, accelerate, ask, fsdp, options_of, refusal, write, zero

ROOT = Path(__file__).parent.parent.parent
CPU = {"device": "cpu"}


def accelerate_at(name):
    return ["--accelerate_config", "{folder}/" + name]


def deepspeed_at(name):
    return ["--deepspeed", "{folder}/" + name, "--num_processes", "2"]


USAGE = {
    "no such file": (accelerate_at("fsdp3.yaml"), "there is no file .*fsdp3.yaml', did you mean .*fsdp2.yaml"),
    "a folder": (accelerate_at("empty"), "is a folder"),
    "yaml": (accelerate_at("bad.yaml"), "bad.yaml, line 2, column 1: this is not YAML: expected ',' or ']'"),
    "a key twice in yaml": (accelerate_at("twice.yaml"), "line 2.*'num_processes' is given twice"),
    "json": (deepspeed_at("bad.json"), "bad.json, line 1, column 9: this is not JSON"),
    "a key twice in json": (deepspeed_at("twice.json"), "gives the key 'a' twice"),
    "no mapping": (["--fsdp_config", "{folder}/list.json", "--num_processes", "2"], "holds list"),
    "an unknown type": (accelerate_at("type.yaml"), "'MULTI_GPUS' is unknown, did you mean 'MULTI_GPU'"),
    "an unknown key": (accelerate_at("key.yaml"), "unknown key 'num_proceses', did you mean 'num_processes'"),
    "a misspelled key": (accelerate_at("fsdp_key.yaml"), "unknown key 'fsdp_verison', did you mean 'fsdp_version'"),
    "a misspelled section": (deepspeed_at("key.json"), "'zero_optimisation', did you mean 'zero_optimization'"),
    "no in yaml": (accelerate_at("no.yaml"), 'write "no" in quotes'),
    "a strategy": (accelerate_at("strategy.yaml"), "fsdp_sharding_strategy='SOME' is not allowed"),
    "a stage": (deepspeed_at("stage.json"), "stage=4 is not allowed"),
    "no number of processes": (["--deepspeed", "{folder}/fine.json"], "--num_processes is missing"),
    "the same in the file": (accelerate_at("processes.yaml"), "give --num_processes"),
    "a kind of model": (["--model", "{folder}/lama.json"], "unknown model_type 'lama', did you mean 'llama'"),
    "no kind of model": (["--model", "{folder}/fine.json"], 'has no "model_type"'),
    "an empty folder": (["--model", "{folder}/empty"], "has no config.json"),
    "a model that is not there": (["--model", "gradscale/no-such-model"], "no configuration"),
    "an optimizer": (["--optim", "sgg_adamx"], "did you mean 'sgg_adam"),
    "an option": (["--optim_args", "n_cluster=3"], "did you mean 'n_clusters'"),
    "a switch of torch's": (["--optim_args", "fused=true"], "unknown option fused=True"),
    "a module": (["--model", "{model}", "--optim_target_modules", "q_prj"], "near names: 'q_proj'"),
    "adapters of nothing": (["--lora_r", "4"], "adapters need --model"),
    "adapters nowhere": (["--model", "{model}", "--lora_r", "4", "--lora_target_modules", "x"], "--lora_r=4: .*x"),
}
FILES = {
    "fsdp2.yaml": fsdp(2),
    "bad.yaml": "a: [1\n",
    "twice.yaml": "num_processes: 1\nnum_processes: 2\n",
    "bad.json": '{"a": 1,}',
    "twice.json": '{"a": 1, "a": 2}',
    "list.json": [1],
    "type.yaml": accelerate("MULTI_GPUS"),
    "key.yaml": {**accelerate("MULTI_GPU"), "num_proceses": 2},
    "fsdp_key.yaml": accelerate("FSDP", fsdp_config={"fsdp_verison": 2}),
    "key.json": {"zero_optimisation": {"stage": 3}},
    "no.yaml": "distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: no\n",
    "strategy.yaml": fsdp(1, sharding_strategy="SOME"),
    "stage.json": zero(4),
    "fine.json": zero(1),
    "processes.yaml": accelerate("MULTI_GPU", -1),
    "lama.json": {"model_type": "lama"},
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    for name, content in FILES.items():
        write(folder, name, content)
    return folder


@pytest.mark.parametrize("name", USAGE)
def test_what_cannot_be_read_or_is_unknown_ends_with_exit_status_2_and_says_why(name, bad_files, tiny, capsys):
    options, message = USAGE[name]
    options = [option.replace("{folder}", str(bad_files)).replace("{model}", tiny) for option in options]
    error = refusal(capsys, *options)
    assert error.startswith("gradscale doctor: ") and re.search(message, error), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "options", [["--dtype", "int8"], ["--num_processes", "0"], ["--max_steps", "x"], ["--modle", "x"]]
)
def test_what_is_no_option_or_no_value_of_one_ends_with_exit_status_2(options, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err


@pytest.mark.parametrize("value", ["n_cluster=3", "n_clusters=0", "betas=[0.9", "lr=1e-3"])
def test_options_are_refused_in_the_words_of_training_arguments(value, tmp_path, capsys):
    with pytest.raises(ValueError) as refused:
        TrainingArguments(output_dir=str(tmp_path), optim="sgg_adamw", optim_args=value)
    assert refusal(capsys, "--optim_args", value) == f"gradscale doctor: {refused.value}\n"


def test_without_a_model_it_prints_versions_and_registration_alone(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert f"transformers  {transformers.__version__}" in text and "sgg_adamw, sgg_adam" in text
    assert "Engine" not in text and "Parameters" not in text


def test_the_tested_versions_are_those_of_the_constraints():
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pinned[name] for name in TESTED} == TESTED


def test_a_transformers_that_could_not_be_extended_is_named(monkeypatch, capsys):
    monkeypatch.setitem(registration._failures, "transformers.trainer", AttributeError("it looks different"))
    report = ask(capsys, code=1)
    assert report["registration"]["failures"] == {"transformers.trainer": "AttributeError: it looks different"}
    assert "it looks different" in report["not_supported"][0]


def test_a_closed_door_is_named(monkeypatch, capsys):
    monkeypatch.setenv("GRADSCALE_AUTOLOAD", "0")
    report = ask(capsys)
    assert report["registration"]["autoload"] == "GRADSCALE_AUTOLOAD=0"
    assert "gradscale run" in report["watch_out"][0]


def test_a_library_older_than_allowed_is_named(monkeypatch, capsys):
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.40.0" if name == "transformers" else real(name))
    report = ask(capsys, code=1)
    assert report["not_supported"] == ["transformers 4.40.0 is too old: gradscale needs 4.46 or newer"]


def test_kinds_of_layers_are_counted_and_all_of_them_listed_on_request(tiny, capsys):
    assert main(["--model", tiny]) == 0
    short = capsys.readouterr().out
    assert main(["--model", tiny, "--all"]) == 0
    long = capsys.readouterr().out
    row = re.compile(r"model\.layers\.\*\.self_attn\.q_proj\.weight +\[6, 6\] +2 +yes +whole\n")
    assert row.search(short) and not row.search(long)
    assert "model.layers.0.self_attn.q_proj.weight " in long and "model.layers.1.self_attn.q_proj.weight " in long
    assert "model.embed_tokens.weight (also lm_head.weight)" in short
    assert re.search(r"model\.norm\.weight +\[6\] +1 +no: 1-D", short)
    assert short.endswith("Verdict: would run\n")


def test_text_and_json_say_the_same(tiny, tmp_path, capsys):
    options = ["--model", tiny, *map(str, options_of(tmp_path, zero(3, offload_optimizer=CPU)))]
    report = ask(capsys, *options, code=1)
    assert main(options) == 1
    text = capsys.readouterr().out
    assert all(sentence in text for sentence in report["not_supported"])
    assert "DeepSpeed ZeRO 3" in text and "Verdict: would not run as asked: 1 not supported" in text
    assert f"{report['memory']['labels']} bytes" in text and "(host)" in text


def test_reasons_for_not_scaling_are_told(tiny, capsys):
    report = ask(capsys, "--model", tiny, "--lora_r", 2, "--optim_target_modules", "q_proj")
    reasons = {one["name"].removeprefix("base_model.model.model."): one["why_not"] for one in report["parameters"]}
    assert reasons["layers.0.self_attn.q_proj.lora_A.default.weight"] is None
    assert reasons["layers.0.self_attn.v_proj.lora_A.default.weight"] == "not in target modules"
    assert reasons["layers.0.self_attn.q_proj.base_layer.weight"] == "frozen"
    report = ask(capsys, "--model", tiny, "--optim_args", "n_clusters=1")
    reasons = {one["name"]: one["why_not"] for one in report["parameters"]}
    assert (reasons["model.norm.weight"], reasons["model.embed_tokens.weight"]) == ("1-D", "n_clusters=1")


def test_adapters_are_read_from_their_file_or_folder(tiny, tmp_path, capsys):
    file = write(tmp_path, "adapter_config.json", {"peft_type": "LORA", "r": 3, "task_type": "CAUSAL_LM"})
    by_file, by_folder = (ask(capsys, "--model", tiny, "--peft_config", path) for path in (file, tmp_path))
    by_rank = ask(capsys, "--model", tiny, "--lora_r", 3)
    assert by_file["memory"] == by_folder["memory"] == by_rank["memory"]
    assert by_rank["model"]["trainable"] < by_rank["model"]["parameters"]


def test_no_weights_are_made(tmp_path, capsys):
    """70 billion of them would be noticed."""
    large = {**BILLION, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256}
    before = peak_memory()
    report = ask(capsys, "--model", write(tmp_path, "config.json", large), "--lora_r", 16, "--num_processes", 8)
    assert report["model"]["parameters"] > 70e9
    assert peak_memory() - before < 500e6


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_page_shows_what_is_printed(tmp_path, capsys, monkeypatch):
    page = (ROOT / "docs" / "doctor.md").read_text()
    config, settings = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    command = re.search(r"```bash\ngradscale doctor (.*?)```", page, re.DOTALL).group(1).replace("\\\n", "").split()
    refused = re.search(r"`gradscale doctor (--model config.json --deepspeed .*?)`", page).group(1).split()
    shown, end = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    write(tmp_path, "config.json", config)
    write(tmp_path, "ds.json", settings)
    (tmp_path / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    # Versions are those of the machine.
    assert capsys.readouterr().out.partition("Registration")[2] == shown.partition("Registration")[2]
    assert main(refused) == 1
    assert capsys.readouterr().out.endswith(end)
