"""A small language model, trained on bytes with some bad batches among them, under each clipping rule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradscale.bench.peers.clipping import ClipRule
from gradscale.data.stdlib_corpus import StdlibCorpus

_LENGTH, _BATCH, _WIDTH = 48, 16, 64
_BAD_FACTOR = 50.0  # of the gradient of a bad batch: as where a loss is summed instead of averaged


class ByteModel(nn.Module):
    """One transformer layer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, _WIDTH)
        self.positions = nn.Embedding(_LENGTH, _WIDTH)
        self.layer = nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(_WIDTH, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_LENGTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, length, 256] of tokens [batch, length]."""
        mask = self.get_buffer("mask")
        hidden = self.embedding(tokens) + self.positions.weight
        out: Tensor = self.head(self.layer(hidden, src_mask=mask, is_causal=True))
        return out


@functools.cache
def _bytes(split: str) -> Tensor:
    text = "\n".join(StdlibCorpus().documents("train" if split == "train" else "validation"))[:4_000_000]
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def _batch(data: Tensor, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(data) - _LENGTH - 1, (_BATCH,), generator=generator)
    return torch.stack([data[start : start + _LENGTH + 1] for start in starts.tolist()])


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def train(make: Callable[[], ClipRule], *, seed: int, lr: float, steps: int, bad: float) -> float:
    """Return the validation loss (nats per byte) after training; infinity where weights are not finite.

    Args:
        make: makes the clipping rule.
        seed: of weights, batches and which of them are bad: the same for every rule.
        lr: of AdamW, betas (0.9, 0.99), after a warm-up of 10 % of the steps.
        steps: how many.
        bad: share of batches with random targets and a gradient 50 times as large.
    """
    torch.manual_seed(seed)
    model, rule = ByteModel(), make()
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=0.1)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    generator = torch.Generator().manual_seed(seed + 1)
    data = _bytes("train")
    for step in range(steps):
        batch = _batch(data, generator)
        is_bad = torch.rand((), generator=generator).item() < bad and step >= warmup
        if is_bad:
            batch = torch.randint(256, batch.shape, generator=generator)
        loss = _loss(model, batch)
        torch.autograd.backward(loss * _BAD_FACTOR if is_bad else loss)
        grads = [param.grad for param in params if param.grad is not None]
        answer = rule(float(nn.utils.get_total_norm(grads)), float(loss.detach()))
        if not answer.skip:
            if answer.coefficient != 1:
                torch._foreach_mul_(grads, answer.coefficient)
            optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return _validate(model)


@torch.no_grad()
def _validate(model: nn.Module) -> float:
    generator = torch.Generator().manual_seed(0)
    data = _bytes("validation")
    losses = [float(_loss(model, _batch(data, generator))) for _ in range(24)]
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf
