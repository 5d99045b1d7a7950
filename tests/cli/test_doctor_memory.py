"""The bytes that `gradscale doctor` tells before a run must be those that the run takes.

State is compared with that of real optimizers: made by the Trainer here, and by real engines on pretended ranks in
`cases_doctor.py`.
"""

import contextlib
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from gradscale import SGGAdamW
from gradscale.doctor.memory import memory_of
from gradscale.optim.members import MemberTable
from tests.cli import cases_doctor
from tests.cli.doctor_runs import BILLION, RANKS, ask, fsdp, options_of, write, zero
from tests.engines.launch import run_ranks

BF16 = {"bf16": {"enabled": True}}
ENGINES = {
    "fsdp2": fsdp(2),
    "fsdp1": fsdp(1),
    "fsdp1 flat": fsdp(1, use_orig_params=False),
    "fsdp1 by size": fsdp(1, auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=200),
    "fsdp1 one unit": fsdp(1, use_orig_params=False, auto_wrap_policy="NO_WRAP"),
    "fsdp1 lora": fsdp(1, use_orig_params=False),
    "zero0": zero(0),
    "zero1": zero(1),
    "zero2": zero(2),
    "zero3": zero(3),
    "zero3 small": zero(3, sub_group_size=100),
    "zero0 bf16": zero(0, BF16),
    "zero1 bf16": zero(1, {**BF16, "data_types": {"grad_accum_dtype": "fp32"}}),
}


@pytest.fixture(scope="module")
def real_states(tiny, tmp_path_factory):
    return run_ranks(cases_doctor.every_engine, 1, tmp_path_factory.mktemp("engines"), tiny)[0]


def in_kinds(state):
    """Bytes of a state by the kinds that the doctor tells apart."""
    moments = sum(state.get(key, 0) for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
    scales = sum(state.get(key, 0) for key in ("scales", "boundaries", "owners", "step"))
    return {"moments": moments, "labels": state.get("labels", 0), "scales": scales}


def kinds_of(report):
    return {key: report["memory"][key] for key in ("moments", "labels", "scales")}


@pytest.mark.parametrize("name", ENGINES)
def test_state_is_that_of_the_real_engine_on_its_fullest_rank_to_the_byte(name, real_states, tiny, tmp_path, capsys):
    adapters = ["--lora_r", 3] if "lora" in name else []
    groups = ["--optim_args", "scope=all,labels=frozen,n_clusters=3"]  # of the constructor, which `cases_doctor` calls
    report = ask(capsys, "--model", tiny, *options_of(tmp_path, ENGINES[name]), *adapters, *groups)
    assert kinds_of(report) == in_kinds(real_states[name])
    assert report["engine"]["processes"] == RANKS


def trainer_of(tiny, folder, *, dtype=torch.float32, lora=None, **arguments):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny), dtype=dtype)
    if lora:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=lora))
    arguments = TrainingArguments(
        output_dir=str(folder), optim="sgg_adamw", use_cpu=True, report_to="none", **arguments
    )
    trainer = Trainer(model=model, args=arguments)
    trainer.create_optimizer()
    return trainer


def step(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    optimizer.step()


def bytes_of(optimizer):
    found = {}
    for state in optimizer.state.values():
        for key, value in state.items():
            found[key] = found.get(key, 0) + value.numel() * value.element_size()
    return found


ONE_SCALE = "grouping=layer,global_mda=clusters"
PLAIN = {
    "float32": ({}, []),
    "bfloat16": ({"dtype": torch.bfloat16}, ["--dtype", "bf16"]),
    "float16": ({"dtype": torch.float16}, ["--dtype", "fp16"]),
    "amsgrad": ({"optim_args": "amsgrad=true"}, ["--optim_args", "amsgrad=true"]),
    "frozen": ({"optim_args": "labels=frozen"}, ["--optim_args", "labels=frozen"]),
    "one cluster": ({"optim_args": "n_clusters=1"}, ["--optim_args", "n_clusters=1"]),
    "layer": ({"optim_args": ONE_SCALE}, ["--optim_args", ONE_SCALE]),
    "static": ({"optim_args": "grouping=static"}, ["--optim_args", "grouping=static"]),
    "gmm": ({"optim_args": "grouping=gmm"}, ["--optim_args", "grouping=gmm"]),
    "targets": (
        {"optim_target_modules": ["q_proj", "v_proj"]},
        ["--optim_target_modules", "q_proj", "v_proj"],
    ),
    "lora": ({"lora": 3}, ["--lora_r", "3"]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_trainer_s_optimizer_has_the_state_and_scales_the_layers_that_were_told(name, tiny, tmp_path, capsys):
    arguments, options = PLAIN[name]
    trainer = trainer_of(tiny, tmp_path, max_steps=20, **arguments)  # 5 % of it: grouped in every step
    step(trainer.optimizer)
    report = ask(capsys, "--model", tiny, "--max_steps", 20, *options)
    assert kinds_of(report) == in_kinds(bytes_of(trainer.optimizer))
    grouping = trainer.optimizer.grouping_report
    scaled = {one["name"] for one in report["parameters"] if one["scaled"]}
    assert scaled == ({layer.name for layer in grouping.layers} if grouping else set())
    trained = {one["name"] for one in report["parameters"] if one["trainable"]}
    assert trained == {name for name, param in trainer.model.named_parameters() if param.requires_grad}
    assert (report["optimizer"]["interval"], report["optimizer"]["scaled_layers"]) == (1, len(scaled))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_state_for_comparison_is_that_of_torch_s_adamw(dtype, tiny, tmp_path, capsys):
    model = trainer_of(tiny, tmp_path, dtype=dtype).model
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    step(optimizer)
    report = ask(capsys, "--model", tiny, "--dtype", str(dtype).removeprefix("torch."))
    assert report["memory"]["adamw"] == sum(bytes_of(optimizer).values())


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside take together at any time."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tensors_in((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.alive and key not in given:
                self.alive[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.forget, key)
        return result

    def forget(self, key):
        self.now -= self.alive.pop(key, 0)


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peak_of_a_step(shapes, *, dtype=torch.float32, **options):
    """Peak of the last of 3 steps, of which the second groups where T is 2, and what was told."""
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = SGGAdamW(params, **options)
    for turn in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        with Peak() if turn == 2 else contextlib.nullcontext() as peak:  # torch does not compile under it
            optimizer.step()
    members = MemberTable(optimizer._roster, optimizer.scaler).members(optimizer.param_groups)
    return peak.most, memory_of(optimizer, members)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"labels": "live", "kahan_sum": True}, {"n_clusters": 1}, {"moments_dtype": "bfloat16"}], ids=str
)
def test_a_step_takes_for_a_moment_at_most_what_was_told(dtype, options):
    small, _ = peak_of_a_step([(64, 2048), (512,)], dtype=dtype, recluster_interval=100, **options)
    measured, memory = peak_of_a_step([(256, 2048), (512,)], dtype=dtype, recluster_interval=100, **options)
    assert memory.step / 3 < measured <= memory.step * 1.001
    assert measured == pytest.approx(small, rel=0.01)  # whatever the size of the tensor


def test_a_compiled_step_takes_nothing_for_a_moment():
    measured, memory = peak_of_a_step([(64, 2048), (512,)], recluster_interval=100, kernel="compiled")
    assert measured <= 1024 and memory.step == 0


@pytest.mark.parametrize("shapes", [[(8, 8)] * 3, [(8, 8)] * 20, [(300, 400)] * 32, [(1024, 1024)]], ids=str)
def test_a_grouping_takes_for_a_moment_about_what_was_told(shapes):
    measured, memory = peak_of_a_step(shapes, recluster_interval=3, kernel="eager")
    assert 0.5 < measured / memory.grouping < 1.4  # how many bins are occupied depends on the momenta


def test_a_grouping_takes_no_more_for_a_moment_where_there_are_more_layers():
    some, told = peak_of_a_step([(8, 8)] * 32, recluster_interval=3)
    many, told_of_many = peak_of_a_step([(8, 8)] * 128, recluster_interval=3)
    assert many == pytest.approx(some, rel=0.1) and told_of_many.grouping == told.grouping


def test_the_numbers_of_the_documented_llama_come_out(tmp_path, capsys):
    model = write(tmp_path, "config.json", BILLION)
    config = write(tmp_path, "fsdp2.yaml", fsdp(2, 8))
    report = ask(capsys, "--model", model, "--accelerate_config", config, "--optim_args", "scope=all,labels=frozen")
    assert report["optimizer"]["scaled_layers"] == 170
    assert report["sent"]["all_reduce"] == 44_391_080
    assert report["sent"]["ring_traffic_per_rank"] == 44_391_080 * 2 * 7 // 8
    elements = report["optimizer"]["scaled_elements"]
    assert 1.33e9 < report["model"]["parameters"] < 1.35e9
    # Rows of 5461 do not divide by 8.
    assert elements / 8 <= report["memory"]["labels"] < 1.001 * elements / 8
    assert 166e6 < report["memory"]["labels"] < 168e6


def test_mixed_precision_has_fsdp_step_in_float32(tiny, tmp_path, capsys):
    config = write(tmp_path, "fsdp2.yaml", fsdp(2))
    arguments = ["--model", tiny, "--accelerate_config", config, "--dtype", "bf16"]
    plain = ask(capsys, *arguments)["memory"]
    mixed = ask(capsys, *arguments, "--mixed_precision", "bf16")["memory"]
    assert (plain["stepped_in"], mixed["stepped_in"]) == ("bfloat16", "float32")
    assert mixed["moments"] == 2 * plain["moments"]


def test_copies_of_shards_and_whole_copies_are_told_apart(tiny, tmp_path, capsys):
    sizes = {"parallelism_config_dp_replicate_size": 2, "parallelism_config_dp_shard_size": 2}
    hybrid = ask(capsys, "--model", tiny, *options_of(tmp_path, fsdp(2, more={"parallelism_config": sizes})))
    on_2 = ask(capsys, "--model", tiny, *options_of(tmp_path, fsdp(2, 2)))
    ddp = ask(capsys, "--model", tiny, "--num_processes", 4)
    alone = ask(capsys, "--model", tiny)
    assert (hybrid["engine"]["shards"], hybrid["engine"]["copies"]) == (2, 2)
    assert hybrid["memory"] == on_2["memory"] and hybrid["sent"] == on_2["sent"]
    assert hybrid["sent"]["ring_traffic_per_rank"] == hybrid["sent"]["all_reduce"] == 14 * 65_281 * 4
    assert ddp["memory"] == alone["memory"] and ddp["sent"]["all_reduce"] == 0
    shardings = [report["parameters"][0]["sharding"] for report in (hybrid, on_2, ddp, alone)]
    assert shardings == [
        "at most 49 of 97 rows on each of 2 ranks, in 2 copies",
        "at most 49 of 97 rows on each of 2 ranks",
        "whole on every rank",
        "whole",
    ]
