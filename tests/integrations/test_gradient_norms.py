"""Norms that GradientNormCallback logs in a Trainer are those of the gradients, at logging steps and once each.

Guards against norms of other steps, of other layers, or multiplied by what clipping and loss scaling do.
"""

import copy
import json
import os

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import gradscale
from tests.integrations.test_scripts import OLD_FILES


def tiny():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )


def data():
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 40, (12,), generator=generator) for _ in range(16)]
    # What is predicted of the first token counts in no loss; older Trainers count it as an item all the same.
    return [{"input_ids": row, "labels": torch.cat([torch.tensor([-100]), row[1:]])} for row in rows]


def train(folder, model=None, resume=None, **values):
    defaults = {
        "max_steps": 4,
        "logging_steps": 2,
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
    }
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True,
        learning_rate=1e-2, optim="sgd", lr_scheduler_type="constant", **{**defaults, **values},
    )  # fmt: skip
    trainer = Trainer(
        model=model or tiny(), args=arguments, train_dataset=data(), callbacks=[gradscale.GradientNormCallback()]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def lines(folder):
    return [json.loads(line) for line in (folder / "gradient_norms.jsonl").read_text().splitlines()]


def expected(steps, frozen=()):
    """Norms at each step of plain SGD on whole batches, written out."""
    model = tiny()
    found = []
    batch, labels = (torch.stack([row[key] for row in data()]) for key in ("input_ids", "labels"))
    for _ in range(steps):
        model.zero_grad()
        model(input_ids=batch, labels=labels).loss.backward()
        named = {name: param for name, param in model.named_parameters() if name not in frozen}
        found.append({name: float(param.grad.double().norm()) for name, param in named.items()})
        with torch.no_grad():
            for param in named.values():
                param -= 1e-2 * param.grad
    return found


def test_norms_are_those_of_the_gradients_at_logging_steps(tmp_path):
    model = tiny()
    frozen = "model.embed_tokens.weight"  # also the head: one tensor, one name
    reference = expected(4)
    # All the data in each step, in two batches: their order does not matter.
    train(tmp_path, copy.deepcopy(model), per_device_train_batch_size=8, gradient_accumulation_steps=2)
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [2, 4]
    for line in logged:
        norms = reference[line["step"] - 1]
        assert line["norms"] == pytest.approx(norms, rel=1e-4) and "lm_head.weight" not in line["norms"]
        assert line["total"] == pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5, rel=1e-4)
    model.get_parameter(frozen).requires_grad = False
    train(tmp_path, model, per_device_train_batch_size=16, logging_first_step=True, max_steps=2)
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [1, 2]  # and nothing of the run before
    assert [line["norms"] for line in logged] == [pytest.approx(one, rel=1e-4) for one in expected(2, (frozen,))]


def test_norms_are_those_after_clipping_and_the_log_has_the_norm_before(tmp_path):
    trainer = train(tmp_path, per_device_train_batch_size=16, max_grad_norm=0.1, max_steps=2, logging_steps=1)
    logged = {entry["step"]: entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry}
    first = lines(tmp_path)[0]
    assert first["total"] == pytest.approx(0.1, rel=1e-3) and logged[1] > 0.2
    before = {name: norm * logged[1] / first["total"] for name, norm in first["norms"].items()}
    assert before == pytest.approx(expected(1)[0], rel=1e-3)


def test_a_run_that_goes_on_keeps_the_lines_before_its_checkpoint_and_no_others(tmp_path, monkeypatch):
    for name, value in OLD_FILES.items():
        monkeypatch.setenv(name, value)
    train(tmp_path, save_strategy="steps", save_steps=2, logging_steps=1)
    whole = lines(tmp_path)
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    with (tmp_path / "gradient_norms.jsonl").open("a") as file:
        file.write('{"step": 5, "norms": {"half')  # killed while it wrote
    train(tmp_path, resume=str(tmp_path / "checkpoint-2"), logging_steps=1)
    again = lines(tmp_path)
    assert [line["step"] for line in again] == [1, 2, 3, 4] and again[:2] == whole[:2]
    for line, other in zip(again, whole, strict=True):
        assert line["norms"] == pytest.approx(other["norms"], rel=1e-4)


def test_the_loss_scale_is_taken_out_where_nobody_has(tmp_path):
    class Scaler:
        def get_scale(self):
            return 1024.0

    class Wrapped:
        scaler = Scaler()

    from types import SimpleNamespace

    model = torch.nn.Linear(3, 2, bias=False)
    model.weight.grad = torch.full((2, 3), 1024.0)
    state = SimpleNamespace(global_step=0, logging_steps=1, is_world_process_zero=True)
    for number, (max_norm, expected_norm) in enumerate(((0.0, 6**0.5), (1.0, 1024 * 6**0.5))):
        arguments = SimpleNamespace(output_dir=str(tmp_path / str(number)), max_grad_norm=max_norm)
        callback = gradscale.GradientNormCallback()
        callback.on_pre_optimizer_step(arguments, state, None, model=model, optimizer=Wrapped())
        # With max_grad_norm the Trainer has unscaled before it clipped.
        assert lines(tmp_path / str(number))[0]["norms"] == {"weight": pytest.approx(expected_norm)}


def test_deepspeed_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_DEEPSPEED", "true")
    callback = gradscale.GradientNormCallback()
    with pytest.raises(ValueError, match="cannot be logged with DeepSpeed.*log_gradient_norms"):
        callback.on_train_begin(object(), None, None)
