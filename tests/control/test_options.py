"""Guards against an option that is taken for another, out of range, or silently without effect."""

import inspect
import math

import pytest

from gradscale.control import ALSDGC
from gradscale.options import OptionError


def test_the_constructor_and_the_table_agree():
    parameters = dict(inspect.signature(ALSDGC).parameters)
    assert {name: one.default for name, one in parameters.items()} == {
        name: option.default for name, option in ALSDGC.options.items()
    }
    documented = inspect.getdoc(ALSDGC)
    assert all(f"\n    {name}: " in documented and option.help for name, option in ALSDGC.options.items())


def test_every_default_is_allowed():
    for name, option in ALSDGC.options.items():
        assert option.kind.check(option.default) == option.default, name


@pytest.mark.parametrize("norm_type", [1, 2.0, 3.5, "inf", math.inf])
def test_any_p_norm_is_taken(norm_type):
    assert ALSDGC(norm_type=norm_type).norm_type == float(norm_type)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bold"}, "mode='bold'.*'robust', 'faithful'"),
        ({"norm_type": 0}, "norm_type=0.*inf"),
        ({"norm_type": math.nan}, "norm_type=nan"),
        ({"loss_scale": -1.0}, "loss_scale=-1.0"),
        ({"loss_scale": math.inf}, "loss_scale=inf"),
        ({"loss_scale": 0.5}, "loss_scale=0.5 is not allowed.*min_loss_scale=1"),
        ({"loss_scale": 2.0**30}, "max_loss_scale=1.67772e"),
        ({"min_loss_scale": 8.0, "max_loss_scale": 4.0}, "min_loss_scale=8 is above max_loss_scale=4"),
        ({"min_threshold": 2.0, "max_threshold": 1.0}, "min_threshold=2 is above max_threshold=1"),
        ({"window": 7}, "window=7"),
        ({"window": 128.0}, "window=128.0"),
        ({"window": True}, "window=True"),
        ({"warmup_steps": 200}, "warmup_steps=200 is above window=128"),
        ({"reseed_after": 17}, "reseed_after=17 is above reseed_span=16"),
        ({"reseed_span": 129}, "reseed_span=129 is above window"),
        ({"clip_deviations": 0.0}, "clip_deviations=0.0"),
        ({"backoff_factor": 1.0}, "backoff_factor=1.0"),
        ({"growth_factor": 1.0}, "growth_factor=1.0"),
        ({"max_skips": -1}, "max_skips=-1"),
        ({"adjustment_factor": 2.0}, "adjustment_factor=2.0 is an option of mode='faithful'"),
        ({"mode": "faithful", "window": 64}, "window=64 is an option of mode='robust'"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(OptionError, match=message):
        ALSDGC(**options)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="windows"):
        ALSDGC(windows=3)


def test_the_representation_shows_what_differs_from_the_defaults():
    assert repr(ALSDGC()) == "ALSDGC()"
    assert repr(ALSDGC(window=64, loss_scale=8)) == "ALSDGC(loss_scale=8.0, window=64)"
