"""SGG around other optimizers, against SGGAdamW."""

import pytest
import torch

from gradscale import SGG, SGGAdamW
from tests.adapter.bases import BASES, apart, copied, gradients, parameters, run

OPTIONS = {"lr": 1e-2, "weight_decay": 0.1}
FIXED = {"recluster_interval": 1, "scale_decay": 0.0}


def test_the_first_grouping_is_that_of_sgg_adamw_and_acts_one_step_later():
    own = {"recluster_interval": 3}
    wrapped = SGG(torch.optim.AdamW(parameters(), **OPTIONS), **own)
    named = SGGAdamW(parameters(), **OPTIONS, **own, nesterov=False, kernel="eager")
    plain = torch.optim.AdamW(parameters(), **OPTIONS)
    courses = [run(optimizer, range(3)) for optimizer in (wrapped, named, plain)]
    assert apart(courses[0][1], courses[1][1]) < 1e-6
    assert all(torch.equal(one, other) for one, other in zip(courses[0][2], courses[2][2], strict=True))
    assert apart(courses[0][2], courses[1][2]) > 1e-4  # the named one scales this step already
    mine, theirs = wrapped.grouping_report, named.grouping_report
    assert [layer.scales for layer in mine.layers] == [layer.scales for layer in theirs.layers]
    assert mine.step == theirs.step == 3 and len(mine.layers) == 2
    before = [param.detach().clone() for param in wrapped.param_groups[0]["params"]]
    after, reference = run(wrapped, range(3, 4))[-1], run(plain, range(3, 4))[-1]
    for place, (start, one, other) in enumerate(zip(before, after, reference, strict=True)):
        kept = start * (1 - OPTIONS["lr"] * OPTIONS["weight_decay"])
        if start.dim() < 2:
            assert torch.equal(one, other)
            continue
        factors = (one - kept) / (other - kept)
        scales = torch.tensor(mine.layers[place].scales)
        nearest = (factors[..., None] - scales).abs().min(dim=-1).values
        assert nearest.max() < 1e-2 and factors.std() > 0.03


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_fixed_scales_multiply_the_update_and_not_the_decay(name, scale):
    params = parameters(torch.float64)
    optimizer = SGG(BASES[name](params), **FIXED, scale_bounds=(scale, scale))
    reference = BASES[name](parameters(torch.float64))
    run(optimizer, range(1))
    run(reference, range(1))
    start = [param.detach().clone() for param in params]
    once, scaled = run(reference, range(1, 2))[0], run(optimizer, range(1, 2))[0]
    group = reference.param_groups[0]
    decay = group.get("weight_decay", 0) * group["lr"] if optimizer.traits[0].weight_decay == "decoupled" else 0.0
    for before, one, other in zip(start, once, scaled, strict=True):
        kept, factor = before * (1 - decay), scale if before.dim() > 1 else 1.0
        assert torch.allclose(other - kept, factor * (one - kept), rtol=1e-8, atol=1e-14)


def test_without_a_momentum_in_the_base_the_running_mean_of_the_gradient_is_grouped():
    params = parameters(torch.float64)
    optimizer = SGG(torch.optim.SGD(params, lr=0.1), recluster_interval=4)
    run(optimizer, range(4))
    mean = torch.zeros_like(params[0])
    for step in range(4):
        mean = 0.9 * mean + 0.1 * gradients(step, params)[0]
    saved = optimizer.state_dict()["state"][0]
    assert torch.allclose(saved["sgg_momentum"], mean)
    labels = saved["sgg_labels"].flatten()
    ordered = labels[mean.flatten().argsort()].int()
    assert (ordered.diff() >= 0).all() and set(ordered.tolist()) == {0, 1, 2}


def test_live_labels_are_those_of_todays_momentum():
    params = parameters(torch.float64)
    optimizer = SGG(torch.optim.AdamW(params, lr=1e-2), recluster_interval=2, labels="live")
    run(optimizer, range(3))
    state, own = optimizer.state[params[0]], copied(optimizer.state_dict()["state"][0])
    assert "sgg_labels" not in own
    before = params[0].detach().clone()
    plain = torch.optim.AdamW([torch.nn.Parameter(before.clone())], lr=1e-2)
    plain.load_state_dict(
        {**torch.optim.AdamW([params[0]]).state_dict(), "state": {0: {k: v.clone() for k, v in state.items()}}}
    )
    plain.param_groups[0]["lr"] = 1e-2
    plain.param_groups[0]["params"][0].grad = gradients(3, params)[0]
    plain.step()
    run(optimizer, range(3, 4))
    kept = before * (1 - 1e-2 * 1e-2)
    factors = (params[0].detach() - kept) / (plain.param_groups[0]["params"][0].detach() - kept)
    clusters = torch.bucketize(optimizer.state[params[0]]["exp_avg"], own["sgg_boundaries"].double())
    assert torch.allclose(factors, own["sgg_scales"].double()[clusters], rtol=1e-6)


def test_one_cluster_is_the_base_bit_for_bit():
    found = run(SGG(torch.optim.AdamW(parameters(), **OPTIONS), n_clusters=1, recluster_interval=1))[-1]
    assert all(
        torch.equal(one, other)
        for one, other in zip(found, run(torch.optim.AdamW(parameters(), **OPTIONS))[-1], strict=True)
    )


def test_a_fraction_of_a_run_needs_its_length():
    base = torch.optim.AdamW(parameters(), **OPTIONS)
    optimizer = SGG(base, recluster_interval=0.5, total_steps="deferred")
    before = [param.detach().clone() for param in base.param_groups[0]["params"]]
    with pytest.raises(RuntimeError, match="its length is not known yet"):
        run(optimizer, range(1))
    assert all(torch.equal(one, other) for one, other in zip(before, base.param_groups[0]["params"], strict=True))
    assert optimizer.waits_for_total_steps
    optimizer.set_total_steps(4)
    run(optimizer, range(2))
    assert optimizer.grouping_report.step == 2 and not optimizer.waits_for_total_steps


class Zeroing(torch.optim.SGD):
    """It does what it likes with the gradient."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.zero_()


@pytest.mark.parametrize("labels", ["frozen", "live"])
def test_the_gradient_that_is_grouped_is_the_one_that_came_in(labels):
    params = parameters(torch.float64)
    optimizer = SGG(Zeroing(params, lr=0.1), recluster_interval=2, kept_momentum="gradient", labels=labels)
    run(optimizer, range(2))
    assert [layer.name for layer in optimizer.grouping_report.layers] and len(optimizer.grouping_report.layers) == 2
    own, before = copied(optimizer.state_dict()["state"][0]), params[0].detach().clone()
    assert "sgg_momentum" not in own
    today = gradients(2, params)[0]
    run(optimizer, range(2, 3))
    of = gradients(1, params)[0] if labels == "frozen" else today
    scales = own["sgg_scales"].double()[torch.bucketize(of, own["sgg_boundaries"].double())]
    assert torch.allclose(params[0].detach() - before, -0.1 * scales * today) and scales.unique().numel() == 3
