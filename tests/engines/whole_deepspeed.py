"""Whole layers of a model under DeepSpeed, and their groups made again: what every rank should have decided."""

import dataclasses
from contextlib import contextmanager

import torch

from gradscale.optim import measure
from gradscale.optim.rule import Layer
from gradscale.optim.sgg_scaler import SGGScaler
from gradscale.scalers.histogram import N_BINS
from tests.engines.models_deepspeed import shape_of


def full(param, key):
    """A parameter ("fp32") or its state as a whole tensor, put together by DeepSpeed's own functions."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    return safe_get_full_fp32_param(param) if key == "fp32" else safe_get_full_optimizer_state(param, key)


class WholeLayers:
    """The layers of a model, and groups of them that are made without any engine, beginning as a new optimizer does.

    Made before an engine takes over the parameters.

    Attributes:
        optimizer, engine: the optimizer, and the engine, which is entered later.
        groups: param groups of the scaled layers, by name.
        trained: names of all trained parameters.
        clock: training steps so far.
        decided: report, and scales and boundaries of all layers, by the step that grouped.
        wrong: where these are not those of the whole layers.
    """

    def __init__(self, model, optimizer):
        self.optimizer, self.engine, self.partitioned_at_once = optimizer, None, 0
        self.params = dict(model.named_parameters())
        self.trained = [name for name, param in self.params.items() if param.requires_grad]
        self._all_groups, self._flats = list(optimizer.param_groups), None
        self.clock, self.decided, self.wrong = 0, {}, []
        self.groups, self.states = {}, {}
        names = {param: name for name, param in self.params.items()}
        for group in optimizer.param_groups:
            for param in group["params"]:
                one = group["grouping"] == "layer"
                if param.requires_grad and len(shape_of(param)) > 1 and group["scaled"] and group["n_clusters"] > 1:
                    clusters = 1 if one else group["n_clusters"]
                    self.groups[names[param]] = group
                    self.states[names[param]] = {
                        "scales": torch.ones(clusters),
                        "boundaries": torch.full((clusters - 1,), float("inf")),
                        "labels": torch.zeros(shape_of(param), dtype=torch.uint8),
                    }

    def due(self):
        """Names of the layers that are grouped in this step."""
        return [name for name, group in self.groups.items() if self.clock % group["recluster_interval"] == 0]

    def group_again(self, rank):
        """Enter what the optimizer decided in this step; on rank 0, decide again and compare.

        Returns:
            The bytes of each count of the layers, on rank 0.
        """
        report, rows = self.decided[self.clock] = self.optimizer.grouping_report, self.rows()
        momenta = {name: self.whole(name, "exp_avg") for name in self.states}
        labels = {name: self.whole(name, "labels") for name in self.states if self.has_labels(name)}
        if rank > 0:
            return []
        layers = [
            Layer(
                name=name,
                numel=momenta[name].numel(),
                process_groups=(),
                momentum=momenta[name],
                state=state,
                group=self.groups[name],
                due=name in self.due(),
            )
            for name, state in self.states.items()
        ]
        with counted_layers() as counts:
            expected = SGGScaler().observe(layers, self.clock)
        if _by_name(report) != _by_name(expected):
            self.wrong.append((self.clock, "report"))
        for name, state in self.states.items():
            if rows[name] != {key: state[key].tolist() for key in ("scales", "boundaries")}:
                self.wrong.append((self.clock, name, "scales or boundaries"))
            if name in labels and not torch.equal(labels[name], state["labels"].float()):
                self.wrong.append((self.clock, name, "labels"))
        return [count * (N_BINS + 1) * 4 for count in counts]

    def has_labels(self, name):
        """Whether the optimizer keeps labels of a layer."""
        return self.groups[name]["labels"] == "frozen" and len(self.states[name]["scales"]) > 1

    def whole(self, name, key):
        """A parameter ("fp32") or its state as a whole tensor, for every kind of ZeRO."""
        param, zero = self.params[name], self.engine.optimizer
        if zero is self.optimizer:
            return (param if key == "fp32" else self.optimizer.state[param][key]).detach().float()
        if not getattr(zero, "round_robin_gradients", False):
            return full(param, key).detach()
        # DeepSpeed's functions take no account of the order that round_robin_gradients puts parameters in.
        for index, flat in enumerate(self.flats()):
            places = zip(zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True)
            begin = next((begin for member, begin in places if member is param), None)
            if begin is not None:
                part = (flat if key == "fp32" else self.optimizer.state[flat][key]).detach().float()
                parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
                torch.distributed.all_gather(parts, part)
                return torch.cat(parts)[begin : begin + param.numel()].view(param.shape)
        raise AssertionError(f"{name} is in no group")

    def rows(self):
        """Scales and boundaries that the optimizer has of each layer, by name, as numbers."""
        zero = self.engine.optimizer
        if zero is self.optimizer:
            states = {name: self.optimizer.state.get(self.params[name], {}) for name in self.groups}
            return {name: {key: states[name][key].tolist() for key in ("scales", "boundaries")} for name in states}
        # Between steps, ZeRO 3 leaves the param groups empty.
        getattr(zero, "_set_fp32_optimizer_param_groups", lambda: None)()
        saved = self.optimizer.state_dict()["param_groups"][0]
        getattr(zero, "_clear_fp32_optimizer_param_groups", lambda: None)()
        return saved.get("layers", {})

    def flats(self):
        """The tensors that DeepSpeed has the optimizer step."""
        if self._flats is None:
            zero = self.engine.optimizer
            names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
            self._flats = list(next(getattr(zero, name) for name in names if hasattr(zero, name)))
        return self._flats

    def snapshot(self):
        """Copies of all that a step may change on this rank."""
        weights = [getattr(param, "ds_tensor", param) for param in self.params.values()]
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        steps = [torch.tensor(group["steps"]) for group in self._all_groups]
        return [tensor.detach().clone() for tensor in (*weights, *self.flats(), *states, *steps)]


def _by_name(report):
    return report and dataclasses.replace(report, layers=tuple(sorted(report.layers, key=lambda layer: layer.name)))


@contextmanager
def counted_layers():
    """Numbers of layers that each count of a grouping was of."""
    numbers, real = [], measure.LayerCounts

    def counting(layers, *args):
        numbers.append(len(layers))
        return real(layers, *args)

    measure.LayerCounts = counting
    try:
        yield numbers
    finally:
        measure.LayerCounts = real
