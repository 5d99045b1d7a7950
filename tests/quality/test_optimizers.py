"""What a study asks of an optimizer reaches it: layers left out, LoRA, two optimizers as one, micro-batches.

Guards against arms that train something else than their name says, which no table of losses would show.
"""

import copy
import json

import pytest
import pytorch_optimizer
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradscale.options import OptionError
from gradscale.quality.cell import Cell, train
from gradscale.quality.optimizers import class_and_options, make_optimizer
from gradscale.quality.study import study_of
from gradscale.quality.together import Together
from gradscale.training.errors import ConfigError
from tests.training.conftest import make_text

MODEL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
MODEL = {**MODEL, "num_attention_heads": 2, "tie_word_embeddings": False}

ONE_SCALE = {"grouping": "layer", "global_mda": "clusters"}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    (folder / "text.txt").write_text(make_text(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield {
            "model_config": MODEL,
            "train_files": [str(folder / "text.txt")],
            "vocab_size": 260,
            "block_size": 16,
            "max_eval_tokens": 64,
            "steps": 2,
            "batch_size": 6,
            "warmup": 0.0,
            "learning_rates": [1e-2],
        }


def arm(task=None, **given):
    base = {"model_config": MODEL, "corpus": "stdlib", "learning_rates": [1e-2]} if task is None else task
    return study_of({**base, "optimizers": {"arm": given}}).arms["arm"]


def model():
    return LlamaForCausalLM(LlamaConfig(vocab_size=12, **{k: v for k, v in MODEL.items() if k != "model_type"}))


def names_of(optimizer, net):
    names = {id(param): name for name, param in net.named_parameters()}
    return [[names[id(param)] for param in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("optim", ["sgg_adamw", "sgg_muon"])
def test_layers_of_kinds_that_are_left_out_have_no_scales(optim):
    net = model()
    asked = arm(optim=optim, options={"recluster_interval": 1}, unscaled=["embedding", "head"])
    optimizer, _ = make_optimizer(asked, 1e-2, net, {})
    net(input_ids=torch.arange(12).view(2, 6), labels=torch.arange(12).view(2, 6)).loss.backward()
    optimizer.step()
    grouped = {layer.name for layer in optimizer.grouping_report.layers}
    matrices = {name for name, param in net.named_parameters() if param.dim() >= 2}
    assert grouped == matrices - {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_second_optimizer_has_what_is_no_hidden_matrix():
    net = model()
    asked = arm(optim="torch.optim.Muon", rest="torch.optim.AdamW", rates={"embedding": 4, "matrix": 0.5})
    optimizer, factors = make_optimizer(asked, 1e-2, net, {})
    assert isinstance(optimizer, Together)
    muon, adamw = optimizer._optimizers
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    groups = names_of(optimizer, net)
    assert sorted(sum(groups, [])) == sorted(name for name, _ in net.named_parameters())
    assert all("proj" in name for names in names_of(muon, net) for name in names)
    assert dict(zip(map(tuple, groups), factors, strict=True))[("model.embed_tokens.weight",)] == 4
    assert factors[: len(muon.param_groups)] == [0.5]
    assert all(group["betas"] == (0.9, 0.99) for group in adamw.param_groups)
    before = copy.deepcopy(list(net.parameters()))
    net(input_ids=torch.arange(12).view(2, 6), labels=torch.arange(12).view(2, 6)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert all(not torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    assert all(param.grad is None for param in net.parameters())


def test_an_optimizer_that_takes_the_model_has_the_studys_decay_and_the_layers_multipliers():
    net = model()
    asked = arm(optim="pytorch_optimizer.AdamMini", options={"num_embeds": 16, "num_heads": 2}, weight_decay=0.3)
    optimizer, factors = make_optimizer(asked, 1e-2, net, {"lm_head.weight": 3.0})
    for names, group, factor in zip(names_of(optimizer, net), optimizer.param_groups, factors, strict=True):
        assert group["weight_decay"] == (0.0 if "norm" in names[0] else 0.3)
        assert factor == (3.0 if names == ["lm_head.weight"] else 1.0)
        assert group["betas"] == (0.9, 0.99)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optim": "torch.optim.AdamW", "unscaled": ["head"]}, r"unscaled=\['head'\] is not allowed: torch.optim.Ad"),
        ({"optim": "sgg_adamw", "rest": "torch.optim.AdamW"}, "rest='torch.optim.AdamW' is not allowed: sgg_adamw"),
        ({"optim": "torch.optim.Muon", "rest": "torch.optim.Adamw"}, "torch.optim has no 'Adamw'"),
        ({"optim": "pytorch_optimizer.AdamMini", "rates": {"head": 2}}, "rates is not allowed: .*takes the model"),
        ({"optim": "torch.optim.AdamW", "control": "random_labels"}, "control='random_labels' is not allowed: torch"),
        ({"optim": "sgg_muon", "control": "random_labels"}, "control='random_labels' is not allowed: sgg_muon has no"),
        ({"optim": "dgs_adamw", "control": "permuted_scales"}, "control='permuted_scales' is not allowed: dgs_adamw"),
        (
            {"optim": "sgg_adamw", "control": "random_labels"},  # live by default
            "control='random_labels' is not allowed with labels='live', which leaves it nothing",
        ),
        (
            {"optim": "sgg_adamw", "control": "permuted_scales", "options": ONE_SCALE},
            "control='permuted_scales' is not allowed with grouping='layer'",
        ),
        ({"optim": "sgg_adamw", "unscaled": "head"}, "unscaled='head' is not allowed: expected a list of embedding"),
        ({"optim": "sgg_adamw", "lora": {"rank": 4}}, "lora has no 'rank'"),
        ({"optim": "sgg_adamw", "lora": {"r": 0}}, "lora: r=0 is not allowed"),
        ({"optim": "sgg_adamw", "lora": {"target_modules": 3}}, "lora: target_modules=3 is not allowed"),
        ({"optim": "sgg_adamw", "options": {"preset": "papers"}}, "options: preset='papers' is not allowed"),
    ],
)
def test_what_does_not_go_together_is_named_before_anything_runs(given, said):
    with pytest.raises((ConfigError, OptionError), match=said):
        class_and_options(arm(**given))


def test_lora_trains_its_matrices_alone_from_the_same_start(task, monkeypatch):
    seen = {}

    def spy(asked, lr, net, multipliers):
        seen[asked.name] = net, {name: param.detach().clone() for name, param in net.named_parameters()}
        return make_optimizer(asked, lr, net, multipliers)

    monkeypatch.setattr("gradscale.quality.cell.make_optimizer", spy)
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    arms = {
        "adamw": {"optim": "torch.optim.AdamW", "lora": lora},
        "sgg": {"optim": "sgg_adamw", "options": {"recluster_interval": 1, "pool": "lora"}, "lora": lora},
    }
    study = study_of({**task, "optimizers": arms})
    results = {name: train(study, Cell(name, 1e-2, 3)) for name in arms}
    (net, adamw), (_, sgg) = seen["adamw"], seen["sgg"]
    assert all(torch.equal(adamw[name], sgg[name]) for name in adamw) and set(adamw) == set(sgg)
    moved = {name for name, param in net.named_parameters() if not torch.equal(param, adamw[name])}
    assert moved and all("lora_" in name for name in moved)
    assert results["sgg"]["groupings"] and results["adamw"]["status"] == "finished"


def test_a_lora_that_matches_nothing_is_an_error_of_the_study(task):
    lora = {"r": 2, "target_modules": ["nothing"]}
    study = study_of({**task, "optimizers": {"a": {"optim": "sgg_adamw", "lora": lora}}})
    with pytest.raises(ConfigError, match="a: lora: .*nothing"):
        train(study, Cell("a", 1e-2, 1))


def test_parts_of_a_batch_add_up_to_it(task):
    arms = {
        name: {"optim": "torch.optim.SGD", **({} if size is None else {"micro_batch_size": size})}
        for name, size in {"whole": None, "parts": 4}.items()  # of 6: 4 and 2
    }
    study = study_of({**task, "optimizers": arms})
    whole, parts = (train(study, Cell(name, 0.5, 3)) for name in arms)
    assert parts["validation_loss"] == pytest.approx(whole["validation_loss"], abs=1e-5)
    assert parts["train_loss"][-1][1] == pytest.approx(whole["train_loss"][-1][1], abs=1e-5)
    assert parts["validation_loss"] != train(study, Cell("parts", 0.4, 3))["validation_loss"]


def test_schedule_free_weights_are_switched_for_each_evaluation_and_back(task, monkeypatch):
    calls, cls = [], pytorch_optimizer.ScheduleFreeAdamW
    for name in ("train", "eval"):
        original = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda self, o=original, n=name: (calls.append(n), o(self))[1])
    asked = {"optim": "pytorch_optimizer.ScheduleFreeAdamW", "schedule": "constant", "steps": 4, "eval_every": 2}
    train(study_of({**task, "optimizers": {"free": asked}}), Cell("free", 1e-2, 1))
    assert calls == ["train", "eval", "train", "eval"]


def test_a_study_streams_a_data_set_of_the_hub(task, tmp_path):
    folder = tmp_path / "c4"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = [json.dumps({"text": line}) for line in make_text(40, seed=len(split)).splitlines()]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    given = {key: value for key, value in task.items() if key != "train_files"}
    given |= {"dataset_name": str(folder), "max_train_tokens": 3000}
    study = study_of({**given, "optimizers": {"sgg": {"optim": "sgg_adamw"}}})
    assert train(study, Cell("sgg", 1e-2, 1))["status"] == "finished"


@pytest.mark.parametrize(
    ("name", "parameters"), [("llama-1m", 0.86e6), ("llama-60m", 58.07e6), ("llama-130m", 134.1e6)]
)
def test_models_are_built_by_the_name_of_their_size(task, name, parameters):
    from transformers import AutoConfig, AutoModelForCausalLM

    from gradscale.bench.shapes import LLAMAS
    from gradscale.training.model import check_model_files

    arguments = study_of({**task, "model_config": name, "optimizers": {"a": {"optim": "sgg_adamw"}}}).task
    check_model_files(arguments)
    config = LLAMAS[name].config()
    vocabulary = 260 if name == "llama-1m" else 32000
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), vocab_size=vocabulary, **config)
        )
    assert sum(param.numel() for param in net.parameters()) == pytest.approx(parameters, rel=1e-2)


def test_an_unknown_size_names_the_nearest(task):
    from gradscale.training.model import check_model_files

    wrong = study_of({**task, "model_config": "llama-60", "optimizers": {"a": {"optim": "sgg_adamw"}}}).task
    with pytest.raises(ConfigError, match="no readable file 'llama-60', did you mean 'llama-60m'"):
        check_model_files(wrong)
