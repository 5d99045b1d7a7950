"""Bad input: an error that names the option, the value and what is allowed, and nothing half-changed."""

import copy
import math
from functools import partial

import pytest
import torch

from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.sgg_adam import SGGAdamW
from gradscale.options import OptionError
from tests.optim.kinds import DGSS, EVERY, SGGS

BAD_OPTIONS_OF_SGG = [
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
    *[("grouping", value) for value in ("spectral", None)],
    *[("total_steps", value) for value in (0, -1, 1.5, "auto", True)],
    ("scaled", "yes"),
]
BAD_OPTIONS_OF_DGS = [
    *[("lr", value) for value in (-1e-3, math.nan, None)],
    *[("weight_decay", value) for value in (-0.1, math.inf, "0.1")],
    *[("eps", value) for value in (-1e-8, math.nan, math.inf, "1e-8", None)],
    *[("form", value) for value in ("Full", "equations", "", None, 1)],
    *[("beta", value) for value in (0.0, -1.0, math.nan, math.inf, "1", None, True)],
    *[("sigma", value) for value in (0.0, -1e-3, math.nan, math.inf, None)],
    *[("gamma", value) for value in (-0.1, math.nan, math.inf, "1", True)],
    *[("importance_decay", value) for value in (1.0, -0.1, math.nan, "0.9", None)],
    *[("reset", value) for value in ("Soft", "none", None, True)],
    *[("reset_decay", value) for value in (0.0, 1.0, -0.1, math.nan, None)],
    *[("reset_every", value) for value in (0, -3, 2.0, "3", True)],
    *[("reset_spike", value) for value in (1.0, 0.5, -2, math.inf, math.nan, "3")],
    *[("factor_bounds", value) for value in ((0.0, 10.0), (10, 0.1), (0.1, math.inf), (0.1,), 0.1, "0.1,10", None)],
    *[("maximize", value) for value in (0, "no", None)],
    *[("kahan_sum", value) for value in (1, None)],
    *[("total_steps", value) for value in (0, 1.5)],
    ("scaled", "yes"),
]
OF_MOMENTUM = [("momentum", value) for value in (-0.1, 1.0, math.nan, "0.9", None)]
BAD_OPTIONS = [
    *((partial(SGGAdamW, recluster_interval=3), *bad) for bad in BAD_OPTIONS_OF_SGG),
    *((DGSSGD, *bad) for bad in BAD_OPTIONS_OF_DGS + OF_MOMENTUM),
    *((DGSSGD, "dampening", value) for value in (-0.1, 1.5, None)),
    *((DGSSGD, "nesterov", value) for value in (1, None)),
    *((DGSLARS, *bad) for bad in OF_MOMENTUM),
    *((DGSLARS, "trust_coefficient", value) for value in (0.0, -1e-3, math.nan, None)),
    *((DGSAdamW, "importance_eps", value) for value in (-1e-8, math.nan, math.inf, "1e-8")),
    *((DGSAdamW, "betas", value) for value in ((1.0, 0.9), (0.9,), None)),
    *((DGSAdam, "moments_dtype", value) for value in ("fp16", None)),
]


def param():
    return torch.nn.Parameter(torch.randn(4, 4))


@pytest.mark.parametrize(
    ("make", "name", "value"), BAD_OPTIONS, ids=lambda item: getattr(item, "__name__", None) or repr(item)
)
def test_option_is_refused(make, name, value):
    if name != "scaled":
        with pytest.raises(OptionError, match=rf"{name}=.*is not allowed: expected"):
            make([param()], **{name: value})
    with pytest.raises(OptionError, match=rf"{name}=.*is not allowed: expected"):
        make([{"params": [param()], name: value}])
    optimizer = make([param()])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(OptionError, match=rf"{name}=.*is not allowed: expected"):
        optimizer.add_param_group({"params": [param()], name: value})
    assert optimizer.state_dict() == before


CONTRADICTIONS = [
    (DGSSGD, {"nesterov": True}, r"nesterov=True needs momentum above 0 and dampening=0, got momentum=0.0"),
    (DGSSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, r"nesterov=True needs .* dampening=0.1"),
    *((cls, {"reset_every": 5}, r"reset_every=5 needs .*importance_decay above 0") for cls in DGSS),
    *((cls, {"reset_spike": 3.0}, r"reset_spike=3.0 needs .*importance_decay above 0") for cls in DGSS),
    *((cls, {"factor_bounds": (0.1, 0.9)}, r"factor_bounds=\(0.1, 0.9\) .*expected 1 between the two") for cls in DGSS),
    (DGSLARS, {"factor_bounds": (1.5, 3)}, r"factor_bounds=\(1.5, 3.0\) .*expected 1 between the two"),
    (DGSSGD, {"eps": 0.0}, r"^eps=0 is not allowed with form='full'"),
    (DGSLARS, {"eps": 0, "form": "importance"}, r"^eps=0 is not allowed with form='importance'"),
    (DGSAdamW, {"eps": 0.0}, r"^eps=0 is not allowed with form='full'.*importance_eps above 0 allows it"),
    (DGSAdam, {"importance_eps": 0.0}, r"^importance_eps=0 is not allowed with form='full'"),
]


@pytest.mark.parametrize(("cls", "options", "message"), CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(cls, options, message):
    with pytest.raises(OptionError, match=message):
        cls([param()], **options)
    with pytest.raises(OptionError, match=message):
        cls([{"params": [param()], **options}])
    optimizer = cls([param()])
    with pytest.raises(OptionError, match=message):
        optimizer.add_param_group({"params": [param()], **options})
    assert len(optimizer.param_groups) == 1


def test_what_looks_like_a_contradiction_and_is_none():
    DGSSGD([param()], eps=0.0, form="normalized", factor_bounds=(1, 1))
    DGSLARS([param()], eps=0.0, form="equation")
    DGSAdamW([param()], eps=0.0, importance_eps=1e-8)
    DGSAdam([param()], importance_eps=0.0, form="normalized")
    DGSAdam([param()], importance_decay=0.5, reset_every=1, reset_spike=1.5)


def test_the_message_names_option_value_and_what_is_allowed():
    with pytest.raises(OptionError) as error:
        SGGAdamW([param()], n_clusters=0)
    assert str(error.value) == "n_clusters=0 is not allowed: expected an integer from 1 to 64"


def test_fraction_without_a_run_length():
    with pytest.raises(OptionError, match=r"recluster_interval=0.1 is a fraction of the run: give total_steps="):
        SGGAdamW([param()], recluster_interval=0.1)


@pytest.mark.parametrize("switch", ["foreach", "fused", "capturable", "differentiable"])
@pytest.mark.parametrize("name", EVERY)
def test_torchs_switches_may_be_off_only(name, switch):
    EVERY[name]([param()], **{switch: False})
    EVERY[name]([param()], **{switch: None})
    with pytest.raises(OptionError, match=f"{switch}=True is not allowed: expected None or False"):
        EVERY[name]([param()], **{switch: True})


def test_messages_contain_torchs_own_words():
    for name, value, words in [
        ("lr", -0.5, "Invalid learning rate: -0.5"),
        ("betas", (1.0, 0.0), "Invalid beta parameter at index 0: 1.0"),
        ("betas", (0.5, 2.0), "Invalid beta parameter at index 1: 2.0"),
        ("eps", -1.0, "Invalid epsilon value: -1.0"),
        ("weight_decay", -1, "Invalid weight_decay value: -1"),
    ]:
        for cls in (SGGAdamW, DGSAdamW):
            with pytest.raises(ValueError, match=words):
                cls([param()], **{name: value})
    with pytest.raises(ValueError, match="Invalid momentum value: -1"):
        DGSSGD([param()], momentum=-1)


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


def test_numpy_scalars_become_python_numbers_for_dgs_too():
    import numpy as np

    options = {
        "sigma": np.float32(0.5),
        "gamma": np.float64(0.25),
        "importance_decay": np.float32(0.5),
        "reset_every": np.int64(3),
        "reset_spike": np.float32(3.0),
        "factor_bounds": (np.float32(0.5), np.int32(2)),
        "nesterov": np.bool_(True),
        "momentum": np.float64(0.9),
    }
    group = DGSSGD([param()], **options).param_groups[0]
    for name in options:
        value = group[name]
        assert all(type(item) in (int, float, bool) for item in (value if isinstance(value, tuple) else (value,))), name


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_parameters_of_other_dtypes_are_refused(name, dtype):
    tensor = torch.ones(3, 3).to(dtype)
    with pytest.raises(ValueError, match=f"{name.partition(',')[0]} does not support parameters in"):
        EVERY[name]([param(), tensor])


@pytest.mark.parametrize("name", EVERY)
def test_module_has_to_be_one(name):
    with pytest.raises(OptionError, match="module='model' is not allowed"):
        EVERY[name]([param()], module="model")


@pytest.mark.parametrize("cls", [*SGGS, *DGSS])
def test_unknown_keyword_is_a_type_error_as_in_torch(cls):
    with pytest.raises(TypeError, match="n_cluster"):
        cls([param()], n_cluster=3)


@pytest.mark.parametrize("cls", [*SGGS, *DGSS])
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


@pytest.mark.parametrize("name", EVERY)
def test_complex_parameters_are_refused(name):
    with pytest.raises(ValueError, match="does not support complex parameters.*view_as_real"):
        EVERY[name]([torch.nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))])
    optimizer = EVERY[name]([param()])
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": torch.nn.Parameter(torch.randn(3, dtype=torch.complex128))})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", EVERY)
def test_sparse_gradients_are_refused_before_anything_changes(name):
    dense, embedding = param(), torch.nn.Embedding(5, 3, sparse=True)
    optimizer = EVERY[name]([dense, embedding.weight])
    dense.grad = torch.randn(4, 4)
    embedding(torch.tensor([1, 2])).sum().backward()
    before = dense.detach().clone()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, before) and not optimizer.state


@pytest.mark.parametrize("name", EVERY)
def test_target_modules_need_a_model(name):
    with pytest.raises(OptionError, match="needs module="):
        EVERY[name]([param()], target_modules="all-linear")
