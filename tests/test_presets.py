"""Presets: one word for many options, which must mean the same however an optimizer is made, and never linger in state.

Guards against a preset that beats an option beside it, one that is kept in param groups (so that a later version would
read another setting out of an old checkpoint), and docs that say other values than the tables.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gradscale import SGG, SGGSGD, SGGAdam, SGGAdamW, SGGLamb, SGGLion
from gradscale.bench.contestants import NEVER, registered
from gradscale.extend import CustomOptimizer, PlainRule, SGGScaler
from gradscale.integrations.callback import ScaleCallback
from gradscale.integrations.optim_args import parse_optim_args
from gradscale.integrations.training_args_patch import constructor_options
from gradscale.option_tables import SGG as TABLE
from gradscale.options import OptionError
from gradscale.presets import PRESETS
from gradscale.registry import REGISTRY, get_entry
from tests.adapter.named_bases import Model, named

PAPER, DEFAULT = PRESETS["paper"], PRESETS["default"]
DOCS = Path(__file__).parents[1] / "docs/sgg.md"


def layer():
    return nn.Parameter(torch.randn(20, 30))


class Plain(CustomOptimizer):
    base, scaler = PlainRule(), SGGScaler()


MAKERS = {
    **{cls.__name__: cls for cls in (SGGAdamW, SGGAdam, SGGSGD, SGGLion, SGGLamb, Plain)},
    "SGG(base)": lambda params, **options: SGG(torch.optim.NAdam(params), **options),
    "by name": lambda params, **options: REGISTRY["sgg_adafactor"].load()(params, **options),
}


def options_of(group):
    """SGG's options of a param group, of the adapter without prefix."""
    found = {name.removeprefix("sgg_"): value for name, value in group.items()}
    assert "preset" not in found
    return {name: found[name] for name in TABLE}


def test_every_preset_has_a_value_for_every_option_that_the_option_allows():
    for values in PRESETS.values():
        assert set(values) == set(TABLE)
        assert all(TABLE[name].kind.check(value) == value for name, value in values.items())


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_preset_is_its_values_and_what_is_given_wins(make):
    assert options_of(make([layer()]).param_groups[0]) == DEFAULT
    assert options_of(make([layer()], preset="default").param_groups[0]) == DEFAULT
    assert options_of(make([layer()], preset="paper").param_groups[0]) == PAPER
    mixed = make([layer()], preset="paper", n_clusters=2, grouping="kmeans")
    assert options_of(mixed.param_groups[0]) == {**PAPER, "n_clusters": 2, "grouping": "kmeans"}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_unknown_preset_is_refused_by_name(make):
    with pytest.raises(OptionError, match="preset='papr' is not allowed: expected one of 'default', 'paper'"):
        make([layer()], preset="papr")


@pytest.mark.parametrize("kind", ["native", "adapter", "by name"])
def test_a_param_group_has_a_preset_of_its_own(kind):
    prefix = "sgg_" if kind == "adapter" else ""
    first = {"params": [layer()], f"{prefix}preset": "paper", f"{prefix}n_clusters": 4}
    second = {"params": [layer()]}
    make = {"native": SGGAdamW, "adapter": MAKERS["SGG(base)"], "by name": MAKERS["by name"]}[kind]
    optimizer = make([first, second], scale_decay=0.5)
    optimizer.add_param_group({"params": [layer()], f"{prefix}preset": "default"})
    assert options_of(optimizer.param_groups[0]) == {**PAPER, "n_clusters": 4}
    assert options_of(optimizer.param_groups[1]) == {**DEFAULT, "scale_decay": 0.5}
    assert options_of(optimizer.param_groups[2]) == DEFAULT
    with pytest.raises(OptionError, match="preset='best' is not allowed"):
        optimizer.add_param_group({"params": [layer()], f"{prefix}preset": "best"})
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("make", [SGGAdamW, MAKERS["SGG(base)"]], ids=["native", "adapter"])
def test_a_checkpoint_keeps_its_values_whatever_the_preset_of_the_optimizer_that_loads_it(make):
    saved = make([layer()], preset="paper", recluster_interval=7).state_dict()
    other = make([layer()], preset="default")
    other.load_state_dict(saved)
    assert options_of(other.param_groups[0]) == {**PAPER, "recluster_interval": 7}


@pytest.mark.parametrize("make", [SGGAdamW, MAKERS["SGG(base)"]], ids=["native", "adapter"])
def test_the_papers_setting_moves_a_scale_by_a_hundredth_of_its_ratio(make):
    param = layer()
    optimizer = make([param], preset="paper", recluster_interval=1)
    param.grad = torch.randn(20, 30)
    optimizer.step()
    (found,) = optimizer.grouping_report.layers
    assert sum(found.counts) == 600 and len(found.counts) == 3
    deviation = (param.grad * 0.1 - (param.grad * 0.1).mean()).abs().median()
    typical = optimizer.grouping_report.global_mda
    assert typical == pytest.approx(float(deviation), rel=0.02)  # over parameters, not over clusters
    expected = [0.99 + 0.01 * min(max(typical / mda, 0.1), 10) for mda in found.mda]
    assert found.scales == pytest.approx(expected, rel=1e-4)


def test_options_of_the_command_line_take_presets():
    entry = get_entry("sgg_adamw")
    of_adam = {"nesterov": False, "embedding_lr_factor": 1.0}
    assert parse_optim_args("preset=paper", entry) == {**PAPER, **of_adam}
    given = {"preset": "paper", "labels": "live", "nesterov": True}
    assert parse_optim_args(given, entry) == {**PAPER, **of_adam, "labels": "live", "nesterov": True}
    assert parse_optim_args("preset=paper", get_entry("sgg_muon")) == PAPER
    assert parse_optim_args("preset=default,n_clusters=2", entry) == {"n_clusters": 2}
    with pytest.raises(OptionError, match="--optim_args: preset='best' is not allowed"):
        parse_optim_args("preset=best", entry)
    with pytest.raises(OptionError, match="unknown option presets='paper' of sgg_adamw, did you mean 'preset'"):
        parse_optim_args("presets=paper", entry)
    with pytest.raises(OptionError, match="unknown option preset='paper' of dgs_sgd"):
        parse_optim_args("preset=paper", get_entry("dgs_sgd"))


@pytest.mark.parametrize("cls", [SGGAdamW, SGGAdam])
def test_a_preset_says_of_adam_whether_it_looks_ahead(cls):
    def of(**options):
        return [group["nesterov"] for group in cls([layer()], **options).param_groups]

    assert of() == of(preset="default") == of(preset="paper", nesterov=True) == [True]
    assert of(preset="paper") == of(nesterov=False) == [False]
    groups = [{"params": [layer()], "preset": "paper"}, {"params": [layer()], "preset": "paper", "nesterov": True}]
    assert [group["nesterov"] for group in cls(groups).param_groups] == [False, True]
    # Of SGD it needs a momentum, and no preset turns it on.
    assert SGGSGD([layer()], momentum=0.9).param_groups[0]["nesterov"] is False


@pytest.mark.parametrize(("given", "interval"), [(None, 0.05), ("preset=default", 0.05), ("preset=paper", 500)])
def test_the_defaults_of_a_trainer_are_a_share_of_the_run_and_the_papers_interval_is_not(tmp_path, given, interval):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=tmp_path, optim="sgg_adamw", optim_args=given, report_to="none")
    options = constructor_options(arguments, get_entry("sgg_adamw"))
    assert options["recluster_interval"] == interval
    assert options["embedding_lr_factor"] == (1.0 if given == "preset=paper" else "auto")
    with pytest.raises(OptionError, match="preset='papers' is not allowed"):
        TrainingArguments(output_dir=tmp_path, optim="sgg_adamw", optim_args="preset=papers", report_to="none")


@pytest.mark.parametrize("make", [SGGAdamW, MAKERS["SGG(base)"]], ids=["native", "adapter"])
def test_a_trainer_warns_of_an_interval_that_is_longer_than_the_run(make, recwarn):
    from types import SimpleNamespace

    def begin(optimizer, steps):
        recwarn.clear()
        ScaleCallback().on_train_begin(
            SimpleNamespace(optim="sgg_adamw"), SimpleNamespace(max_steps=steps), None, optimizer=optimizer
        )
        return [str(warning.message) for warning in recwarn]

    assert any(
        "the run has 300 steps, fewer than recluster_interval=500" in one
        for one in begin(make([layer()], preset="paper"), 300)
    )
    assert not begin(make([layer()], preset="paper"), 500)
    assert not begin(make([layer()], recluster_interval=0.05, total_steps=300), 300)


def test_a_benchmark_times_groupings_itself_whatever_the_presets_interval():
    contestant = registered("sgg_adamw", "preset=paper")
    assert options_of(contestant.make([layer()]).param_groups[0]) == {**PAPER, "recluster_interval": NEVER}


def test_a_preset_may_not_contradict_what_is_given():
    with pytest.raises(OptionError, match="global_mda='parameters' is not allowed with statistic='mad'"):
        SGGAdamW([layer()], preset="paper", statistic="mad")


def test_groups_of_optimizers_by_name_are_those_of_their_base():
    model = Model()
    optimizer = named("sgg_muon", model, preset="paper", pool="none")
    assert all(options_of(group) == PAPER for group in optimizer.param_groups)


def shown(value):
    """A value as the docs write it."""
    if isinstance(value, tuple):
        return f"({', '.join(f'{one:g}' for one in value)})"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"


def test_the_docs_have_the_values_of_the_tables():
    section = DOCS.read_text().split("## Presets")[1].split("\n## ")[0]
    rows = dict(
        (name, (default.strip("`"), paper.strip("`")))
        for name, default, paper in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", section, re.MULTILINE)
    )
    assert rows == {name: (shown(DEFAULT[name]), shown(PAPER[name])) for name in TABLE}


def test_the_table_of_options_has_their_defaults():
    options = DOCS.read_text().split("## Options")[1].split("\n## ")[0]
    found = dict(re.findall(r"^\| `(\w+)` \| `?([^|`;]+?)`?(?:;[^|]*)? \|", options, re.MULTILINE))
    named_there = [name for name in TABLE if name in found]
    assert len(named_there) >= 10
    assert {name: found[name] for name in named_there} == {name: shown(DEFAULT[name]) for name in named_there}


@pytest.mark.parametrize("name", ["sgg_adamw", "sgg_adam"])
def test_the_docs_say_what_the_default_is_in_a_trainer(name):
    defaults = dict(get_entry(name).trainer_defaults)
    text = DOCS.read_text()
    options, presets = (text.split(f"## {title}")[1].split("\n## ")[0] for title in ("Options", "Presets"))
    in_a_trainer = dict(re.findall(r"^\| `(\w+)` \| [^|]+?in a Trainer `?([^|`]+?)`? \|", options, re.MULTILINE))
    assert in_a_trainer == {key: shown(value) for key, value in defaults.items()}
    (written,) = re.findall(r'^--optim_args "(.+)"$', presets, re.MULTILINE)
    assert {**parse_optim_args(written, get_entry(name)), "recluster_interval": 0.05} == defaults
    (call,) = re.findall(r"`SGGAdamW\(model.parameters\(\), ([^`]+)\)`", presets)
    given = dict(one.split("=") for one in call.replace('"', "").replace("\n", " ").split(", "))
    assert {key: given[key] for key in defaults} == {key: shown(value) for key, value in defaults.items()}
