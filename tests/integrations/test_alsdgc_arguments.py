"""`--alsdgc`: how its text is read, and the field that `TrainingArguments` gets for it.

Guards against a parser that does not know the option, a positional argument that has moved, and options that are
ignored.
"""

import dataclasses
import inspect
import pickle

import pytest
from transformers import HfArgumentParser, TrainingArguments

from gradscale.integrations.alsdgc_arguments import add_field
from gradscale.integrations.alsdgc_options import parse_alsdgc
from gradscale.options import OptionError


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ("robust", {"mode": "robust"}),
        ("faithful", {"mode": "faithful"}),
        (True, {"mode": "robust"}),
        ("true", {"mode": "robust"}),
        ("robust, window=64 ,max_threshold=2", {"mode": "robust", "window": 64, "max_threshold": 2.0}),
        ("window=64", {"mode": "robust", "window": 64}),
        (
            "mode=robust,norm_type=inf,max_threshold=none",
            {"mode": "robust", "norm_type": float("inf"), "max_threshold": None},
        ),
        ("robust,per_group=true", {"mode": "robust", "per_group": True}),
        ('{"mode": "robust", "window": 64}', {"mode": "robust", "window": 64}),
        ({"window": 64, "deviation_floor": "1e-1"}, {"mode": "robust", "window": 64, "deviation_floor": 0.1}),
        ({"mode": "faithful", "initial_threshold": 2}, {"mode": "faithful", "initial_threshold": 2.0}),
        *[(off, None) for off in (None, False, "", "off", "None", "false")],
    ],
)
def test_what_is_read(value, options):
    assert parse_alsdgc(value) == options


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("robst", r"--alsdgc: mode='robst' is not allowed: expected one of 'robust', 'faithful'"),
        ("robust,window=64,window=65", "window is given twice"),
        ("robust,wndow=64", "unknown option wndow='64' of ALSDGC, did you mean 'window'"),
        ("robust,window=", "'window=' in .* is malformed"),
        ("robust,,window=9", "'' in .* is malformed"),
        ("robust,window=[64", "is not closed"),
        ("robust,window=-1", "window=-1 is not allowed: expected an integer of at least"),
        ("robust,initial_threshold=2", "is an option of mode='faithful'"),
        ("robust,min_threshold=3,max_threshold=2", "min_threshold=3 is above max_threshold=2"),
        ("{nonsense", "is not a JSON object"),
        ('{"window": 64, "window": 65}', "window is given twice"),
        (3, "3 is not allowed: expected text like"),
    ],
)
def test_what_is_refused(value, message):
    with pytest.raises(OptionError, match=message):
        parse_alsdgc(value)


def test_the_command_line_a_mapping_and_files_know_it(tmp_path):
    parser = HfArgumentParser(TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--alsdgc", "robust,window=64"])
    assert args.alsdgc == "robust,window=64" and "--alsdgc" in parser.format_help()
    (tmp_path / "a.yaml").write_text(f"output_dir: {tmp_path}\nalsdgc:\n  mode: robust\n  window: 64\n")
    (args,) = parser.parse_yaml_file(str(tmp_path / "a.yaml"))
    assert args.alsdgc == {"mode": "robust", "window": 64} == args.to_dict()["alsdgc"]
    assert pickle.loads(pickle.dumps(args)).alsdgc == args.alsdgc
    assert dataclasses.replace(args, alsdgc="off").alsdgc == "off"
    with pytest.raises(OptionError, match="--alsdgc: unknown option"):
        parser.parse_dict({"output_dir": str(tmp_path), "alsdgc": {"windw": 1}})


def test_without_it_there_is_none(tmp_path):
    assert TrainingArguments(str(tmp_path)).alsdgc is None
    assert "alsdgc" in inspect.signature(TrainingArguments).parameters


def test_subclasses_from_before_and_after_have_it_and_their_positions():
    @dataclasses.dataclass
    class Base:
        first: int
        second: int = 2

        def __post_init__(self):
            self.seen = self.alsdgc

    @dataclasses.dataclass
    class Before(Base):
        third: int = 3

    class Plain(Before):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    add_field(Base)
    add_field(Base)

    @dataclasses.dataclass
    class After(Base):
        third: int = 3

    for cls in (Before, Plain, After):
        made = cls(1, 5, 7, alsdgc="robust")
        assert (made.first, made.second, made.third, made.alsdgc, made.seen) == (1, 5, 7, "robust", "robust")
        assert cls(1).alsdgc is None and [field.name for field in dataclasses.fields(cls)].count("alsdgc") == 1
    assert Base(1, alsdgc="off").seen == "off" and Base(first=1).alsdgc is None
    with pytest.raises(TypeError, match="not a dataclass"):
        add_field(int)
