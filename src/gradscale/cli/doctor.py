"""`gradscale doctor`: what a run would be, before it starts."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any

from gradscale.training.errors import ConfigError

_OK, _NOT_SUPPORTED, _USAGE_ERROR = 0, 1, 2
_DTYPES = ("auto", "float32", "fp32", "bfloat16", "bf16", "float16", "fp16")
_DESCRIPTION = """\
Print versions, the engine that a configuration asks for, how each parameter is sharded, which layers are scaled, the
memory that the optimizer takes, and what is not supported. Needs no GPU, no weights and, for a local configuration, no
network."""
_EPILOG = """\
exit status: 0 the run would start, 1 something is not supported, 2 an option or a file is wrong

  gradscale doctor
  gradscale doctor --model path/to/config.json --accelerate_config accelerate_configs/fsdp2.yaml --num_processes 8
  gradscale doctor --model path/to/model --deepspeed ds.json --num_processes 8 --mixed_precision bf16 --lora_r 16"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis and return the exit status: 0 it would run, 1 not supported, 2 usage."""
    arguments = _parser().parse_args(sys.argv[2:] if argv is None else argv)
    as_json, every = arguments.json, arguments.all
    values = {name: value for name, value in vars(arguments).items() if name not in ("json", "all")}
    targets = values["optim_target_modules"]
    # One value may be "all-linear", a comma list or a regular expression, which only text can be.
    values["optim_target_modules"] = targets[0] if targets and len(targets) == 1 else targets
    try:
        # Libraries log to standard output too, which is the report's.
        with contextlib.redirect_stdout(sys.stderr):
            report = _diagnose(values)
    except ConfigError as error:
        print(f"gradscale doctor: {error}", file=sys.stderr)
        return _USAGE_ERROR
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        from gradscale.doctor.render import render

        print(render(report, every_parameter=every))
    return _OK if report["would_run"] else _NOT_SUPPORTED


def _diagnose(values: dict[str, Any]) -> dict[str, Any]:
    needed = {"model": "transformers", "fsdp_config": "transformers", "accelerate_config": "accelerate"}
    for option, library in needed.items():
        if values[option] is not None and importlib.util.find_spec(library) is None:
            raise ConfigError(f"--{option} needs {library}: pip install 'gradscale[train]'")
    if values["model"] is None and (values["lora_r"] or values["peft_config"]):
        raise ConfigError("adapters need --model, the model that they adapt")
    _silence("transformers.utils.logging")
    _silence("huggingface_hub.utils.logging")
    # Here, not above: --help is answered without loading torch.
    from gradscale.doctor.diagnosis import Question, diagnose

    return diagnose(Question(**values))


def _silence(module: str) -> None:
    """Leave it to the error that follows to say what is wrong."""
    if importlib.util.find_spec(module.partition(".")[0]) is not None:
        importlib.import_module(module).set_verbosity_error()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradscale doctor",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="NAME", help="config.json, folder of a model, or its name on the hub")
    model.add_argument("--dtype", choices=_DTYPES, default="auto", help="of the weights [as the configuration says]")
    adapters = model.add_mutually_exclusive_group()
    adapters.add_argument("--lora_r", type=_positive, metavar="R", help="train LoRA adapters of this rank only")
    adapters.add_argument("--peft_config", metavar="FILE", help="train the adapters of an adapter_config.json only")
    model.add_argument("--lora_target_modules", nargs="+", metavar="NAME", help="of --lora_r [as PEFT knows the model]")
    engine = parser.add_argument_group("engine (without a file: DDP, or one process)")
    file = engine.add_mutually_exclusive_group()
    file.add_argument("--accelerate_config", metavar="FILE", help="of `accelerate launch --config_file`")
    file.add_argument("--fsdp_config", metavar="FILE", help="of the Trainer's --fsdp_config")
    file.add_argument("--deepspeed", metavar="FILE", help="of the Trainer's --deepspeed")
    engine.add_argument("--num_processes", type=_positive, metavar="N", help="ranks of all machines [the file's]")
    engine.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16", "fp8"), help="as the Trainer's --bf16, --fp16 [the file's]"
    )
    optimizer = parser.add_argument_group("optimizer (as the Trainer takes them)")
    optimizer.add_argument("--optim", default="sgg_adamw", metavar="NAME", help="[sgg_adamw]")
    optimizer.add_argument("--optim_args", metavar="TEXT", help="for example n_clusters=3,recluster_interval=500")
    optimizer.add_argument("--optim_target_modules", nargs="+", metavar="NAME", help="scale these modules' layers only")
    optimizer.add_argument("--max_steps", type=_positive, default=-1, metavar="N", help="optimizer steps of the run")
    output = parser.add_argument_group("output")
    output.add_argument("--all", action="store_true", help="list every parameter, not every kind of layer")
    output.add_argument("--json", action="store_true", help="print all of this as JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)
