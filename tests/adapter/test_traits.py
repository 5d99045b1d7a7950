"""What a base optimizer does is found out by trying. Guards against a factor where none can be put."""

import pytest
import torch

from gradscale import DGS, SGG, OptionError, SGGAdamW
from gradscale.adapter.traits import Traits, traits_of
from tests.adapter.bases import BASES, UNFIT, parameters, run

FOUND = {
    "SGD": Traits(True, False, "coupled", None),
    "SGD, momentum": Traits(True, False, "coupled", "momentum_buffer"),
    "SGD, maximize": Traits(True, False, "coupled", None),
    "Adam": Traits(True, False, "coupled", "exp_avg"),
    "AdamW": Traits(True, False, "decoupled", "exp_avg"),
    "AdamW, foreach": Traits(True, False, "decoupled", "exp_avg"),
    "AdamW, fused": Traits(True, False, "decoupled", "exp_avg"),
    "NAdam": Traits(True, False, "decoupled", "exp_avg"),
    "RAdam": Traits(True, False, "coupled", "exp_avg"),
    "Adamax": Traits(True, False, "coupled", "exp_avg"),
    "Adagrad": Traits(True, False, "coupled", None),
    "Adadelta": Traits(True, False, "coupled", None),
    "RMSprop": Traits(True, False, "coupled", None),  # its buffer is of what it has divided
    "Rprop": Traits(True, False, "none", None),
    "Adafactor": Traits(False, True, "decoupled", None),
    "counts in its groups": Traits(True, False, "decoupled", "mean"),
}


@pytest.mark.parametrize("name", BASES)
def test_what_is_found(name):
    base = BASES[name](parameters())
    assert traits_of(base, base.param_groups[0]) == FOUND[name]


def test_trying_changes_nothing():
    base = BASES["counts in its groups"](parameters())
    run(base, range(3))
    told, random = [], torch.get_rng_state()
    base.register_step_post_hook(lambda *_: told.append(1))
    weights = [param.detach().clone() for param in base.param_groups[0]["params"]]
    traits_of(base, base.param_groups[0])
    assert torch.equal(torch.get_rng_state(), random) and told == []
    assert base.param_groups[0]["step"] == 3 and len(base.state) == 3
    for before, after in zip(weights, base.param_groups[0]["params"], strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0), 1.0], ids=str)
def test_a_learning_rate_that_begins_at_0_does_not_matter(lr):
    base = torch.optim.AdamW(parameters(), lr=lr, foreach=False)
    assert traits_of(base, base.param_groups[0]) == FOUND["AdamW"]


@pytest.mark.parametrize("adapter", [DGS, SGG])
@pytest.mark.parametrize("why", UNFIT)
def test_what_cannot_be_wrapped_is_refused_with_the_reason(adapter, why):
    base = UNFIT[why](parameters())
    groups = [dict(group) for group in base.param_groups]
    with pytest.raises(OptionError) as caught:
        adapter(base)
    assert why in str(caught.value) and type(base).__name__ in str(caught.value)
    assert [set(group) for group in base.param_groups] == [set(group) for group in groups]


@pytest.mark.parametrize("adapter", [DGS, SGG])
def test_what_is_no_plain_optimizer_is_refused(adapter):
    with pytest.raises(
        OptionError, match="base_optimizer of type list is not allowed: expected a torch.optim.Optimizer"
    ):
        adapter(parameters())
    with pytest.raises(OptionError, match="scales its updates already"):
        adapter(SGGAdamW(parameters()))
    with pytest.raises(OptionError, match="scales its updates already"):
        adapter(DGS(torch.optim.SGD(parameters(), lr=0.1)))
    with pytest.raises(OptionError, match="module=3 is not allowed"):
        adapter(torch.optim.SGD(parameters(), lr=0.1), module=3)


def test_a_matrix_optimizer_is_tried_on_matrices():
    params = parameters(shapes=[(20, 30), (9, 20)])
    base = torch.optim.Muon(params, lr=1e-2, weight_decay=0.1)
    assert traits_of(base, base.param_groups[0]) == Traits(False, False, "decoupled", "momentum_buffer")
