"""Bad input: an error that names the option, the value and what is allowed, and nothing half-changed."""

import math

import pytest
import torch

from gradscale.optim.sgg_adam import SGGAdam, SGGAdamW
from gradscale.options import OptionError

BAD_OPTIONS = [
    *[("lr", value) for value in (-1e-3, math.nan, math.inf, "0.1", None, True)],
    *[("betas", value) for value in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan), (0.9,), 0.9, "x", None)],
    *[("betas", value) for value in ((0.9, "0.99"), (0.9, 0.99, 0.999))],
    *[("eps", value) for value in (-1e-8, math.nan, math.inf, "1e-8", None)],
    *[("weight_decay", value) for value in (-0.1, math.nan, math.inf, "0.1", None)],
    *[("amsgrad", value) for value in (1, "true", None)],
    *[("maximize", value) for value in (0, "no")],
    *[("n_clusters", value) for value in (0, -1, 65, 2.0, "3", None, True, math.nan)],
    *[("recluster_interval", value) for value in (0, -5, 0.0, 1.0, 1.5, -0.1, math.nan, math.inf, "500", None, True)],
    *[("scale_decay", value) for value in (1.0, -0.1, math.nan, "0.9", None)],
    *[("scale_bounds", value) for value in ((0.0, 10.0), (-1, 1), (10, 0.1), (0.1, math.inf), (0.1,), 0.1, "0.1,10")],
    *[("momentum_sign", value) for value in ("Signed", "abs", None, 1)],
    *[("labels", value) for value in ("packed", "", None)],
    *[("global_mda", value) for value in ("cluster", None)],
    *[("grouping", value) for value in ("gmm", None)],
    *[("total_steps", value) for value in (0, -1, 1.5, "auto", True)],
    ("scaled", "yes"),
]


def param():
    return torch.nn.Parameter(torch.randn(4, 4))


@pytest.mark.parametrize(("name", "value"), BAD_OPTIONS, ids=lambda item: repr(item))
def test_option_is_refused(name, value):
    if name != "scaled":
        with pytest.raises(OptionError, match=rf"{name}=.*is not allowed: expected"):
            SGGAdamW([param()], **{"recluster_interval": 3, name: value})
    with pytest.raises(OptionError, match=rf"{name}=.*is not allowed: expected"):
        SGGAdamW([{"params": [param()], name: value}], recluster_interval=3)
    optimizer = SGGAdamW([param()], recluster_interval=3)
    with pytest.raises(OptionError, match=rf"{name}=.*is not allowed: expected"):
        optimizer.add_param_group({"params": [param()], name: value})
    assert len(optimizer.param_groups) == 1


def test_the_message_names_option_value_and_what_is_allowed():
    with pytest.raises(OptionError) as error:
        SGGAdamW([param()], n_clusters=0)
    assert str(error.value) == "n_clusters=0 is not allowed: expected an integer from 1 to 64"


def test_fraction_without_a_run_length():
    with pytest.raises(OptionError, match=r"recluster_interval=0.1 is a fraction of the run: give total_steps="):
        SGGAdamW([param()], recluster_interval=0.1)


@pytest.mark.parametrize("switch", ["foreach", "fused", "capturable", "differentiable"])
def test_torchs_switches_may_be_off_only(switch):
    SGGAdamW([param()], **{switch: False})
    SGGAdam([param()], **{switch: None})
    with pytest.raises(OptionError, match=f"{switch}=True is not allowed: expected None or False"):
        SGGAdamW([param()], **{switch: True})


def test_messages_contain_torchs_own_words():
    for name, value, words in [
        ("lr", -0.5, "Invalid learning rate: -0.5"),
        ("betas", (1.0, 0.0), "Invalid beta parameter at index 0: 1.0"),
        ("betas", (0.5, 2.0), "Invalid beta parameter at index 1: 2.0"),
        ("eps", -1.0, "Invalid epsilon value: -1.0"),
        ("weight_decay", -1, "Invalid weight_decay value: -1"),
    ]:
        with pytest.raises(ValueError, match=words):
            SGGAdamW([param()], **{name: value})


def test_numpy_scalars_are_taken_and_kept_as_python_numbers():
    import numpy as np

    options = {
        "lr": np.float32(1e-3),
        "betas": np.array([0.9, 0.95]).tolist(),
        "eps": np.float64(1e-8),
        "weight_decay": np.float32(0.1),
        "n_clusters": np.int64(2),
        "recluster_interval": np.float64(0.5),
        "total_steps": np.int32(10),
        "scale_decay": np.float32(0.5),
        "scale_bounds": (np.float32(0.5), np.float64(2.0)),
        "amsgrad": np.bool_(True),
    }
    optimizer = SGGAdamW([param()], **options)
    for name in options:
        value = optimizer.param_groups[0][name]
        assert all(type(item) in (int, float, bool) for item in (value if isinstance(value, tuple) else (value,))), name
    for name, value in [
        ("n_clusters", np.float64(3.0)),
        ("recluster_interval", np.bool_(True)),
        ("lr", np.float32("nan")),
    ]:
        with pytest.raises(OptionError):
            SGGAdamW([param()], **{name: value})


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_parameters_of_other_dtypes_are_refused(dtype):
    tensor = torch.ones(3, 3).to(dtype)
    with pytest.raises(ValueError, match="does not support parameters in"):
        SGGAdamW([param(), tensor])


def test_module_has_to_be_one():
    with pytest.raises(OptionError, match="module='model' is not allowed"):
        SGGAdamW([param()], module="model")


def test_unknown_keyword_is_a_type_error_as_in_torch():
    for cls in (SGGAdamW, SGGAdam):
        with pytest.raises(TypeError, match="n_cluster"):
            cls([param()], n_cluster=3)


@pytest.mark.parametrize("cls", [SGGAdamW, SGGAdam])
def test_parameters_that_torch_refuses(cls):
    with pytest.raises(TypeError):
        cls(param())
    with pytest.raises(ValueError, match="empty"):
        cls([])
    with pytest.raises(TypeError):
        cls([1.0])
    with pytest.raises(TypeError, match="ordered|sets"):
        cls([{"params": {param()}}])
    with pytest.raises(ValueError, match="non-leaf"):
        cls([param() * 2])
    shared = param()
    with pytest.raises(ValueError, match="more than one parameter group"):
        cls([{"params": [shared]}, {"params": [shared]}])
    with pytest.raises(TypeError, match="must be a dict"):
        cls([param()]).add_param_group([param()])
    with pytest.raises(ValueError, match="1-element"):
        cls([param()], lr=torch.tensor([1e-3, 1e-4]))
    with pytest.raises(OptionError, match="lr="):
        cls([param()], lr=torch.tensor(-1.0))


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match="does not support complex parameters.*view_as_real"):
        SGGAdamW([torch.nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))])
    optimizer = SGGAdamW([param()])
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": torch.nn.Parameter(torch.randn(3, dtype=torch.complex128))})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_before_anything_changes():
    dense, embedding = param(), torch.nn.Embedding(5, 3, sparse=True)
    optimizer = SGGAdamW([dense, embedding.weight], recluster_interval=1)
    dense.grad = torch.randn(4, 4)
    embedding(torch.tensor([1, 2])).sum().backward()
    before = dense.detach().clone()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, before) and not optimizer.state


def test_target_modules_need_a_model():
    with pytest.raises(OptionError, match="needs module="):
        SGGAdamW([param()], target_modules="all-linear")
