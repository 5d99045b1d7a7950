"""Checkpoints as a Trainer leaves them, of a small model trained by hand."""

import json

import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(24, 40)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(40, 30), torch.nn.Linear(30, 8)])

    def forward(self, x):
        x = self.first(x).tanh()
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def trained(make, steps=6):
    """The optimizer that `make` makes of a new model, after some steps, and the model."""
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model)
    for _ in range(steps):
        x = torch.randn(16, 24)
        (model(x) - x[:, :8].sign()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, model


def save(optimizer, folder, step=6):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    return folder
