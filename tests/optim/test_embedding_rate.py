"""`embedding_lr_factor`: a rate of its own for the input embedding, which must reach it, and nothing but it.

Guards against a factor that is lost on the way (a tensor as learning rate, groups that have rates of their own, a copy,
a checkpoint), one that reaches other parameters, and param groups that are others than without it: a checkpoint of
AdamW would not fit them.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

from gradscale import SGGSGD, SGGAdam, SGGAdamW, SGGLamb, SGGLion
from gradscale.extend import CustomOptimizer, PlainRule, SGGScaler
from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.embedding_rate import EMBEDDING_FACTOR
from gradscale.options import OptionError


class Language(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 9, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        return self.head(self.norm(self.embed(ids)))


class Plain(CustomOptimizer):
    """SGD."""

    class Rule(PlainRule):
        def accumulate(self, grad, state, constants, plan):
            pass

        def direction(self, grad, state, constants, plan):
            return grad.clone()

    base, scaler = Rule(), SGGScaler()


ALL = [SGGAdamW, SGGAdam, SGGSGD, SGGLion, SGGLamb, DGSSGD, DGSLARS, DGSAdamW, DGSAdam, Plain]


def train(model, optimizer, steps=6):
    torch.manual_seed(2)
    for _ in range(steps):
        ids = torch.randint(9, (4, 5))
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def models(**options):
    torch.manual_seed(1)
    model, twin = Language(**options), Language(**options)
    twin.load_state_dict(model.state_dict())
    return model, twin


@pytest.mark.parametrize("cls", ALL)
def test_it_is_what_a_group_with_that_rate_would_be(cls):
    model, twin = models()
    shared = {"recluster_interval": 2} if "recluster_interval" in cls.scaler.options else {}
    optimizer = cls(model.parameters(), lr=1e-2, module=model, embedding_lr_factor=8, **shared)
    others = [param for param in twin.parameters() if param is not twin.embed.weight]
    by_hand = cls([{"params": others}, {"params": [twin.embed.weight], "lr": 8e-2}], lr=1e-2, module=twin, **shared)
    train(model, optimizer)
    train(twin, by_hand)
    assert [(group["lr"], group["embedding_lr_factor"]) for group in optimizer.param_groups] == [(1e-2, 8)]
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    plain, _ = models()
    train(plain, cls(plain.parameters(), lr=1e-2, module=plain, **shared))
    assert not torch.equal(plain.embed.weight, model.embed.weight)


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
def test_groups_keep_their_own_rates_and_the_factor_may_change(kernel):
    """Also in compiled code, whose calls are remembered from step to step."""
    model, twin = models()

    def groups(model, factor):
        return [
            {"params": [("own name", model.embed.weight)], "lr": 3e-3, "weight_decay": 0.5, **factor},
            {"params": [("head", model.head.weight), ("gain", model.norm.weight)], "lr": torch.tensor(1e-2)},
        ]

    shared = {"recluster_interval": 2, "kernel": kernel}
    optimizer = SGGAdamW(groups(model, {}), module=model, embedding_lr_factor=4, **shared)
    by_hand = SGGAdamW(groups(twin, {"lr": 1.2e-2}), **shared)
    train(model, optimizer, steps=3)
    train(twin, by_hand, steps=3)
    optimizer.param_groups[0]["embedding_lr_factor"], by_hand.param_groups[0]["lr"] = 2.0, 6e-3
    train(model, optimizer, steps=3)
    train(twin, by_hand, steps=3)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_tied_head_goes_along():
    model, twin = models(tied=True)
    train(model, SGGAdamW(model.parameters(), lr=1e-2, module=model, embedding_lr_factor=2))
    tied, others = [twin.embed.weight], [twin.norm.weight, twin.norm.bias]
    train(twin, SGGAdamW([{"params": tied, "lr": 2e-2}, {"params": others, "lr": 1e-2}]))
    assert torch.equal(model.head.weight, twin.head.weight)


def factor_of(params, **options):
    return {group["embedding_lr_factor"] for group in SGGAdamW(params, **{"lr": 1e-2, **options}).param_groups}


def test_auto_is_the_factor_that_measured_best_where_it_can_act():
    model, _ = models()
    tied, _ = models(tied=True)
    assert EMBEDDING_FACTOR != 1 and factor_of(model.parameters()) == {1}
    assert factor_of(model.parameters(), module=model, embedding_lr_factor="auto") == {EMBEDDING_FACTOR}
    # Nobody says which is the embedding; the head is the embedding; there is none.
    assert factor_of(model.parameters(), embedding_lr_factor="auto") == {1}
    assert factor_of(tied.parameters(), module=tied, embedding_lr_factor="auto") == {1}
    assert factor_of(model.head.parameters(), module=model.head, embedding_lr_factor="auto") == {1}


@pytest.mark.parametrize("factor", [0, -1, "8", None, float("nan"), float("inf"), True])
def test_other_values_are_refused(factor):
    model, _ = models()
    with pytest.raises(OptionError, match="embedding_lr_factor"):
        SGGAdamW(model.parameters(), module=model, embedding_lr_factor=factor)
    with pytest.raises(OptionError, match="embedding_lr_factor"):
        SGGAdamW([{"params": model.parameters(), "embedding_lr_factor": factor}], module=model)


def test_a_factor_that_could_not_act_is_refused():
    model, _ = models()
    with pytest.raises(OptionError, match=r"embedding_lr_factor=8.* needs module="):
        SGGAdamW(model.parameters(), embedding_lr_factor=8)
    with pytest.raises(ValueError, match=r"Linear has no input embedding"):
        SGGAdamW(model.head.parameters(), module=model.head, embedding_lr_factor=8)
    model.embed.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="the input embedding is frozen"):
        SGGAdamW(model.head.parameters(), module=model, embedding_lr_factor=8)


@pytest.mark.parametrize("way", ["checkpoint", "deepcopy", "pickle"])
def test_a_run_goes_on_with_the_same_rates(way):
    model, twin = models()
    options = {"lr": 1e-2, "nesterov": True, "recluster_interval": 2}
    optimizer = SGGAdamW(model.parameters(), module=model, embedding_lr_factor=8, **options)
    train(model, optimizer)
    if way == "checkpoint":
        twin.load_state_dict(model.state_dict())
        resumed = SGGAdamW(twin.parameters(), module=twin, **options)  # the factor is in the checkpoint
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        both = model, optimizer
        twin, resumed = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
    train(model, optimizer)
    train(twin, resumed)
    assert torch.equal(model.embed.weight, twin.embed.weight) and torch.equal(model.head.weight, twin.head.weight)
    assert [group["embedding_lr_factor"] for group in resumed.param_groups] == [8]


def test_a_checkpoint_of_adamw_goes_on_with_nesterov_and_the_embeddings_rate():
    model, twin = models()
    plain = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, plain)
    twin.load_state_dict(model.state_dict())
    optimizer = SGGAdamW(twin.parameters(), lr=1e-2, module=twin, embedding_lr_factor="auto", recluster_interval=100)
    with pytest.warns(UserWarning, match="no groups for 2 layers"):
        optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    (group,) = optimizer.param_groups
    assert group["nesterov"] and group["embedding_lr_factor"] == EMBEDDING_FACTOR
    before = twin.embed.weight.detach().clone()
    train(model, plain, steps=1)
    train(twin, optimizer, steps=1)
    moved = [(one.embed.weight - before).abs().mean().item() for one in (model, twin)]
    assert moved[1] > 4 * moved[0]
