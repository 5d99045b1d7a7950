"""`embedding_lr_factor`: a rate of its own for the input embedding, which must reach it, and nothing but it.

Guards against a factor that is lost on the way (a model without the embedding, a tensor as learning rate, groups that
have rates of their own), and against one that reaches other parameters.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

from gradscale import SGGSGD, SGGAdam, SGGAdamW, SGGLamb, SGGLion
from gradscale.extend import CustomOptimizer, PlainRule, SGGScaler
from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.param_groups import EMBEDDING_FACTOR
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
def test_it_is_a_group_with_that_rate(cls):
    model, twin = models()
    shared = {"recluster_interval": 2} if "recluster_interval" in cls.scaler.options else {}
    optimizer = cls(model.parameters(), lr=1e-2, module=model, embedding_lr_factor=8, **shared)
    others = [param for param in twin.parameters() if param is not twin.embed.weight]
    by_hand = cls([{"params": others}, {"params": [twin.embed.weight], "lr": 8e-2}], lr=1e-2, module=twin, **shared)
    train(model, optimizer)
    train(twin, by_hand)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 8e-2]
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    plain, _ = models()
    train(plain, cls(plain.parameters(), lr=1e-2, module=plain, **shared))
    assert not torch.equal(plain.embed.weight, model.embed.weight)


def test_groups_keep_their_own_rates_and_options():
    model, _ = models()
    named = dict(model.named_parameters())
    groups = [
        {"params": [(name, named[name]) for name in ("embed.weight", "head.weight")], "lr": 3e-3, "weight_decay": 0.5},
        {"params": [(name, named[name]) for name in ("norm.weight", "norm.bias")]},
    ]
    optimizer = SGGAdamW(
        groups, lr=1e-2, module=model, embedding_lr_factor=4, target_modules=["head"], recluster_interval=5
    )
    found = [
        (group["lr"], group["weight_decay"], group["scaled"], group["param_names"]) for group in optimizer.param_groups
    ]
    assert found == [
        (3e-3, 0.5, True, ["head.weight"]),
        (1.2e-2, 0.5, False, ["embed.weight"]),
        (1e-2, 1e-2, False, ["norm.weight", "norm.bias"]),
    ]
    assert groups[0]["lr"] == 3e-3 and len(groups[0]["params"]) == 2


def test_an_embedding_alone_in_its_group_leaves_no_empty_one():
    model, _ = models()
    optimizer = SGGAdamW([model.embed.weight], lr=1e-2, module=model, embedding_lr_factor=2)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-2]


def test_a_tied_head_goes_along():
    model, _ = models(tied=True)
    optimizer = SGGAdamW(model.parameters(), lr=1e-2, module=model, embedding_lr_factor=2)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]


def rates(params, **options):
    return [
        group["lr"] for group in SGGAdamW(params, embedding_lr_factor="auto", **{"lr": 1e-2, **options}).param_groups
    ]


def test_auto_is_the_factor_that_measured_best_where_it_can_act():
    model, _ = models()
    assert rates(model.parameters(), module=model) == [1e-2, EMBEDDING_FACTOR * 1e-2] and EMBEDDING_FACTOR != 1
    own = [{"params": [model.embed.weight], "lr": 1e-3}, {"params": [model.head.weight]}]
    assert rates(own, module=model) == [EMBEDDING_FACTOR * 1e-3, 1e-2]


def test_auto_is_1_without_a_word_where_there_is_no_rate_to_choose():
    model, _ = models()
    tied, _ = models(tied=True)
    frozen, _ = models()
    frozen.embed.weight.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rates(model.parameters()) == [1e-2]  # nobody says which is the embedding
        assert rates(tied.parameters(), module=tied) == [1e-2]
        assert rates([p for p in frozen.parameters() if p.requires_grad], module=frozen) == [1e-2]
        assert rates(model.head.parameters(), module=model.head) == [1e-2]


def test_auto_warns_where_a_rate_that_was_to_be_is_not():
    model, _ = models()
    with pytest.warns(
        UserWarning, match="embedding_lr_factor=auto is 1 here: the input embedding is in no param group"
    ):
        assert rates(model.head.parameters(), module=model) == [1e-2]
    with pytest.warns(UserWarning, match="embedding_lr_factor=auto is 1 here: the learning rate is a tensor"):
        assert rates(model.parameters(), module=model, lr=torch.tensor(1e-2)) == [torch.tensor(1e-2)]


@pytest.mark.parametrize("factor", [0, -1, "8", None, float("nan"), float("inf"), True])
def test_other_values_are_refused(factor):
    model, _ = models()
    with pytest.raises(OptionError, match="embedding_lr_factor"):
        SGGAdamW(model.parameters(), module=model, embedding_lr_factor=factor)


def test_a_factor_that_could_not_act_is_refused():
    model, _ = models()
    with pytest.raises(OptionError, match=r"embedding_lr_factor=8.* needs module="):
        SGGAdamW(model.parameters(), embedding_lr_factor=8)
    with pytest.raises(OptionError, match="embedding_lr_factor=8.* a number, not a tensor"):
        SGGAdamW(model.parameters(), lr=torch.tensor(1e-2), module=model, embedding_lr_factor=8)
    with pytest.raises(ValueError, match=r"Linear has no input embedding"):
        SGGAdamW(model.head.parameters(), module=model.head, embedding_lr_factor=8)
    with pytest.raises(ValueError, match="the input embedding is not being optimized"):
        SGGAdamW(model.head.parameters(), module=model, embedding_lr_factor=8)


def test_a_checkpoint_goes_on_with_the_same_rates():
    model, twin = models()
    options = {"lr": 1e-2, "embedding_lr_factor": 8, "nesterov": True, "recluster_interval": 2}
    optimizer = SGGAdamW(model.parameters(), module=model, **options)
    train(model, optimizer)
    twin.load_state_dict(model.state_dict())
    resumed = SGGAdamW(twin.parameters(), module=twin, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    train(twin, resumed)
    assert torch.equal(model.embed.weight, twin.embed.weight) and torch.equal(model.head.weight, twin.head.weight)
    assert [group["nesterov"] for group in resumed.param_groups] == [True, True]


def test_a_checkpoint_that_does_not_speak_of_nesterov_leaves_it_as_it_is():
    model, twin = models()
    optimizer = SGGAdamW(model.parameters(), lr=1e-2, nesterov=False)
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["nesterov"]
    twin.load_state_dict(model.state_dict())
    resumed = SGGAdamW(twin.parameters(), lr=1e-2, nesterov=False)
    resumed.load_state_dict(saved)
    train(model, optimizer)
    train(twin, resumed)
    assert torch.equal(model.head.weight, twin.head.weight)
