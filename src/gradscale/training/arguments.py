"""The keys of `gradscale train` beside the fields of `TrainingArguments`. Standard library only: `--help` is fast."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from gradscale.training.errors import ConfigError


def _key(default: Any, group: str, text: str, *, choices: tuple[str, ...] | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "help": text, "choices": choices})


CORPORA = ("stdlib", "docstrings")


@dataclass(frozen=True)
class TrainArguments:
    """What to train, on what, beside what. Every field is a key of the YAML file and an option of the command line."""

    model_name_or_path: str | None = _key(None, "Model", "hub id or local folder of a model to fine-tune")
    model_config: dict[str, Any] | str | None = _key(
        None,
        "Model",
        "model to pre-train: {model_type: llama, ...}, a config.json, or a size such as llama-60m",
    )
    dtype: str = _key(
        "float32",
        "Model",
        "type of the weights of a model to fine-tune",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    lora: dict[str, Any] | None = _key(
        None, "Model", "train an adapter: fields of peft.LoraConfig, such as {r: 8, target_modules: all-linear}"
    )
    quantization: dict[str, Any] | None = _key(
        None, "Model", "load the model below the adapter in 4 or 8 bits: fields of transformers.BitsAndBytesConfig"
    )
    tokenizer_name_or_path: str | None = _key(
        None, "Model", "hub id or local folder of a tokenizer; default: the model's, or one trained on the spot"
    )
    vocab_size: int = _key(
        2048, "Model", "most tokens of the byte-level BPE tokenizer that is trained on the training data"
    )
    corpus: str | None = _key(
        None,
        "Data",
        "embedded text: stdlib (Python's library) or docstrings (of torch, transformers and numpy)",
        choices=CORPORA,
    )
    dataset_name: str | None = _key(None, "Data", "hub id or local folder of a data set")
    dataset_config_name: str | None = _key(None, "Data", "configuration of the data set")
    train_files: list[str] | None = _key(None, "Data", "local text, JSON Lines or Parquet files; globs are expanded")
    validation_files: list[str] | None = _key(None, "Data", "files held out from training")
    validation_fraction: float = _key(
        0.05, "Data", "share of the training documents held out where no validation data are named; 0: none"
    )
    text_column: str = _key("text", "Data", "column of the text in JSON Lines, Parquet and data sets")
    block_size: int = _key(512, "Data", "tokens per example; documents are packed, an end-of-text token after each")
    packing: bool = _key(
        True, "Data", "pack documents into full blocks; --no_packing: one example per document, cut to block_size"
    )
    streaming: bool = _key(
        False, "Data", "tokenize the training data while training, without ever holding them; needs max_steps"
    )
    max_train_tokens: int | None = _key(None, "Data", "read no more training tokens (and stream hub data sets)")
    max_eval_tokens: int | None = _key(None, "Data", "read no more validation tokens")
    compare_optim: list[str] | None = _key(
        None, "Run", "other --optim names to run after it on the same data, seed, initial weights and schedule"
    )
    overwrite_output_dir: bool = _key(False, "Run", "delete the earlier run in output_dir instead of refusing to start")
    log_gradient_norms: bool = _key(False, "Run", "write each layer's gradient norm at logging steps")
    plot: bool = _key(True, "Run", "draw loss, scales and gradient norms at the end (needs matplotlib)")

    def __post_init__(self) -> None:
        """Check what can be checked without files.

        Raises:
            ConfigError: a value is out of range, or keys are missing or exclude each other.
        """
        for name in ("vocab_size", "block_size", "max_train_tokens", "max_eval_tokens"):
            value = getattr(self, name)
            least = 257 if name == "vocab_size" else 2 if name == "block_size" else 1
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} is not allowed: expected an integer of at least {least}")
        if self.corpus is not None and self.corpus not in CORPORA:
            known = ", ".join(map(repr, CORPORA))
            raise ConfigError(f"corpus={self.corpus!r} is not allowed: expected one of {known}")
        if not 0 <= self.validation_fraction < 1:
            value = self.validation_fraction
            raise ConfigError(f"validation_fraction={value} is not allowed: expected a number in [0, 1)")
        _exactly_one(self, ("model_name_or_path", "model_config"), "a model")
        _exactly_one(self, DATA_SOURCES, "data")
        if self.streaming and self.max_train_tokens is not None:
            raise ConfigError("streaming reads as much as the run takes: max_train_tokens is not allowed with it")
        if self.streaming and not self.packing:
            raise ConfigError("packing=false is not allowed with streaming=true")
        needed = (
            ("dataset_config_name", "dataset_name"),
            ("validation_files", "train_files"),
            ("quantization", "lora"),
        )
        for name, needs in needed:
            if getattr(self, name) is not None and getattr(self, needs) is None:
                raise ConfigError(f"{name} is given without {needs}")


MODEL_SOURCES = ("model_name_or_path", "model_config")
DATA_SOURCES = ("corpus", "dataset_name", "train_files")
# What belongs to a source of data and goes when the command line names another source.
DATA_DETAILS = {"dataset_name": ("dataset_config_name",), "train_files": ("validation_files",), "corpus": ()}


def _exactly_one(arguments: TrainArguments, names: tuple[str, ...], what: str) -> None:
    given = [name for name in names if getattr(arguments, name)]
    if not given:
        raise ConfigError(f"{what} is missing: set one of {', '.join(names)}")
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other: set one of {', '.join(names)}")
