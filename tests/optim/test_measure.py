"""Layers are measured some at a time: what is decided of one must not depend on which others come with it."""

import dataclasses

import torch

from gradscale.optim import measure as measuring
from gradscale.optim.rule import Layer
from gradscale.optim.sgg_scaler import SGGScaler


def layer(index, momentum, **options):
    scaler = SGGScaler()
    defaults = {name: option.default for name, option in scaler.options.items()}
    group = {**defaults, "scaled": True, "total_steps": None, **options}
    slots = scaler.slots(momentum.shape, None, group)
    state = {key: torch.full(slot.shape, slot.fill, dtype=slot.dtype) for key, slot in slots.items()}
    return Layer(str(index), momentum.numel(), (), momentum, state, group, due=True)


def momentum(index):
    """Every kind that takes another way: usual, narrow beside its mean, constant, zero, not finite."""
    values = torch.randn(6, 30, dtype=torch.float64) * 10.0 ** -(index % 7)
    kind = index % 9
    if kind == 3:
        return 1 + 1e-3 * values
    if kind == 4:
        return torch.full((2, 3), 0.3, dtype=torch.float64)
    if kind == 5:
        return torch.zeros(4, 4)
    if kind == 6:
        values[1, 2] = torch.inf
    return values


def layers_of(momenta):
    return [layer(i, values.clone(), n_clusters=2 + i % 3) for i, values in enumerate(momenta)]


def test_a_layer_is_measured_the_same_alone_and_among_others():
    momenta = [momentum(index) for index in range(100)]
    together = SGGScaler().observe(layers_of(momenta), 7)
    assert together.waiting == tuple(str(index) for index in range(100) if index % 9 == 6)
    found = {one.name: one for one in together.layers}
    assert list(found) == [str(index) for index in range(100) if index % 9 not in (5, 6)]
    for one in layers_of(momenta):
        if one.name in found:
            (alone,) = SGGScaler().observe([one], 7).layers
            assert dataclasses.replace(alone, scales=()) == dataclasses.replace(found[one.name], scales=())


def test_no_more_layers_are_held_at_once_than_a_few(monkeypatch):
    """The counts of a layer are a quarter of a MB, whatever its size, and a model may have thousands of adapters."""
    held, of = [], measuring.LayerCounts.of

    def noted(self, indices):
        held.append(len(indices))
        return of(self, indices)

    monkeypatch.setattr(measuring.LayerCounts, "of", noted)
    SGGScaler().observe(layers_of([torch.randn(3, 4) for _ in range(300)]), 1)
    assert sum(held) >= 300 and max(held) <= 32
