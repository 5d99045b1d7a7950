"""SGG on SGD, Lion and LAMB: against float64 references, and where a base asks for something of its own.

Guards against a gradient that is gone when a grouping asks for it, a direction of the wrong momentum, trust ratios that
scales or clusters change, and state that a base does not need.
"""

from functools import partial

import numpy as np
import pytest
import torch

from gradscale.optim.kernels import compiled, update_sums
from gradscale.optim.kernels.constants import Constants
from gradscale.optim.sgg_lamb import SGGLamb
from gradscale.optim.sgg_lion import SGGLion
from gradscale.optim.sgg_sgd import SGGSGD
from tests.optim.small_models import FEW, make, run
from tests.optim.training import batches, make_model, same_weights, train
from tests.reference.sgg_bases_reference import ReferenceSGGLamb, ReferenceSGGLion, ReferenceSGGSGD

MOMENTUM = {"momentum": 0.9}
NESTEROV = {"momentum": 0.9, "nesterov": True}
LIVE = {"labels": "live"}
VARIANTS = [
    *((SGGSGD, ReferenceSGGSGD, {"weight_decay": 0.1, **own}) for own in ({}, LIVE, MOMENTUM, NESTEROV)),
    (SGGSGD, ReferenceSGGSGD, {**MOMENTUM, "dampening": 0.5, "maximize": True}),
    (SGGSGD, ReferenceSGGSGD, {**NESTEROV, **LIVE, "n_clusters": 2, "weight_decay": 0.1}),
    (SGGSGD, ReferenceSGGSGD, {"momentum_sign": "absolute", "global_mda": "parameters", "maximize": True}),
    *((SGGLion, ReferenceSGGLion, {"betas": (0.8, 0.9), "weight_decay": 0.1, **own}) for own in ({}, LIVE)),
    (SGGLion, ReferenceSGGLion, {"betas": (0.3, 0.0), "maximize": True, "n_clusters": 2}),
    *(
        (SGGLamb, ReferenceSGGLamb, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, **own})
        for own in ({}, LIVE, {"adapt_vectors": True}, {"trust_clip": True, "maximize": True}, {"weight_decay": 0.0})
    ),
]


@pytest.mark.parametrize(("cls", "reference", "options"), VARIANTS, ids=lambda item: getattr(item, "__name__", item))
def test_trajectory_is_the_references(cls, reference, options):
    shapes = {"wide": (30, 50), "square": (24, 24), "conv": (8, 4, 3, 3), "bias": (30,), "gain": ()}
    generator = np.random.default_rng(0)
    start = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    options = {"lr": 1e-2, "recluster_interval": 3, "scale_decay": 0.8, "weight_decay": 0.0, **options}
    expected = reference(start, **options)
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = cls(params.values(), **options)
    for _ in range(10):
        grads = {name: generator.standard_t(4, size=shape) * 0.1 for name, shape in shapes.items()}
        for name, grad in grads.items():
            params[name].grad = torch.tensor(grad).reshape(shapes[name])
        optimizer.step()
        expected.step(grads)
    for name, param in params.items():
        found = param.detach().numpy()
        if param.dim() < 2:
            np.testing.assert_allclose(found, expected.params[name], rtol=1e-12)
            continue
        # As for SGGAdamW: medians of the histogram are off by up to 0.8 %, and labels at the very edge of a cluster.
        moved = np.abs(expected.params[name] - start[name]).mean()
        assert moved > 0 and np.abs(found - expected.params[name]).mean() <= 0.025 * moved, name
        np.testing.assert_allclose(optimizer.state[param]["scales"].numpy(), expected.scales[name], rtol=0.03)
        if options.get("labels") != "live":
            labels = optimizer.state[param]["labels"].numpy().ravel()
            assert (labels != expected.labels[name]).mean() < 0.02


TWICE = [
    (SGGSGD, {}),
    (SGGSGD, {**NESTEROV, "weight_decay": 0.1}),  # it enters the gradient, and is scaled with it
    (SGGLion, {"weight_decay": 0.1}),
    (SGGLamb, {"weight_decay": 0.1}),
]


@pytest.mark.parametrize(("cls", "options"), TWICE, ids=lambda item: getattr(item, "__name__", item))
def test_scales_fixed_at_two_double_the_step_and_leave_decoupled_decay_alone(cls, options):
    models = [make_model(dtype=torch.float64) for _ in range(3)]
    base = cls(models[0].parameters(), lr=1e-2, n_clusters=1, **options)
    twice = cls(models[1].parameters(), lr=1e-2, scale_bounds=(2, 2), scale_decay=0, recluster_interval=1, **options)
    start = [param.detach().clone() for param in models[0].parameters()]
    for model, optimizer in zip(models, (base, twice), strict=False):
        train(model, optimizer, batches(1))
    for before, single, double in zip(start, models[0].parameters(), models[1].parameters(), strict=True):
        decay = options["weight_decay"] if cls.base.decoupled_weight_decay else 0.0
        if cls is SGGLamb and before.dim() >= 2:
            # lr ratio (r + decay w): what one step has moved is as long as lr times the weight.
            moved = before - single
            assert float(moved.detach().norm()) == pytest.approx(1e-2 * float(before.norm()), rel=1e-9)
            state, step = base.state[single], 1 - 0.999
            direction = state["exp_avg"] / (1 - 0.9) / ((state["exp_avg_sq"] / step).sqrt() + 1e-6)
            ratio = before.norm() / (direction + decay * before).norm()
            decay *= float(ratio)
        decayed = before * (1 - 1e-2 * decay)
        factor = 2 if before.dim() >= 2 else 1
        torch.testing.assert_close(double - decayed, factor * (single - decayed), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, LIVE], ids=str)
@pytest.mark.parametrize("cls", [SGGSGD, partial(SGGSGD, **NESTEROV), SGGLion, SGGLamb])
def test_it_is_its_base_before_the_first_grouping(cls, options, dtype):
    def trained(**more):
        model = make_model(dtype=dtype)
        train(model, cls(model.parameters(), lr=1e-2, **options, **more), batches(7))
        return model

    base = trained(n_clusters=1, recluster_interval=2)
    assert same_weights(base, trained(n_clusters=3, recluster_interval=8))
    assert not same_weights(base, trained(n_clusters=3, recluster_interval=7))


COMPILED = [
    (SGGSGD, {}),
    (SGGSGD, {**NESTEROV, **LIVE}),
    (SGGLion, {}),
    (SGGLion, {**LIVE, "maximize": True}),
    (SGGLamb, {}),
    (SGGLamb, {"n_clusters": 1, "adapt_vectors": True}),
]


@pytest.mark.parametrize(("cls", "options"), COMPILED, ids=lambda item: getattr(item, "__name__", item))
def test_compiled_and_eager_steps_agree(cls, options):
    runs = []
    for kernel in ("compiled", "eager"):
        params, optimizer = make(cls, shapes=FEW, kernel=kernel, **options)
        run(params, optimizer)
        runs.append((params, optimizer))
    (params, optimizer), (twins, twin) = runs
    assert any(key[0].rule is optimizer.base for key in compiled._CODE)
    if cls is SGGLamb:
        assert update_sums._CODE and None not in update_sums._CODE.values()
    for one, other in zip(params, twins, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)
        if "labels" in twin.state[other]:
            assert torch.equal(optimizer.state[one]["labels"], twin.state[other]["labels"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compiled_sums_over_updates_are_the_eager_ones(dtype):
    rule, keys = SGGLamb.base, ("exp_avg", "exp_avg_sq")
    for shape in [(700, 300), (11,), (3, 2, 5), ()]:
        tensors = [torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.rand(shape).to(dtype)]
        _, own = rule.constants({"betas": (0.9, 0.999), "eps": 1e-6}, 3.0)
        stretch = update_sums.Stretch(rule, None, keys, tensors, Constants((0.5, 0.1, *own)))
        found = [update_sums.update_sums(stretch, compiled=compile_it) for compile_it in (True, False)]
        for one, other in zip(*found, strict=True):
            assert one.dtype == other.dtype == torch.float64 and one.shape == other.shape == ()
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        weight, moment, square = (tensor.double() for tensor in tensors)
        update = 0.5 * moment / (square.sqrt() + own[-1]) + 0.1 * weight
        for one, expected in zip(found[1], (weight, update), strict=True):
            torch.testing.assert_close(one, expected.square().sum(), rtol=1e-5, atol=0)


def test_without_momentum_there_is_no_state_for_it():
    model = make_model()
    optimizer = SGGSGD(model.parameters(), recluster_interval=1)
    train(model, optimizer, batches(2))
    matrix, vector = (set(optimizer.state[param]) for param in (model[1].weight, model[1].bias))
    assert (matrix, vector) == ({"step", "scales", "boundaries", "labels"}, {"step"})
    live = SGGSGD(model.parameters(), recluster_interval=1, labels="live")
    train(model, live, batches(2))
    assert set(live.state[model[1].weight]) == {"step", "scales", "boundaries"}


GRADIENT = torch.tensor([[1.0, 1.1], [1.2, 1.3], [9.0, 9.5]])  # two clusters, one of them farther from the mean


def test_without_momentum_labels_are_those_of_the_gradient_of_the_step_that_groups():
    param = torch.nn.Parameter(torch.zeros(3, 2))
    options = {"n_clusters": 2, "scale_decay": 0.5, "min_layer_size": 0, "kernel": "eager"}
    optimizer = SGGSGD([param], lr=1.0, recluster_interval=2, **options)
    for sign in (1.0, -1.0, 1.0):
        before = param.detach().clone()
        param.grad = sign * GRADIENT
        optimizer.step()
    # Of the negative gradient of the second step, in the order of its values.
    assert optimizer.state[param]["labels"].tolist() == [[1, 1], [1, 1], [0, 0]]
    low, high = optimizer.state[param]["scales"].tolist()
    assert low < 1 < high
    torch.testing.assert_close(before - param, param.grad * torch.tensor([[high], [high], [low]]))


def test_without_momentum_live_labels_are_those_of_todays_gradient():
    param = torch.nn.Parameter(torch.zeros(3, 2))
    options = {"n_clusters": 2, "scale_decay": 0.5, "min_layer_size": 0, "labels": "live", "kernel": "eager"}
    optimizer = SGGSGD([param], lr=1.0, recluster_interval=2, **options)
    for grad in (GRADIENT, GRADIENT, GRADIENT.flip(0)):
        before = param.detach().clone()
        param.grad = grad
        optimizer.step()
    low, high = optimizer.state[param]["scales"].tolist()
    assert high < 1 < low
    torch.testing.assert_close(before - param, GRADIENT.flip(0) * torch.tensor([[high], [low], [low]]))


@pytest.mark.parametrize("cls", [SGGSGD, partial(SGGSGD, **NESTEROV), SGGLion, SGGLamb])
@pytest.mark.parametrize("labels", ["frozen", "live"])
def test_a_layer_without_a_gradient_does_not_move_nor_stop_the_others(cls, labels):
    params = [torch.nn.Parameter(torch.randn(6, 6)) for _ in range(3)]
    optimizer = cls(
        [("a", params[0]), ("b", params[1]), ("c", params[2])], lr=1e-2, recluster_interval=2, labels=labels
    )
    for step in range(1, 5):
        for index, param in enumerate(params):
            # "b" has none in a step that groups; "c" has none at all before the last.
            absent = (index == 1 and step == 4) or (index == 2 and step < 4)
            param.grad = None if absent else torch.randn(6, 6)
        before = [param.detach().clone() for param in params]
        optimizer.step()
        for param, old in zip(params, before, strict=True):
            assert torch.equal(param, old) == (param.grad is None)
        assert param.isfinite().all()
    grouped = [layer.name for layer in optimizer.grouping_report.layers]
    # Without momentum, a layer without a gradient has nothing to group; else its momentum waits, and is grouped.
    assert grouped == (
        ["a", "c"] if not optimizer.base.slots(params[0], optimizer.param_groups[0]) else ["a", "b", "c"]
    )


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_lion_does_not_hide_a_gradient_that_is_not_finite(bad, kernel):
    """The sign of NaN is 0 in torch: the element would never move again, without a word."""
    param = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = SGGLion([param], kernel=kernel)
    param.grad = torch.ones(4, 5)
    param.grad[1, 2] = bad
    optimizer.step()
    assert param.isnan().sum() == 1 and param[1, 2].isnan()


def test_lamb_of_a_gradient_that_is_not_finite_stops_no_layer_quietly():
    param = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = SGGLamb([param])
    param.grad = torch.ones(4, 5)
    param.grad[1, 2] = float("nan")
    optimizer.step()
    assert param.isnan().all()


def test_layers_that_are_not_scaled_have_their_trust_ratios_all_the_same():
    torch.manual_seed(0)
    start = [torch.randn(8, 6), torch.randn(5, 4) * 10, torch.zeros(3, 3)]

    def stepped(**options):
        params = [torch.nn.Parameter(values.clone()) for values in start]
        groups = [{"params": params[:1]}, {"params": params[1:], "scaled": False}]
        optimizer = SGGLamb(groups, lr=1e-2, weight_decay=0.1, **options)
        torch.manual_seed(1)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
        return params

    scaled, plain = stepped(recluster_interval=1), stepped(n_clusters=1)
    assert not torch.equal(scaled[0], plain[0])
    assert torch.equal(scaled[1], plain[1]) and torch.equal(scaled[2], plain[2])
    # The first step of a layer is as long as lr times its weight, but from zero, where the ratio is 1.
    single = torch.nn.Parameter(start[1].clone())
    optimizer = SGGLamb([{"params": single, "scaled": False}], lr=1e-2, weight_decay=0.1)
    single.grad = torch.randn_like(single)
    optimizer.step()
    assert float((single.detach() - start[1]).norm()) == pytest.approx(1e-2 * float(start[1].norm()), rel=1e-5)


def test_lamb_learns_in_pure_bfloat16_with_kahans_sum():
    losses = []
    for options in ({}, {"kahan_sum": True}):
        model = make_model(dtype=torch.bfloat16)
        optimizer = SGGLamb(model.parameters(), lr=1e-3, recluster_interval=5, **options)
        losses.append(train(model, optimizer, batches(60))[-1])
        assert ("compensation" in optimizer.state[model[1].weight]) == bool(options)
    whole = make_model()
    expected = train(whole, SGGLamb(whole.parameters(), lr=1e-3, recluster_interval=5), batches(60))[-1]
    assert abs(losses[1] - expected) < abs(losses[0] - expected)
