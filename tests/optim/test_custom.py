"""Bases and scalers of one's own: the examples of the docs as written, and what a name can and cannot be."""

import copy
import re
from pathlib import Path

import pytest
import torch

from gradscale import SGGAdamW, registry
from gradscale.extend import AdamRule, CustomOptimizer, PlainRule, PlainScaler, SGGScaler, register
from gradscale.integrations.training_args_patch import constructor_options, entry_of
from gradscale.registry import get_entry

DOCS = Path(__file__).parents[2] / "docs/bases.md"


@pytest.fixture(scope="module")
def examples():
    """The names that the Python blocks of the page make, run as they stand there."""
    names: dict[str, object] = {"__name__": "examples"}
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        assert len([line for line in block.splitlines() if line.strip()]) <= 30
        exec(compile(block, str(DOCS), "exec"), names)
    yield names
    # Other tests of this process list the names that the package has.
    for name in set(registry.REGISTRY) - {entry.name for entry in registry.ENTRIES}:
        del registry._BY_NAME[name]


def model_and_grads(steps=6):
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(12, 10)), torch.nn.Parameter(torch.randn(10))]
    return params, [[torch.randn_like(param) for param in params] for _ in range(steps)]


def run(optimizer, params, grads):
    for of_step in grads:
        for param, grad in zip(params, of_step, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
def test_the_example_of_a_base_is_signum_scaled_by_cluster(examples, kernel):
    params, grads = model_and_grads()
    weights = [param.detach().double() for param in params]
    optimizer = examples["SGGSignum"](params, lr=0.1, weight_decay=0.5, recluster_interval=3, kernel=kernel)
    first = run(optimizer, params, grads[:2])
    buffers = [torch.zeros_like(weight) for weight in weights]
    for of_step in grads[:2]:
        for weight, buffer, grad in zip(weights, buffers, of_step, strict=True):
            buffer.copy_(0.9 * buffer + 0.1 * grad)
            weight.copy_(weight * (1 - 0.1 * 0.5) - 0.1 * buffer.sign())
    for mine, weight in zip(first, weights, strict=True):
        torch.testing.assert_close(mine.double(), weight, rtol=1e-5, atol=1e-6)
    before = params[0].detach().clone()
    run(optimizer, params, grads[2:3])
    state = optimizer.state[params[0]]
    scale = state["scales"][state["labels"].long()]
    assert len(scale.unique()) == 3
    expected = before * (1 - 0.05) - 0.1 * scale * state["momentum_buffer"].sign()
    torch.testing.assert_close(params[0].detach(), expected)


def test_the_example_of_a_scaler_stops_where_momentum_and_gradient_disagree(examples):
    params, grads = model_and_grads(2)
    optimizer = examples["CautiousAdamW"](params, lr=0.1)
    run(optimizer, params, grads[:1])
    before = params[0].detach().clone()
    run(optimizer, params, grads[1:])
    against = optimizer.state[params[0]]["exp_avg"] * grads[1][0] < 0
    assert against.any() and torch.equal((params[0] == before), against)


def test_without_caution_it_is_adamw(examples):
    params, grads = model_and_grads()
    theirs = [torch.nn.Parameter(param.detach().clone()) for param in params]
    mine = run(examples["CautiousAdamW"](params, lr=0.1, caution=0.0), params, grads)
    for one, other in zip(
        mine, run(SGGAdamW(theirs, lr=0.1, weight_decay=0, n_clusters=1, nesterov=False), theirs, grads), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_saved_run_goes_on_as_it_was(examples):
    params, grads = model_and_grads()
    optimizer = examples["SGGSignum"](params, recluster_interval=2)
    run(optimizer, params, grads[:3])
    copies = [torch.nn.Parameter(param.detach().clone()) for param in params]
    again = examples["SGGSignum"](copies, recluster_interval=2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, other in zip(run(optimizer, params, grads[3:]), run(again, copies, grads[3:]), strict=True):
        assert torch.equal(one, other)


def test_a_registered_name_is_an_optimizer_of_the_trainer(examples, tmp_path):
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(tmp_path, optim="sgg_signum", optim_args="momentum=0.8,n_clusters=2", use_cpu=True)
    assert constructor_options(args, entry_of(args))["recluster_interval"] == 0.05
    optimizer = Trainer(model=torch.nn.Linear(3, 3), args=args).create_optimizer()
    assert type(optimizer) is examples["SGGSignum"]
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    with pytest.raises(ValueError, match="momentum=2 is not allowed"):
        TrainingArguments(tmp_path, optim="sgg_signum", optim_args="momentum=2", use_cpu=True)


@pytest.mark.parametrize("name", ["sgg_adamw", "SGG", "sgg signum", ""])
def test_names_that_are_taken_or_none_are_refused(name):
    class Mine(CustomOptimizer):
        base, scaler = AdamRule(decoupled_weight_decay=True), SGGScaler()

    with pytest.raises(ValueError, match=f"name={name!r} is not allowed"):
        register(name, Mine)
    assert get_entry("sgg_adamw").load() is SGGAdamW


def test_what_is_no_custom_optimizer_is_refused():
    with pytest.raises(TypeError, match="expected a subclass of CustomOptimizer"):
        register("mine", torch.optim.SGD)


def test_a_mistyped_option_names_the_nearest(examples):
    with pytest.raises(
        TypeError, match=r"SGGSignum\(\) got an unexpected keyword argument 'momentun', did you mean 'mom"
    ):
        examples["SGGSignum"]([torch.nn.Parameter(torch.zeros(2))], momentun=0.9)


def test_rules_that_compute_the_same_are_equal():
    class Other(PlainRule):
        def __init__(self, number):
            self.number = number

    assert Other(1) == Other(1) and hash(Other(1)) == hash(Other(1)) and Other(1) != Other(2)
    assert PlainScaler() == PlainScaler() and PlainScaler() != Other(1)
