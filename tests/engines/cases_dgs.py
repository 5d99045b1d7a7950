"""DGS on one process, and what the engines' cases share: a model that is fed its gradients, and records of each step.

Gradients are given, and exact in any sum over ranks. So every engine steps with the same ones, bit for bit, and the
sums over layers may differ from those of one process by no more than the order of adding in float64.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import nn

from gradscale import DGS, DGSLARS, DGSSGD, DGSAdamW
from gradscale.optim.step_numbers import StepNumbers
from tests.engines.sent import sent_bytes
from tests.optim.training import batches, make_model

STEPS, TRAINED_STEPS, ACCUMULATE = 7, 10, 2
SPIKE = 4  # the step whose gradients are many times those of the others, from 0

# Sizes that no number of ranks divides, layers with fewer elements than there are ranks, and a vector that has as many
# elements as what is kept of a layer has numbers.
PARTS = {
    "first": {"wide": (7, 33), "one": (1, 1), "bias": (7,), "four": (4,)},
    "second": {"conv": (5, 2, 3, 3), "row": (1, 40), "two": (2, 1)},
    "third": {"tall": (50, 6), "scale": (3,)},
}
SHAPES = {f"{part}.{name}": shape for part, shapes in PARTS.items() for name, shape in shapes.items()}
LAYERS = len(SHAPES)


def adapted(params, module, lr, weight_decay, **options):
    """DGS around an optimizer that knows nothing of it."""
    base = torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=weight_decay)
    return DGS(base, module=module, **options)


_RESETS = {"reset_spike": 3.0, "reset_every": 3}
_RUNNING = {"importance_decay": 0.8, **_RESETS}
_FULL = {"form": "full", "eps": 1e-2, "sigma": 0.5}
# The class, its options, and how many float64 numbers a step sends of sharded layers: one for the sum over all
# gradients; else of each layer its sum, for trust ratios two sums of squares, and how many ranks have a gradient.
METHODS = {
    "equation": (DGSSGD, {"lr": 0.1, "form": "equation", "sigma": 0.5}, 1),
    "full": (DGSSGD, {"lr": 1e-3, **_FULL, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, 1),
    "importance": (DGSSGD, {"lr": 1e-3, "form": "importance", "eps": 1e-2, "momentum": 0.9}, 0),
    "importance, no momentum": (DGSSGD, {"lr": 1e-3, "form": "importance", "eps": 1e-2}, 0),
    "normalized": (DGSAdamW, {"lr": 1e-2, "form": "normalized"}, 2 * LAYERS),
    "running": (DGSAdamW, {"lr": 1e-3, "form": "full", "importance_eps": 1e-2, **_RUNNING}, 2 * LAYERS),
    "running, no momentum": (DGSSGD, {"lr": 1e-3, **_FULL, **_RUNNING, "reset": "hard"}, 2 * LAYERS),
    "adapter": (adapted, {"lr": 1e-3, **_FULL, "weight_decay": 0.1}, 1),
    "adapter, by layer": (adapted, {"lr": 1e-2, "form": "normalized", "weight_decay": 0.1}, 2 * LAYERS),
    "adapter, running": (adapted, {"lr": 1e-3, **_FULL, **_RUNNING, "weight_decay": 0.1}, 2 * LAYERS),
    "lars": (DGSLARS, {"lr": 0.5, "form": "equation", "weight_decay": 0.1, "trust_coefficient": 0.1}, 4 * LAYERS),
    "lars, running": (DGSLARS, {"lr": 0.1, **_RUNNING, "form": "normalized", "trust_coefficient": 0.1}, 4 * LAYERS),
}
TRAINED = ("full", "running", "lars")
# Param groups of one optimizer that differ: options of those of `groups_of`. Only where layers stay apart in groups.
UNLIKE = {
    "unlike, together": ("equation", [{"gamma": 0.01, "form": "importance"}, {"scaled": False}, {"gamma": 0.0}], 1),
    "unlike, by layer": (
        "running, no momentum",
        [{"gamma": 0.01}, {"scaled": False, "momentum": 0.9}, {**dict.fromkeys(_RESETS), "importance_decay": 0.0}],
        2 * LAYERS,
    ),
    "unlike, spikes": ("running", [{"reset_spike": 1.01}, {}, {}], 2 * LAYERS),
}


class Case(NamedTuple):
    """A method, and what is done with it.

    Attributes:
        method: its name.
        unused: steps in which the part `third` is not used at all.
        frozen: a part whose parameters are given to the optimizer, but not trained.
        options: further options.
        kind: a class and its options, in place of those of the method.
    """

    method: str
    unused: tuple[int, ...] = ()
    frozen: str = ""
    options: dict[str, object] = {}
    kind: tuple[type, dict[str, object]] | None = None

    @property
    def sent(self):
        """Bytes that a step sends of sharded layers."""
        return 8 * (METHODS | UNLIKE)[self.method][-1]


# Until the gradients that are a spike, and once more later.
_LATE = (0, 1, 2, 3, 5)
CASES = {
    **{name: Case(name) for name in METHODS | UNLIKE},
    "running, compiled": Case("running", options={"kernel": "compiled"}),
    "unused": Case("full", _LATE),
    "unused, running": Case("running", _LATE),
    "unused, lars": Case("lars, running", _LATE),
    "unused, spikes": Case("unlike, spikes", _LATE),
    "frozen": Case("full", frozen="second"),
    "frozen, running": Case("running", frozen="second"),
}


class Part(nn.Module):
    """Some of the parameters."""

    def __init__(self, shapes, prefix):
        super().__init__()
        self.prefix, self.names = prefix, list(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, gradients):
        pairs = [(getattr(self, name), gradients[f"{self.prefix}.{name}"]) for name in self.names]
        return sum((param * gradient.to(param.dtype)).sum() for param, gradient in pairs)

    def is_in(self, gradients):
        return f"{self.prefix}.{self.names[0]}" in gradients


class Fed(nn.Module):
    """Parameters whose gradients are given.

    Args:
        frozen: a part that is not trained.
    """

    def __init__(self, frozen=""):
        super().__init__()
        for name, shapes in PARTS.items():
            self.add_module(name, Part(shapes, name))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_((torch.randn(param.shape, generator=generator) * 0.3).bfloat16())
        if frozen:
            getattr(self, frozen).requires_grad_(False)

    def forward(self, gradients):
        parts = [getattr(self, name) for name in PARTS]
        return sum(part(gradients) for part in parts if part.is_in(gradients))


def groups_of(model):
    """Parameters in three param groups; `first.one` has one of its own, which is padding on most ranks of ZeRO."""
    named = {name.replace("_fsdp_wrapped_module.", ""): param for name, param in model.named_parameters()}
    firsts = [name for name in named if name.startswith("first.") and name != "first.one"]
    others = [name for name in named if name not in (*firsts, "first.one")]
    return [{"params": [named[name] for name in names]} for names in (firsts, ["first.one"], others)]


def optimizer_of(model, case, groups=groups_of):
    """The optimizer of a case. Without `groups`, all parameters are in one group."""
    base, unlike, _ = UNLIKE.get(case.method, (case.method, [], 0))
    kind, options = case.kind or METHODS[base][:2]
    params = list(model.parameters()) if groups is None else groups(model)
    for group, own in zip(params, unlike, strict=False):
        group.update(own)
    return kind(params, **{**options, **case.options}, module=model)


def gradients(start=0, stop=STEPS):
    """Of each step, those of its backward passes: with heavy tails, and exact in any dtype and any sum over them.

    Those of one element in one step are small multiples of the same power of 2.
    """
    generator = torch.Generator().manual_seed(5)
    for step in range(stop):
        tails = {name: torch.randn(shape, generator=generator).pow(3) for name, shape in SHAPES.items()}
        passes = [
            {
                name: torch.ldexp(torch.randint(-20, 21, tail.shape, generator=generator) / 16, tail.frexp().exponent)
                * (16 if step == SPIKE else 1)
                for name, tail in tails.items()
            }
            for _ in range(ACCUMULATE)
        ]
        if step >= start:
            yield passes


def collective_importance(sigma, frozen="none"):
    """G of every step with a gamma of 1 / n, summed plainly."""
    trained = [name for name in SHAPES if not name.startswith(frozen)]
    n = sum(torch.Size(SHAPES[name]).numel() for name in trained)
    for passes in gradients():
        gradient = torch.cat([sum(values[name] for values in passes).flatten() / ACCUMULATE for name in trained])
        yield sigma + gradient.double().abs().sum().item() / n


@contextlib.contextmanager
def recorded():
    """Of every step that reads all gradients: trust ratio, G, M, W and keep of each layer, by name, in float64."""
    steps, write = [], StepNumbers._write

    def recording(self, ratios, numbers):
        names = [segment.name for _, _, segment in self._layers]
        columns = torch.cat([ratios[:, None], numbers], dim=1).tolist()
        steps.append(dict(zip(names, columns, strict=True)))
        return write(self, ratios, numbers)

    StepNumbers._write = recording
    try:
        yield steps
    finally:
        StepNumbers._write = write


class Alone:
    """One process without any engine, used like the engines."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def backward(self, loss, last):
        (loss / ACCUMULATE).backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self):
        return {name: param.detach().clone() for name, param in self.model.named_parameters()}

    def facts(self):
        return {}


def feed(run, rank=0, world_size=1, *, start=0, stop=STEPS, unused=()):
    """Step with the given gradients; engines average over ranks, and what one rank gives alone is exact.

    Args:
        run: an engine, or what is used like one.
        rank, world_size: of this process.
        start, stop: the steps.
        unused: see `Case`.
    """
    sent = []
    with recorded() as numbers:
        for step, passes in enumerate(gradients(start, stop), start):
            for place, values in enumerate(passes, 1):
                share = 0 if rank else world_size
                used = {name: value * share for name, value in values.items() if _is_used(name, step, unused)}
                run.backward(run.model(used), place == len(passes))
            with sent_bytes() as sizes:
                run.step()
            sent.append(sizes)
    return {"facts": run.facts(), "numbers": numbers, "sent": sent, "weights": run.weights()}


def _is_used(name, step, unused):
    return step not in unused or not name.startswith("third.")


def train(run, shares=1, share=0):
    """Train a language model, on some of the rows of each batch; engines average over all of them."""
    losses = []
    with recorded() as numbers:
        for index, batch in enumerate(batches(TRAINED_STEPS * ACCUMULATE), 1):
            mine = batch.chunk(shares)[share]
            loss = nn.functional.cross_entropy(run.model(mine[:, :-1]).flatten(0, 1), mine[:, 1:].flatten())
            last = index % ACCUMULATE == 0
            run.backward(loss, last)
            if last:
                run.step()
            losses.append(loss.item())
    return {"facts": run.facts(), "numbers": numbers, "losses": losses, "weights": run.weights()}


def alone():
    """What the engines are compared with: every case that is fed, and every method that is trained."""
    fed, trained = {}, {}
    for name, case in CASES.items():
        if case.options:
            fed[name] = fed[case.method]  # compiled, the same to the last bits
            continue
        model = Fed(case.frozen)
        fed[name] = feed(Alone(model, optimizer_of(model, case)), unused=case.unused)
    for name in TRAINED:
        model = make_model()
        trained[name] = train(Alone(model, optimizer_of(model, Case(name), groups=None)))
    return {"fed": fed, "trained": trained}
