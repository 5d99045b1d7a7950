"""A small model and a training loop for the optimizer tests."""

import io

import torch
from torch import nn


class Language(nn.Sequential):
    """A language model, as transformers would ask it for its embedding."""

    def get_input_embeddings(self):
        return self[0]


def make_model(seed=0, dtype=torch.float32):
    """An embedding, two linear layers and a norm: matrices of different sizes and vectors."""
    generator = torch.Generator().manual_seed(seed)
    model = Language(nn.Embedding(40, 12), nn.Linear(12, 24), nn.LayerNorm(24), nn.Linear(24, 40, bias=False))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return model.to(dtype)


def batches(n, seed=1, start=0):
    """Batches number `start` to `n` - 1 of a fixed sequence."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        batch = torch.randint(0, 40, (6, 9), generator=generator)
        if i >= start:
            yield batch


def train(model, optimizer, data):
    """Next-token training; returns the losses."""
    losses = []
    for batch in data:
        optimizer.zero_grad()
        logits = model(batch[:, :-1]).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same_weights(a, b):
    """Bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def through_a_file(state_dict):
    """Save it, and load it as from a checkpoint that nobody trusts."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
