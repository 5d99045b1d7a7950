"""A search that leaves out where the best partition is would give worse clusters, and nothing would fail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.scalers.partition import Ranges, best_partition

LAYERS = {
    "normal": lambda g: g.normal(size=400),
    "heavy tails": lambda g: g.standard_t(1.5, size=400),
    "skewed": lambda g: g.random(400) ** 6,
    "magnitudes": lambda g: np.exp(8 * g.normal(size=400)) * g.choice([-1, 1], 400),
    "lumps": lambda g: np.concatenate([g.normal(size=100) + c for c in (-30, -1, 4, 50)]),
    "outlier": lambda g: np.append(g.normal(size=300), 1e7),
    "few values": lambda g: g.choice([-3.0, 0.0, 1e-3, 2.0, 1e4], 60),
}


def ranges_of(values, cuts):
    """Cuts of one layer: sums of its sorted distinct values up to each."""
    distinct, counts = np.unique(values, return_counts=True)
    cuts = np.minimum(np.sort(cuts), len(distinct))
    first = np.searchsorted(distinct, 0.0)
    sums = [np.concatenate([[0], np.cumsum(each)]) for each in (counts, counts * distinct, counts * distinct**2)]
    rows = [cuts, sums[0][cuts], *((each - each[first])[cuts] for each in sums[1:])]
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


def least_cost(ranges, n_clusters):
    """The cost of the best partition, every one of them tried."""
    n_cuts = ranges.cuts.shape[1]
    positions = torch.arange(n_cuts)[None]
    costs = ranges.cost(positions[:, :, None], positions[:, None, :])[0].numpy()
    costs[np.tril_indices(n_cuts, -1)] = np.inf
    best = costs[0]
    for _ in range(n_clusters - 1):
        best = (best[:, None] + costs).min(axis=0)
    return best[-1]


def check(values, cuts, n_clusters):
    ranges = Ranges(*(row[None] for row in ranges_of(values, cuts)))
    chosen = best_partition(ranges, n_clusters)
    assert chosen[0, 0] == 0 and chosen[0, -1] == len(cuts) - 1 and (chosen.diff() >= 0).all()
    cost = sum(
        float(ranges.cost(begin.view(1, 1, 1), end.view(1, 1, 1)))
        for begin, end in zip(chosen[0], chosen[0, 1:], strict=False)
    )
    rounding = 1e-12 * float(ranges.squares[0, -1] - ranges.squares[0, 0])
    assert cost <= least_cost(ranges, n_clusters) * (1 + 1e-12) + rounding * 1e-3


@pytest.mark.parametrize("n_clusters", [2, 3, 4, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_no_partition_among_the_cuts_is_better(name, n_clusters):
    generator = np.random.default_rng(n_clusters)
    for _ in range(5):
        values = LAYERS[name](generator)
        inner = generator.integers(0, len(np.unique(values)) + 1, size=generator.integers(1, 120))
        check(values, np.concatenate([[0, len(values)], inner]), n_clusters)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=40), st.integers(2, 6), st.data())
@settings(max_examples=100, deadline=None)
def test_ties_and_empty_ranges_do_no_harm(values, n_clusters, data):
    inner = data.draw(st.lists(st.integers(0, 40), max_size=30))
    check(np.array(values, dtype=float), np.array([0, len(values), *inner]), n_clusters)
