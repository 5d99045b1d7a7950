"""DeepSpeed configurations under which one of our optimizers would silently not be used must be refused."""

import types

import pytest
import torch

from gradscale import OptionError, SGGAdamW
from gradscale.integrations.accelerate_patch import patch_accelerator
from gradscale.integrations.deepspeed_config import unsupported_settings
from gradscale.integrations.training_args_patch import check_deepspeed

OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
KEPT = {**OFFLOAD, "zero_force_ds_cpu_optimizer": False}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"zero_optimization": {"offload_optimizer": {"device": "none"}, "offload_param": {"device": "cpu"}}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": None}},
        {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}, "optimizer": None},
        KEPT,
    ],
)
def test_what_works_passes(config):
    assert unsupported_settings(config) == []


@pytest.mark.parametrize(
    "config, word",
    [
        (OFFLOAD, '"zero_force_ds_cpu_optimizer": false'),
        ({**OFFLOAD, "zero_force_ds_cpu_optimizer": True}, "DeepSpeedCPUAdam would take"),
        ({"optimizer": {"type": "AdamW"}}, "remove that section"),
        ({**KEPT, "zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, '"nvme" is not supported'),
        ({**KEPT, "zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.3}}}, '"ratio": 0.3'),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, '"offload_param"'),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "zenflow"),
        ({"torch_autocast": {"enabled": True, "dtype": "torch.float16"}}, "torch_autocast"),
        ({"torch_autocast": {"enabled": True, "dtype": "half"}}, "torch_autocast"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, '"zero_force_ds_cpu_optimizer": false'),
        ({**KEPT, "zero_optimization": {"offload_optimizer": {"super_offload": True}}}, "super_offload"),
        ({"tensor_parallel": {"autotp_size": 2}}, "autotp_size"),
    ],
)
def test_what_would_not_be_right_is_named(config, word):
    (sentence,) = unsupported_settings(config)
    assert word in sentence


def arguments(optim, config):
    plugin = types.SimpleNamespace(hf_ds_config=types.SimpleNamespace(config=config))
    return types.SimpleNamespace(optim=optim, deepspeed_plugin=plugin)


def test_training_arguments_refuse_it_for_our_optimizers_alone():
    with pytest.raises(OptionError, match="--optim sgg_adamw cannot run .*zero_force_ds_cpu_optimizer"):
        check_deepspeed(arguments("sgg_adamw", OFFLOAD))
    check_deepspeed(arguments("adamw_torch", OFFLOAD))
    check_deepspeed(types.SimpleNamespace(optim="sgg_adamw", deepspeed_plugin=None))


def test_accelerate_may_not_replace_our_optimizers():
    module = types.ModuleType("accelerator")
    module.map_pytorch_optim_to_deepspeed = lambda optimizer: "DeepSpeedCPUAdam"
    patch_accelerator(module)
    patch_accelerator(module)
    params = [torch.nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(ValueError, match='SGGAdamW by DeepSpeedCPUAdam: set "zero_force_ds_cpu_optimizer": false'):
        module.map_pytorch_optim_to_deepspeed(SGGAdamW(params))
    assert module.map_pytorch_optim_to_deepspeed(torch.optim.AdamW(params)) == "DeepSpeedCPUAdam"


def test_without_deepspeed_there_is_nothing_to_wrap():
    module = types.ModuleType("accelerator")
    patch_accelerator(module)
    assert not hasattr(module, "map_pytorch_optim_to_deepspeed")


def test_the_installed_accelerate_is_wrapped():
    from accelerate import accelerator

    assert accelerator.map_pytorch_optim_to_deepspeed._gradscale
    assert accelerator.load_fsdp_optimizer._gradscale
