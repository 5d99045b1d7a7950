"""What each rank does in `test_gradient_norms.py`: short runs of the Trainer, one engine after the other."""

import json
from pathlib import Path

from gradscale import GradientNormCallback
from tests.engines import trainer_engines as engines
from tests.engines.cases_trainer import make_trainer


def runs(rank, world_size, names, folder):
    """Kinds of the engines that ran, and what they logged, by name."""
    found = {}
    for name in names:
        into = Path(folder) / name
        trainer = make_trainer(
            name, into, world_size, max_steps=4, logging_steps=2, save_strategy="no", max_grad_norm=0.5
        )
        trainer.add_callback(GradientNormCallback())
        trainer.train()
        path = into / "gradient_norms.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if rank == 0 else []
        found[name] = engines.kind(trainer), lines
    return found
