"""`--optim_args`: transformers ignores unknown keys and splits at every comma; here nothing may be lost or guessed."""

import pytest

from gradscale.integrations.optim_args import parse_optim_args
from gradscale.options import OptionError
from gradscale.registry import get_entry

ENTRY = get_entry("sgg_adamw")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("  ", {}),
        ({}, {}),
        ("{}", {}),
        ("n_clusters=3", {"n_clusters": 3}),
        (
            "n_clusters=3,recluster_interval=0.05,betas=[0.9,0.95]",
            {"n_clusters": 3, "recluster_interval": 0.05, "betas": (0.9, 0.95)},
        ),
        (" n_clusters = 2 , betas = ( 0.9 , 0.95 ) ", {"n_clusters": 2, "betas": (0.9, 0.95)}),
        ("recluster_interval=100", {"recluster_interval": 100}),
        ("labels=live", {"labels": "live"}),
        ("labels='live',momentum_sign=\"absolute\"", {"labels": "live", "momentum_sign": "absolute"}),
        ("amsgrad=True", {"amsgrad": True}),
        ("amsgrad=false", {"amsgrad": False}),
        ("eps=1e-6", {"eps": 1e-6}),
        ("eps=0", {"eps": 0.0}),
        ("eps=.5", {"eps": 0.5}),
        ({"n_clusters": 3, "betas": [0.9, 0.95]}, {"n_clusters": 3, "betas": (0.9, 0.95)}),
        ({"eps": "1e-8", "betas": "[0.9, 0.95]"}, {"eps": 1e-8, "betas": (0.9, 0.95)}),  # YAML leaves these as text
        (
            '{"n_clusters": 4, "scale_bounds": [0.5, 2], "labels": "live"}',
            {"n_clusters": 4, "scale_bounds": (0.5, 2.0), "labels": "live"},
        ),
    ],
)
def test_typed(text, expected):
    parsed = parse_optim_args(text, ENTRY)
    assert parsed == expected
    assert {key: type(value) for key, value in parsed.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_cluster=3", ["n_cluster=3", "did you mean 'n_clusters'", "sgg_adamw", "recluster_interval"]),
        ("zzz=1", ["zzz=1", "n_clusters"]),
        ("n_clusters=3,n_clusters=4", ["n_clusters", "twice", "'3'", "'4'"]),
        ('{"n_clusters": 3, "n_clusters": 4}', ["n_clusters", "twice"]),
        ("n_clusters", ["'n_clusters'", "name=value"]),
        ("n_clusters=", ["value of n_clusters is missing"]),
        ("=3", ["name before '=' is missing"]),
        ("n_clusters=3,", ["entry between commas is empty"]),
        (",n_clusters=3", ["entry between commas is empty"]),
        ("n_clusters=3 betas=[0.9,0.95]", ["n_clusters='3 betas=[0.9,0.95]'"]),
        ("betas=[0.9,0.95", ["'[' is not closed"]),
        ("betas=0.9,0.95]", ["']'", "closes nothing"]),
        ("betas=[0.9,0.95)", ["')'", "closes nothing"]),
        ("labels='live", ["quote ' is not closed"]),
        ("betas=[0.9]x", ["betas=[0.9]x", "expected ']'"]),
        ("betas=[0.9]", ["betas=[0.9]", "two values"]),
        ("betas=0.9", ["betas=0.9", "two values"]),
        ("betas=[0.9,1.0]", ["betas=[0.9, 1.0]"]),
        ("n_clusters=0", ["n_clusters=0", "from 1 to 64"]),
        ("n_clusters=2.5", ["n_clusters=2.5", "integer"]),
        ("n_clusters=true", ["n_clusters=True", "integer"]),
        ("n_clusters=three", ["n_clusters='three'", "integer"]),
        ("recluster_interval=1.5", ["recluster_interval=1.5", "fraction"]),
        ("recluster_interval=0", ["recluster_interval=0", "fraction"]),
        ("eps=nan", ["eps=nan"]),
        ("eps=inf", ["eps=inf"]),
        ("labels=frosen", ["labels='frosen'", "'frozen'", "'live'"]),
        ("labels=1", ["labels='1'", "'frozen'"]),
        ("amsgrad=1", ["amsgrad=1", "true or false"]),
        ("lr=1e-3", ["lr", "--learning_rate"]),
        ("weight_decay=0.1", ["weight_decay", "--weight_decay"]),
        ("total_steps=5", ["total_steps", "--max_steps"]),
        ("target_modules=q_proj", ["--optim_target_modules"]),
        ("{broken", ["not a JSON object"]),
        ("__import__('os')=1", ["__import__('os')"]),
        ("n_clusters=__import__('os').getpid()", ["n_clusters=", "integer"]),
        (["n_clusters=3"], ["['n_clusters=3']", "mapping"]),
        (3, ["3", "mapping"]),
        ({3: 3}, ["option name 3 is not text"]),
        ({"n_clusters": None}, ["n_clusters=None", "integer"]),
    ],
)
def test_refused(text, words):
    with pytest.raises(OptionError) as error:
        parse_optim_args(text, ENTRY)
    for word in ["--optim_args", *words]:
        assert word in str(error.value)
