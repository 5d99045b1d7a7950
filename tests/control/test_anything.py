"""Guards against numbers that nobody thought of: whatever comes, the controller answers and can be saved."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.control import ALSDGC

ANY = st.one_of(st.none(), st.floats())
STEPS = st.lists(st.tuples(ANY, ANY, st.booleans(), st.lists(st.floats(), min_size=2, max_size=2)), max_size=60)


@pytest.mark.filterwarnings("ignore:ALSDGC")
@pytest.mark.parametrize("mode", ["robust", "faithful"])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_any_numbers_give_a_decision_that_keeps_the_weights_finite(mode, steps):
    short = {"window": 8, "warmup_steps": 4, "reseed_after": 3, "reseed_span": 4} if mode == "robust" else {}
    controller = ALSDGC(mode, loss_scale=8.0, **short)
    for norm, loss, found_inf, groups in steps:
        before = controller.state_dict()["rules"]
        decision = controller.observe(norm=norm, loss=loss, found_inf=found_inf, lr=0.1, group_norms=groups)
        broken = found_inf or not all(math.isfinite(one) for one in ((norm or 0.0), *groups) if not one < 0)
        assert decision.skip or not broken
        assert decision.threshold >= 0 and not math.isnan(decision.threshold)
        assert 1.0 <= decision.loss_scale <= 2.0**24
        assert all(one >= 0 for one in decision.group_thresholds)
        if decision.skip:
            after = controller.state_dict()["rules"]
            assert {name: after[name] for name in ("window", "losses", "threshold") if name in after} == {
                name: before[name] for name in ("window", "losses", "threshold") if name in before
            }
        again = ALSDGC(mode, loss_scale=8.0, **short)
        again.load_state_dict(json.loads(json.dumps(controller.state_dict(), allow_nan=False)))
        assert again.state_dict() == controller.state_dict()
    assert controller.steps == len(steps)
