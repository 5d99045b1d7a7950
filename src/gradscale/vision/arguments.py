"""The keys of `task: image-classification` beside the fields of `TrainingArguments`. Standard library only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from gradscale.training.errors import ConfigError


def _key(group: str, text: str, **default: Any) -> Any:
    return dataclasses.field(metadata={"group": group, "help": text}, **default)


@dataclass(frozen=True, kw_only=True)
class StudyArguments:
    """What a study compares, on what. Every field is a key of the YAML file and an option of the command line.

    `models` and `methods` hold the mappings as they were given; `gradscale.vision.methods` says what they mean.
    """

    data: str = _key(
        "Data", "cifar10 (of the hub), digits (scikit-learn's, offline), or Parquet files: file, folder, glob"
    )
    validation_fraction: float = _key(
        "Data", "share of each class held out where the data have no validation or test split", default=0.2
    )
    digits_settings: dict[str, Any] | None = _key(
        "Data", "keys that replace those of the file where data is digits, a far smaller problem", default=None
    )
    models: dict[str, Any] = _key("Study", "networks and resets: {resnet20: soft, resnet32: [soft, hard]}")
    methods: list[dict[str, Any]] = _key(
        "Study", "what to compare: mappings of table, name, optim, optim_args, reset_args, learning_rate, weight_decay"
    )
    seeds: list[int] = _key(
        "Study", "seeds of the weights and of the order of the images [0 1 2]", default_factory=lambda: [0, 1, 2]
    )
    target_accuracy: float = _key("Study", "validation accuracy, in percent, whose first step is reported")
    overwrite_output_dir: bool = _key(
        "Study", "delete the earlier study in output_dir instead of refusing to start", default=False
    )

    def __post_init__(self) -> None:
        """Check what can be checked without files.

        Raises:
            ConfigError: a value is out of range.
        """
        if not 0 < self.validation_fraction < 1:
            value = self.validation_fraction
            raise ConfigError(f"validation_fraction={value} is not allowed: expected a number between 0 and 1")
        # At most 1 is a fraction written for a percentage: every network would reach it at once.
        if not 1 < self.target_accuracy <= 100:
            value = self.target_accuracy
            raise ConfigError(f"target_accuracy={value} is not allowed: expected a percentage above 1, at most 100")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={self.seeds} is not allowed: expected different integers of at least 0")
