"""Guards against a rule that is not what the documentation says: the slow reference has to decide the same."""

import math

import pytest

from gradscale.control import ALSDGC
from tests.control.traces import play, troubled
from tests.reference.alsdgc_reference import Reference

_SETTINGS = {
    "defaults": {},
    "without a loss scale": {"loss_scale": None},
    "a short window": {"window": 16, "warmup_steps": 5, "reseed_after": 4, "reseed_span": 6, "max_skips": 1},
    "bounded": {"min_threshold": 0.5, "max_threshold": 2.0, "warmup_threshold": 5.0},
    "quick to grow": {
        "growth_interval": 3,
        "retry_interval": 20,
        "forgive_interval": 15,
        "confirm_interval": 4,
        "min_loss_scale": 512.0,
        "max_loss_scale": 4096.0 * 3,
        "loss_scale": 4096.0,
    },
    "eager to skip": {"skip_norm_deviations": 1.0, "skip_loss_deviations": 1.0, "clip_deviations": 1.5},
}


@pytest.mark.parametrize("name", _SETTINGS)
def test_decisions_are_those_of_the_slow_reference(name):
    options = {"loss_scale": 65536.0} | _SETTINGS[name]
    reasons = set()
    for seed in range(8):
        controller = ALSDGC(**options)
        reference = Reference(controller.resolved)
        trace = troubled(seed)
        for step, (decision, (norm, loss, bad)) in enumerate(zip(play(controller, trace), trace, strict=True)):
            threshold, scale, skip, reason = reference.observe(norm, loss, bad)
            assert (decision.loss_scale, decision.skip, decision.reason) == (scale, skip, reason), (seed, step)
            assert math.isclose(decision.threshold, threshold, rel_tol=1e-9), (seed, step)
            reasons.add(reason)
    overflows = {"overflow"} if options["loss_scale"] else {"non-finite norm"}
    assert reasons >= {"", "warmup", "clipped", "reseeded", "non-finite loss", "outlier"} | overflows
