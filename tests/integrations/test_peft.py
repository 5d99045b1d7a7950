"""Adapters of PEFT in the Trainer, by name: what is trained is scaled, the frozen model costs nothing, runs resume.

One process, tiny models made from a configuration. What PEFT does to parameters in mid-run is what breaks optimizers:
gradients that are None, `requires_grad` that changes, ranks that are masked, adapters that join.
"""

import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

from gradscale import OptionError, SGGAdamW

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
import tiny  # noqa: E402

MODULES = ["q_proj", "v_proj", "up_proj"]
OPTIONS = "recluster_interval=1,min_layer_size=0"


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": MODULES, "task_type": "CAUSAL_LM", **options})


def adalora(**options):
    own = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1, "total_step": 6, **options}
    return AdaLoraConfig(**own, target_modules=MODULES, task_type="CAUSAL_LM", orth_reg_weight=0.5)


class Allocate(TrainerCallback):
    """What a user of AdaLoRA adds to a Trainer."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.base_model.update_and_allocate(state.global_step + 1)


def adapted(config):
    torch.manual_seed(3)
    return get_peft_model(tiny.model(), config)


def make(folder, model, *callbacks, optimizer=None, **options):
    tokenizer = tiny.tokenizer()
    rows = [tokenizer(text)["input_ids"] for text in tiny.sentences(16)]
    options = {"optim": "sgg_adamw", "optim_args": OPTIONS, "max_steps": 6, "save_strategy": "no", **options}
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    return Trainer(model, args, train_dataset=data, callbacks=list(callbacks), optimizers=(optimizer, None))


def inner(trainer):
    return trainer.optimizer.optimizer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def values(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


KINDS = {
    "LoRA": (lora(), ()),
    "LoRA, frozen labels": (lora(), ("labels=frozen",)),
    "rsLoRA, pooled": (lora(use_rslora=True), ("pool=lora",)),
    "DoRA, pooled, frozen labels": (lora(use_dora=True), ("pool=lora", "labels=frozen")),
    "DoRA, pooled": (lora(use_dora=True), ("pool=lora",)),
    "modules_to_save": (lora(modules_to_save=["lm_head"]), ()),
    "an embedding's, pooled": (lora(target_modules=["embed_tokens", *MODULES]), ("pool=lora",)),
    "AdaLoRA": (adalora(), ()),
    "AdaLoRA, pooled": (adalora(), ("pool=lora",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_scaled_and_what_is_frozen_costs_nothing(kind, tmp_path):
    config, options = KINDS[kind]
    model = adapted(config)
    callbacks = [Allocate()] if "AdaLoRA" in kind else []
    trainer = make(tmp_path, model, *callbacks, optim_args=",".join([OPTIONS, *options]))
    before = values(model)
    trainer.train()
    optimizer, params = inner(trainer), trained(model)
    assert type(optimizer) is SGGAdamW
    assert set(optimizer.state) == set(params.values())
    # A head that is trained whole is a head all the same.
    matrices = {name: param for name, param in params.items() if param.dim() >= 2 and "modules_to_save" not in name}
    labels = [state["labels"].numel() for state in optimizer.state.values() if "labels" in state]
    assert sum(labels) == (sum(param.numel() for param in matrices.values()) if "labels=frozen" in options else 0)
    reported = [name for one in optimizer.grouping_report.layers for name in (one.pooled or (one.name,))]
    assert sorted(reported) == sorted(matrices)
    assert any(one.pooled for one in optimizer.grouping_report.layers) == ("pool=lora" in options)
    after = values(model)
    # AdaLoRA marks its rank among the parameters; nothing trains it.
    changed = {name for name in after if not torch.equal(before[name], after[name]) and "ranknum" not in name}
    pruned = {name for name in params if "lora_E" in name and not after[name].any()}
    assert changed | pruned == set(params) and len(pruned) < len(MODULES)
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert any((optimizer.state[param]["scales"] != 1).any() for param in matrices.values())


def test_adalora_prunes_in_mid_run_and_its_penalty_reaches_the_momentum(tmp_path):
    model = adapted(adalora())
    trainer = make(tmp_path, model, Allocate())
    trainer.train()
    energies = {name: param for name, param in model.named_parameters() if "lora_E" in name}
    assert sum(int((param == 0).sum()) for param in energies.values()) == len(energies) * 2  # 4 to begin with, 2 left
    for name, param in trained(model).items():
        state = inner(trainer).state[param]
        assert state["exp_avg"].shape == param.shape and state["exp_avg"].isfinite().all(), name
    # While E is 0 no gradient of the loss reaches A and B: what moves them at the first step is the penalty.
    model = adapted(adalora())
    trainer = make(tmp_path, model, Allocate(), max_steps=1)
    trainer.train()
    first = {one.name.split(".")[-2] for one in inner(trainer).grouping_report.layers}
    assert first == {"lora_A", "lora_B", "lora_E"}


def test_at_the_first_step_only_b_has_something_to_group(tmp_path):
    model = adapted(lora())
    trainer = make(tmp_path, model, max_steps=1, optim_args=f"{OPTIONS},pool=lora")
    trainer.train()
    names = [name for one in inner(trainer).grouping_report.layers for name in (one.pooled or (one.name,))]
    assert names == [name for name in trained(model) if "lora_B" in name]


@pytest.mark.parametrize("kind", ["DoRA, pooled", "modules_to_save", "an embedding's, pooled"])
def test_a_run_of_an_adapter_resumes_bit_for_bit(kind, tmp_path):
    config, options = KINDS[kind]
    ends = []
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        model = adapted(config)
        trainer = make(tmp_path, model, optim_args=",".join([OPTIONS, *options]), save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        ends.append((trained(model), inner(trainer)))
    (theirs, uninterrupted), (ours, resumed) = ends
    for name, param in theirs.items():
        assert torch.equal(param, ours[name]), name
        for key, value in uninterrupted.state[param].items():
            assert torch.equal(value, resumed.state[ours[name]][key]), (name, key)
    assert resumed.grouping_report == uninterrupted.grouping_report


def test_a_run_of_adalora_goes_on_from_a_checkpoint_of_before_ranks_are_taken(tmp_path):
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        model = adapted(adalora(tinit=2))
        trainer = make(tmp_path, model, Allocate(), save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 6
        for param in trained(model).values():
            state = inner(trainer).state[param]
            assert state["step"] == 6 and state["exp_avg"].shape == param.shape
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert all(state["step"] == 2 for state in saved["state"].values())


class Switch(TrainerCallback):
    """Trains one adapter after another."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.action(model)


def of_adapter(model, name):
    return {full: param for full, param in model.named_parameters() if f".{name}." in full}


def test_adapters_that_take_turns_keep_their_own_momentum_and_scales(tmp_path):
    model = adapted(lora())
    model.add_adapter("second", lora(r=3))
    named = [*of_adapter(model, "default").items(), *of_adapter(model, "second").items()]
    optimizer = SGGAdamW(named, lr=2e-2, recluster_interval=1, min_layer_size=0, pool="lora")
    seen = {}
    trainer = make(
        tmp_path,
        model,
        Switch(2, lambda model: (seen.update(values(model)), model.set_adapter("second"))),
        Switch(
            4,
            lambda model: (
                seen.update({f"at 4 {k}": v for k, v in values(model).items()}),
                model.set_adapter("default"),
            ),
        ),
        optimizer=optimizer,
    )
    start = values(model)
    trainer.train()
    end = values(model)
    for name in of_adapter(model, "second"):
        assert torch.equal(start[name], seen[name]) and torch.equal(seen[f"at 4 {name}"], end[name])
        assert not torch.equal(seen[name], end[name])
    for name in of_adapter(model, "default"):
        assert torch.equal(seen[name], seen[f"at 4 {name}"]) and not torch.equal(seen[name], end[name])
    steps = [optimizer.state[param]["step"].item() for _, param in named]
    assert steps == [4] * 12 + [2] * 12
    pools = {one.name for one in optimizer.grouping_report.layers}
    assert {"model.layers.0.self_attn.*.lora_A.default", "model.layers.0.self_attn.*.lora_A.second"} <= pools


def test_an_adapter_that_joins_in_mid_run_is_trained_and_found_by_name(tmp_path):
    model = adapted(lora())

    def join(model):
        model.add_adapter("late", lora())
        model.base_model.set_adapter(["default", "late"])
        added = of_adapter(model, "late").values()
        inner(trainer).add_param_group({"params": list(added), "lr": 2e-2, "weight_decay": 0.0})
        # The scheduler was made for the groups that there were.
        trainer.lr_scheduler.base_lrs.append(2e-2)
        trainer.lr_scheduler.lr_lambdas.append(lambda step: 1.0)

    trainer = make(tmp_path, model, Switch(3, join), optim_args=f"{OPTIONS},pool=lora")
    trainer.train()
    optimizer = inner(trainer)
    late = of_adapter(model, "late")
    assert [optimizer.state[param]["step"].item() for param in late.values()] == [3] * len(late)
    assert all(param.any() for param in late.values())
    pooled = {name for one in optimizer.grouping_report.layers for name in one.pooled}
    assert {name for name in late if "self_attn" in name} <= pooled


def test_a_new_trainer_takes_over_another_adapter_of_the_same_model(tmp_path):
    model = adapted(lora())
    make(tmp_path, model, max_steps=2).train()
    first = values(model)
    model.add_adapter("second", lora())
    model.set_adapter("second")
    trainer = make(tmp_path, model, max_steps=2)
    trainer.train()
    assert set(inner(trainer).state) == set(of_adapter(model, "second").values())
    assert all(torch.equal(first[name], param) for name, param in of_adapter(model, "default").items())


def test_merged_and_unloaded_models_compute_what_was_trained(tmp_path):
    ids = torch.arange(4, 14)[None]
    model = adapted(lora(use_dora=True))
    untouched = tiny.model()(input_ids=ids).logits
    make(tmp_path, model).train()
    model.save_pretrained(tmp_path / "adapter")
    model.eval()
    expected = model(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(tiny.model(), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
    torch.testing.assert_close(loaded.unload()(input_ids=ids).logits, untouched)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    # And on with the whole model, from which the adapter is gone.
    trainer = make(tmp_path, merged.requires_grad_(True), max_steps=1)
    trainer.train()
    assert not any("lora" in one.name for one in inner(trainer).grouping_report.layers)


QUANTIZED = {
    "4 bit": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "8 bit": BitsAndBytesConfig(load_in_8bit=True),
}


def quantized(folder, bits):
    tiny.model().save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QUANTIZED[bits], device_map={"": "cpu"})
    torch.manual_seed(3)
    return get_peft_model(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), lora())


@pytest.mark.parametrize(
    "bits, layer, dtype", [("4 bit", "Linear4bit", torch.uint8), ("8 bit", "Linear8bitLt", torch.int8)]
)
def test_qlora_trains_the_adapters_of_a_quantized_model_and_resumes(bits, layer, dtype, tmp_path):
    ends = []
    for checkpoint in (None, tmp_path / "run" / "checkpoint-3"):
        model = quantized(tmp_path / "base", bits)
        base = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.base_layer")
        assert type(base).__name__ == layer and base.weight.dtype == dtype
        codes = base.weight.detach().clone()
        trainer = make(tmp_path / "run", model, optim_args=f"{OPTIONS},pool=lora", save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        assert torch.equal(base.weight, codes)
        assert set(inner(trainer).state) == set(trained(model).values())
        assert all("lora_" in name for name in trained(model))
        ends.append(values(model))
        if checkpoint is None:
            assert losses(trainer)[-1] < losses(trainer)[0]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items() if "lora_" in name)


@pytest.mark.parametrize("bits, tolerance", [("4 bit", 1e-5), ("8 bit", 0.03)])
def test_gradients_through_a_quantized_base_are_those_through_its_weights_in_float(bits, tolerance, tmp_path):
    model = quantized(tmp_path / "base", bits)
    for name, param in trained(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.1)
    ids = torch.arange(4, 14)[None]

    def gradients(model):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: param.grad.clone() for name, param in trained(model).items()}

    # In training: for evaluation bitsandbytes packs 4-bit weights anew, and wants multiples of 32 rows.
    found = gradients(model.train())
    plain = adapted(lora())
    plain.load_state_dict({name: param for name, param in model.named_parameters() if "lora_" in name}, strict=False)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
                plain.get_submodule(name).weight.copy_(in_float(layer))
    for name, grad in gradients(plain).items():
        assert (found[name] - grad).norm() <= tolerance * grad.norm(), name


def in_float(layer):
    """The numbers that a layer's codes stand for."""
    if layer.weight.dtype == torch.uint8:
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer.state.CB * layer.state.SCB[:, None] / 127


def test_pools_of_a_model_without_adapters_are_refused_before_training(tmp_path):
    with pytest.raises(OptionError, match="pool='lora' has nothing to pool"):
        make(tmp_path, tiny.model(), optim_args="pool=lora").train()
    with pytest.raises(OptionError, match=r"pool='adapter' is not allowed"):
        make(tmp_path, tiny.model(), optim_args="pool=adapter")
