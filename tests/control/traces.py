"""Traces of norms and losses with everything that goes wrong in training."""

import math
import random


def troubled(seed, steps=600):
    """Return (norm, loss, found_inf) of each step: noise, drift, shifts, spikes, bad batches, what is not finite."""
    rng = random.Random(seed)
    level, sd, drift = rng.uniform(-3, 3), rng.uniform(0.02, 0.5), rng.gauss(0, 0.002)
    loss_level = rng.uniform(-1, 4)
    trace = []
    for _ in range(steps):
        level += drift
        if rng.random() < 0.01:
            level += rng.choice((-1.5, 1.5))
        norm, loss, found_inf = math.exp(rng.gauss(level, sd)), rng.gauss(loss_level, 0.1), False
        luck = rng.random()
        if luck < 0.03:
            norm, loss = 50 * norm, loss + rng.choice((0.0, 5.0))
        elif luck < 0.04:
            norm, found_inf = rng.choice((math.nan, math.inf)), True
        elif luck < 0.05:
            loss = rng.choice((math.nan, math.inf, -math.inf))
        elif luck < 0.06:
            norm = 0.0
        elif luck < 0.07:
            norm = None
        elif luck < 0.08:
            loss = None
        elif luck < 0.10:
            found_inf = True
        trace.append((norm, loss, found_inf))
    return trace


def play(controller, trace, lr=None):
    """Return the decisions of a controller along a trace."""
    return [controller.observe(norm=norm, loss=loss, found_inf=bad, lr=lr) for norm, loss, bad in trace]


def lognormal(seed, steps, *, median=1.0, sd=0.2):
    rng = random.Random(seed)
    return [median * math.exp(rng.gauss(0, sd)) for _ in range(steps)]
