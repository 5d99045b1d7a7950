"""`scope="hidden"`: the input embedding and the output head are the base optimizer's, and all else is scaled.

Guards against ends that are scaled all the same where the model is copied, tied or inside a wrapper, against an option
that does nothing without a word, and against a Trainer's default that overrules a choice of layers.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

import gradscale
from gradscale import SGGAdamW, SGGLion
from gradscale.options import OptionError


class Model(nn.Module):
    """An embedding, two hidden layers and a head, which it names as transformers' models do."""

    def __init__(self, tied=False):
        super().__init__()
        self.tokens, self.first, self.second = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 40, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def get_input_embeddings(self):
        return self.tokens

    def get_output_embeddings(self):
        return self.head

    def forward(self, rows):
        return self.head(self.second(torch.tanh(self.first(self.tokens(rows)))))


HIDDEN = ["first.weight", "second.weight"]


def make(cls=SGGAdamW, tied=False, wrap=lambda model: model, **options):
    torch.manual_seed(0)
    model = wrap(Model(tied))
    params = list(model.parameters())
    if isinstance(cls, type) and issubclass(cls, gradscale.SGG):
        return model, cls(torch.optim.AdamW(params, lr=1e-2), module=model, recluster_interval=2, **options)
    return model, cls(params, lr=1e-2, module=model, recluster_interval=2, **options)


def train(model, optimizer, steps=4):
    torch.manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(40, (4, 8))
        loss = nn.functional.cross_entropy(model(rows).flatten(0, 1), rows.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def names(optimizer):
    return [layer.name for layer in optimizer.grouping_report.layers]


@pytest.mark.parametrize("cls", [SGGAdamW, SGGLion, gradscale.SGG])
@pytest.mark.parametrize("tied", [False, True])
def test_ends_are_neither_grouped_nor_scaled(cls, tied):
    model, optimizer = make(cls, tied, scope="hidden")
    train(model, optimizer)
    assert names(optimizer) == HIDDEN
    every, other = make(cls, tied, scope="all")
    train(every, other)
    assert sorted(names(other)) == sorted([*HIDDEN, "tokens.weight", *([] if tied else ["head.weight"])])
    if cls is not gradscale.SGG:
        assert "scales" not in optimizer.state[model.tokens.weight] and "scales" in other.state[every.tokens.weight]


def test_ends_move_as_the_base_moves_them():
    (model, optimizer), (plain, base) = make(scope="hidden"), make(grouping="none")
    torch.manual_seed(2)
    for _ in range(5):
        for param, twin in zip(model.parameters(), plain.parameters(), strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        optimizer.step()
        base.step()
    for (name, param), twin in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(param, twin) == (name not in HIDDEN), name


def test_auto_is_hidden_where_the_model_is_known():
    model, optimizer = make(scope="auto")
    train(model, optimizer)
    assert names(optimizer) == HIDDEN and optimizer.param_groups[0]["scope"] == "hidden"
    alone = Model()
    unknown = SGGAdamW(alone.parameters(), lr=1e-2, recluster_interval=2, scope="auto")
    train(alone, unknown)
    assert len(names(unknown)) == 4 and unknown.param_groups[0]["scope"] == "all"


@pytest.mark.parametrize("make_it", [SGGAdamW, lambda params, **more: gradscale.SGG(torch.optim.SGD(params), **more)])
def test_without_the_model_hidden_is_refused(make_it):
    with pytest.raises(OptionError, match="scope='hidden' needs module=, the model whose embedding and head"):
        make_it(Model().parameters(), scope="hidden")
    with pytest.raises(OptionError, match="scope='ends' is not allowed: expected one of 'all', 'hidden', 'auto'"):
        make_it(Model().parameters(), scope="ends")


def test_a_param_group_may_say_it_for_itself():
    torch.manual_seed(0)
    model = Model()
    groups = [{"params": [model.tokens.weight, model.first.weight]}, {"params": [model.head.weight], "scope": "all"}]
    optimizer = SGGAdamW(groups, lr=1e-2, module=model, recluster_interval=2, scope="hidden")
    train(model, optimizer)
    assert names(optimizer) == ["first.weight", "head.weight"]
    bare = SGGAdamW(groups[0]["params"], lr=1e-2)
    with pytest.raises(OptionError, match="scope='hidden' needs module="):
        bare.add_param_group({"params": [model.second.weight], "scope": "hidden"})
    assert len(bare.param_groups) == 1


def test_a_param_group_of_the_adapter_may_say_it_for_itself():
    torch.manual_seed(0)
    model = Model()
    groups = [
        {"params": [model.tokens.weight, model.first.weight], "sgg_scope": "auto"},
        {"params": [model.head.weight], "sgg_scope": "hidden"},
    ]
    optimizer = gradscale.SGG(torch.optim.AdamW(groups, lr=1e-2), module=model, recluster_interval=2)
    optimizer.add_param_group({"params": [model.second.weight], "sgg_scope": "hidden"})
    train(model, optimizer)
    assert names(optimizer) == HIDDEN and {group["sgg_scope"] for group in optimizer.param_groups} == {"hidden"}
    bare = gradscale.SGG(torch.optim.AdamW([model.first.weight]))
    with pytest.raises(OptionError, match="scope='hidden' needs module="):
        bare.add_param_group({"params": [model.second.weight], "sgg_scope": "hidden"})
    assert len(bare.param_groups) == 1


@pytest.mark.parametrize("cls", [SGGAdamW, gradscale.SGG])
def test_copies_and_checkpoints_leave_them_out_as_well(cls):
    model, optimizer = make(cls, scope="hidden")
    train(model, optimizer)
    twin_model, twin = copy.deepcopy((model, optimizer))
    train(twin_model, twin)
    assert len(twin.grouping_report.layers) == 2
    again, loaded = make(cls, scope="hidden")
    again.load_state_dict(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    train(again, loaded)
    assert names(loaded) == HIDDEN
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


def test_a_wrapped_model_is_known_as_well():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, rows):
            return self.module(rows)

        def get_input_embeddings(self):
            return self.module.get_input_embeddings()

        def get_output_embeddings(self):
            return self.module.get_output_embeddings()

    model, optimizer = make(wrap=Wrapper, scope="hidden")
    train(model, optimizer)
    assert [name.removeprefix("module.") for name in names(optimizer)] == HIDDEN
