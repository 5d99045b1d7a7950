"""Choosing layers by name: the wrong layers would train differently without any sign of it."""

import pytest
import torch
from torch import nn

from gradscale.optim.target_modules import check_target_modules, select_parameters
from gradscale.options import OptionError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 4)
        self.down_proj = nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.down_proj(self.q_proj(x) + self.v_proj(x)))


class Model(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(4, 8, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def chosen(model, target):
    names = {id(param): name for name, param in model.named_parameters()}
    return [names[id(param)].removesuffix(".weight") for param in select_parameters(model, target)]


Q = ["layers.0.q_proj", "layers.1.q_proj"]
QV = ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj", "layers.1.v_proj"]
LINEAR = [f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "v_proj", "down_proj")] + ["lm_head"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, ["embed", *LINEAR]),
        (["q_proj"], Q),
        (("q_proj", "v_proj"), QV),
        ("q_proj", Q),
        ("q_proj,v_proj", QV),
        (" q_proj , v_proj ", QV),
        ('["q_proj", "v_proj"]', QV),
        (r".*\.[qv]_proj", QV),
        (r".*(q_proj|v_proj)", QV),
        (r"layers\.(0|1)\.q_proj,lm_head", [*Q, "lm_head"]),
        (r".*[qv]_proj{1,1}", QV),
        ([r".*\.[qv]_proj", "lm_head"], [*QV, "lm_head"]),
        ("layers.0", LINEAR[:3]),
        (["layers.1.q_proj"], ["layers.1.q_proj"]),
        ("(?!.*(lm_head|embed)).*", LINEAR[:-1]),
        ("embed", ["embed"]),
        ("all-linear", LINEAR),
        (["all-linear"], LINEAR),
        ("all_linear", LINEAR),
    ],
)
def test_selection(target, expected):
    assert chosen(Model(), target) == expected


def test_vectors_and_frozen_parameters_are_left_out():
    model = Model()
    model.layers[0].q_proj.requires_grad_(False)
    assert chosen(model, "q_proj") == ["layers.1.q_proj"]


def test_tied_parameter_answers_to_both_owners_and_comes_once():
    model = Model(tied=True)
    assert chosen(model, "lm_head") == chosen(model, "embed") == chosen(model, "lm_head,embed") == ["embed"]


def test_wrapped_names():
    model = Model()
    expected = select_parameters(model, "all-linear")
    compiled = torch.compile(model, backend="eager")
    for wrapped in (compiled, nn.ModuleDict({"module": model})):
        assert [id(p) for p in select_parameters(wrapped, r"layers\.\d\.q_proj")] == [id(p) for p in expected[0:6:3]]
        assert [id(p) for p in select_parameters(wrapped, "all-linear")] == [id(p) for p in expected]
    model.layers[1] = torch.compile(model.layers[1], backend="eager")
    assert len(select_parameters(model, r"layers\.\d\.q_proj")) == 2


def test_peft():
    import peft

    model = peft.get_peft_model(Model(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    both = [f"{name}.lora_{side}.default" for name in Q for side in "AB"]
    for target in ("q_proj", r"layers\.\d\.q_proj", r".*q_proj", "base_model.model.layers.0.q_proj,layers.1.q_proj"):
        assert [name.removeprefix("base_model.model.") for name in chosen(model, target)] == both
    assert len(chosen(model, "all-linear")) == 8
    assert len(chosen(model, "lora_A")) == 4
    with pytest.raises(ValueError, match="no parameter of 2 or more dimensions that requires gradients"):
        select_parameters(model, "down_proj")


def test_transposed_linear_layers_of_transformers():
    from transformers.pytorch_utils import Conv1D as conv1d

    model = nn.Sequential(conv1d(4, 4), nn.LayerNorm(4))
    assert chosen(model, "all-linear") == ["0"]


def test_shape_under_zero_init():
    model = nn.Linear(4, 4)
    model.weight.data = torch.empty(0)
    model.weight.ds_shape = torch.Size([4, 4])
    assert select_parameters(model, "all-linear") == [model.weight]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("q_porj", ["'q_porj'", "'q_proj'"]),
        (["q_proj", "v_porj"], ["'v_porj'", "['q_proj', 'v_porj']", "'v_proj'"]),
        (r".*\.k_proj", ["k_proj", "'q_proj'"]),
        ("attention_xyz", ["its layers are called", "'embed'", "'down_proj'"]),
        ("norm", ["no parameter of 2 or more dimensions"]),
    ],
)
def test_no_match_names_near_modules(target, words):
    with pytest.raises(ValueError) as error:
        select_parameters(Model(), target)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "value", ["", "  ", [], [""], ["q_proj", ""], "q_proj,,v_proj", "q_proj,", 3, ["q_proj", 3], {"q_proj": 1}]
)
def test_malformed(value):
    with pytest.raises(OptionError, match="target_modules"):
        check_target_modules(value)


@pytest.mark.parametrize("value", ["(q_proj", "*q_proj", ["q_proj", "[v"], r"layers\.(0|1,q_proj"])
def test_invalid_regular_expression(value):
    with pytest.raises(OptionError, match="not a valid regular expression"):
        check_target_modules(value)
