"""Compiled and eager steps: against each other, against float64, and where no compiler works."""

import copy
import warnings

import pytest
import torch
import torch._inductor.compile_fx as inductor

from gradscale.optim.kernels import choice, compiled, eager
from gradscale.optim.kernels.compiled import KernelUnavailableError
from gradscale.optim.sgg_adam import SGGAdam, SGGAdamW
from gradscale.scalers.sgg import assign_labels
from tests.optim.small_models import FEW, SHAPES, grads_of, make, run
from tests.reference.step_reference import ReferenceStep

# Values of order 1 after a few steps of 0.01: half a unit in the last place, and what the formulas lose before it.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}

CASES = [
    (SGGAdamW, {}),
    (SGGAdamW, {"labels": "live"}),
    (SGGAdamW, {"labels": "live", "momentum_sign": "absolute", "n_clusters": 2}),
    (SGGAdamW, {"grouping": "layer", "global_mda": "clusters"}),
    (SGGAdamW, {"n_clusters": 9}),
    (SGGAdamW, {"amsgrad": True, "maximize": True}),
    (SGGAdamW, {"nesterov": False}),
    (SGGAdam, {}),
]


@pytest.mark.parametrize(("cls", "options"), CASES, ids=str)
def test_compiled_and_eager_steps_agree(cls, options):
    shapes = FEW if options else SHAPES
    params, optimizer = make(cls, shapes=shapes, kernel="compiled", **options)
    twins, twin = make(cls, shapes=shapes, kernel="eager", **options)
    known = len(compiled._CODE)
    run(params, optimizer)
    run(twins, twin)
    assert len(compiled._CODE) >= known and any(key[0].rule is optimizer.base for key in compiled._CODE)
    for one, other in zip(params, twins, strict=True):
        torch.testing.assert_close(one, other, atol=2e-8, rtol=5e-7)
        for key, value in twin.state[other].items():
            if cls is SGGAdam:  # its weight decay carries the rounding of the parameters into the moments
                torch.testing.assert_close(optimizer.state[one][key], value, atol=1e-6, rtol=1e-5)
            elif "exp_avg_sq" in key:
                torch.testing.assert_close(optimizer.state[one][key], value, atol=0, rtol=1e-6)
            else:  # the momentum takes part in groupings, so it, labels and scales agree in every bit
                assert torch.equal(optimizer.state[one][key], value), key
    assert (optimizer.state[params[0]]["scales"] != 1).all()


REFERENCED = [
    *((SGGAdamW, dtype, kernel) for dtype in TOLERANCE for kernel in ("compiled", "eager")),
    *((SGGAdam, dtype, "eager") for dtype in TOLERANCE),
    (SGGAdam, torch.float32, "compiled"),
]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("cls", "dtype", "kernel"), REFERENCED)
def test_steps_are_those_of_the_float64_reference(cls, dtype, kernel, nesterov, monkeypatch):
    monkeypatch.setattr(eager, "ON_CPU", 1000)  # several pieces, the last one short
    params, optimizer = make(cls, dtype, FEW if kernel == "compiled" else SHAPES, kernel=kernel, nesterov=nesterov)
    for step in range(5):
        references = []
        for param, grad in zip(params, grads_of(params, step), strict=True):
            reference = ReferenceStep(param, weight_decay=0.1, coupled=cls is SGGAdam, nesterov=nesterov)
            state = optimizer.state[param]
            if state:  # from the optimizer's own numbers, so that rounding does not feed on itself
                reference.m, reference.v = (
                    state[key].to(torch.float64, copy=True) for key in ("exp_avg", "exp_avg_sq")
                )
                reference.t = step
            references.append(reference)
            param.grad = grad
        optimizer.step()
        for param, reference in zip(params, references, strict=True):
            state = optimizer.state[param]
            factor = state["scales"].double()[state["labels"].long()] if "labels" in state else 1.0
            reference.step(param.grad, 1e-2, factor)
            torch.testing.assert_close(param.double(), reference.param, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
            wide = TOLERANCE[state["exp_avg"].dtype]
            torch.testing.assert_close(state["exp_avg"].double(), reference.m, atol=wide, rtol=wide)
            torch.testing.assert_close(state["exp_avg_sq"].double(), reference.v, atol=wide, rtol=wide)
    assert (optimizer.state[params[0]]["scales"] != 1).all()


def test_nothing_is_compiled_again_for_another_rate_step_or_shape():
    params, optimizer = make(kernel="compiled")
    run(params, optimizer)
    known = set(compiled._CODE)
    for group in optimizer.param_groups:
        group.update(lr=3e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.3)
    run(params, optimizer, range(7, 11))
    others = [torch.nn.Parameter(torch.randn(shape)) for shape in [(3, 5), (1, 9), (200, 400), (2, 3, 4)]]
    other = SGGAdamW(others, kernel="compiled", recluster_interval=2)
    run(others, other)
    assert set(compiled._CODE) == known


def test_one_loop_reads_and_writes_every_element_once(monkeypatch):
    monkeypatch.setattr(compiled, "_CODE", {})
    from torch._inductor.utils import run_and_get_code

    params, optimizer = make(kernel="compiled", n_clusters=4)
    run(params[:1], optimizer, range(1))  # before, so that the next step is no first one

    def first_compiled_step():
        monkeypatch.setattr(compiled, "_CODE", {})
        optimizer._table.members(optimizer.param_groups)[0].recipes.clear()
        run(params[:1], optimizer, range(1))

    with torch._inductor.config.patch(force_disable_caches=True):
        _, codes = run_and_get_code(first_compiled_step)
    (code,) = codes
    assert code.count("async_compile.cpp_pybinding") == 1
    assert code.count("for(int64_t x0") == 1
    body = code.split("for(int64_t x0")[1].split("C10_UNLIKELY")[0]
    reads = [line for line in body.splitlines() if "::loadu(" in line]
    writes = [line for line in body.splitlines() if ".store(" in line]
    assert len(reads) == 5 and sum("uint8_t" in line for line in reads) == 1  # p, g, m, v and the label
    assert len(writes) == 3  # p, m, v


def without_compiler(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler found\nlook for it")

    monkeypatch.setattr(compiled, "_CODE", {})
    monkeypatch.setattr(inductor, "compile_fx", broken)


def test_without_a_compiler_auto_warns_once_and_steps_eagerly(monkeypatch):
    without_compiler(monkeypatch)
    monkeypatch.setattr(choice, "COMPILE_FROM", 1)
    params, optimizer = make(kernel="auto")
    with pytest.warns(RuntimeWarning, match="SGGAdamW steps without compiled code.*no C\\+\\+ compiler") as caught:
        run(params, optimizer)
    assert len(caught) == 1 and caught[0].filename == run.__code__.co_filename  # where step() is called
    twins, twin = make(kernel="eager")
    run(twins, twin)
    assert all(torch.equal(one, other) for one, other in zip(params, twins, strict=True))


@pytest.mark.parametrize("step", ["first", "grouping"])
def test_without_a_compiler_compiled_is_refused_before_anything_changes(monkeypatch, step):
    params, optimizer = make(kernel="compiled")
    if step == "grouping":
        run(params, optimizer, range(2))
    without_compiler(monkeypatch)
    before = copy.deepcopy((params, optimizer.state_dict()))
    with pytest.raises(KernelUnavailableError, match="kernel='compiled' cannot be had here.*kernel='eager' needs no"):
        run(params, optimizer, range(2, 3))
    assert all(torch.equal(one, other) for one, other in zip(params, before[0], strict=True))
    after, groups = optimizer.state_dict(), before[1]["param_groups"]
    assert after["param_groups"] == groups
    for key, state in before[1]["state"].items():
        assert all(torch.equal(after["state"][key][name], value) for name, value in state.items())


def test_code_that_computes_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(compiled, "_CODE", {})
    compile_fx_inner = inductor.compile_fx_inner

    def forgets_the_last_elements(*arguments, **options):
        output = compile_fx_inner(*arguments, **options)
        call = output.current_callable
        output.current_callable = lambda given: call(
            [x - x // 16 if isinstance(x, int) and x > 16 else x for x in given]
        )
        return output

    monkeypatch.setattr(inductor, "compile_fx_inner", forgets_the_last_elements)
    with pytest.raises(KernelUnavailableError, match="computes another param, exp_avg, exp_avg_sq than torch's"):
        run(*make(kernel="compiled"))


def test_compiling_leaves_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(compiled, "_CODE", {})
    params, optimizer = make(kernel="compiled")
    for param in params:
        param.grad = torch.ones_like(param)
    before = torch.get_rng_state()
    optimizer.step()
    assert compiled._CODE and torch.equal(torch.get_rng_state(), before)


def test_auto_compiles_from_a_size_on(monkeypatch):
    monkeypatch.setattr(compiled, "_CODE", {})
    numel = sum(torch.Size(shape).numel() for shape in SHAPES)
    monkeypatch.setattr(choice, "COMPILE_FROM", numel + 1)
    run(*make(kernel="auto"), range(1))
    assert not compiled._CODE
    monkeypatch.setattr(choice, "COMPILE_FROM", numel)
    run(*make(kernel="auto"), range(1))
    assert compiled._CODE


def test_a_long_compilation_is_announced_once(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "_CODE", {})
    monkeypatch.setattr(compiled, "_NOTICED", 0.0)
    compiled._ANNOUNCED.clear()
    run(*make(kernel="compiled", shapes=FEW[1:2]), range(1))
    assert [record.message for record in caplog.records if "compiling" in record.message] == [
        "compiling the optimizer step. Later runs take it from torch's cache; kernel='eager' does without."
    ]


@pytest.mark.parametrize("kernel", ["compiled", "eager"])
def test_a_grouped_layer_without_a_gradient_gets_its_labels_as_well(kernel):
    params, optimizer = make(kernel=kernel, shapes=[(60, 70), (40, 30)], recluster_interval=2)
    run(params, optimizer, range(1))
    for param, grad in zip(params, grads_of(params, 1), strict=True):
        param.grad = grad if param is params[0] else None
    optimizer.step()
    for param in params:
        state = optimizer.state[param]
        assert torch.equal(state["labels"], assign_labels(state["exp_avg"], state["boundaries"]))
        assert state["labels"].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("kernel", ["compiled", "eager"])
def test_layers_that_are_not_due_keep_their_labels(kernel):
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(60, 70)) for _ in range(2)]
    groups = [{"params": params[:1], "recluster_interval": 2}, {"params": params[1:], "recluster_interval": 3}]
    optimizer = SGGAdamW(groups, lr=1e-2, kernel=kernel)
    run(params, optimizer, range(3))
    labels = [optimizer.state[param]["labels"].clone() for param in params]
    run(params, optimizer, range(3, 4))  # the first layer's turn
    assert not torch.equal(optimizer.state[params[0]]["labels"], labels[0])
    assert torch.equal(optimizer.state[params[1]]["labels"], labels[1]) and labels[1].any()


@pytest.mark.parametrize("kernel", ["compiled", "eager"])
def test_layouts_in_memory_do_not_matter(kernel):
    torch.manual_seed(0)
    plain = torch.randn(8, 6, 3, 3)
    layouts = [
        plain.clone(),
        plain.to(memory_format=torch.channels_last),
        torch.empty(6, 8, 3, 3).transpose(0, 1).copy_(plain),
        torch.empty(8, 6, 3, 6)[..., ::2].copy_(plain),
    ]
    params = [torch.nn.Parameter(tensor) for tensor in layouts]
    optimizers = [SGGAdamW([param], kernel=kernel, recluster_interval=2) for param in params]
    for step in range(4):
        torch.manual_seed(step)
        grad = torch.randn(8, 6, 3, 3)
        for index, (param, optimizer) in enumerate(zip(params, optimizers, strict=True)):
            param.grad = grad.to(memory_format=torch.channels_last) if index % 2 == 0 else grad.clone()
            optimizer.step()
    for param, tensor in zip(params[1:], layouts[1:], strict=True):
        torch.testing.assert_close(param, params[0], atol=1e-8, rtol=5e-7)
        assert param.data_ptr() == tensor.data_ptr()


def test_the_kernel_is_not_part_of_the_state_but_survives_copies():
    params, optimizer = make(kernel="eager")
    run(params, optimizer, range(4))
    assert copy.deepcopy(optimizer).kernel == "eager"
    twins, twin = make(kernel="compiled")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert twin.kernel == "compiled"
    with torch.no_grad():
        for one, other in zip(twins, params, strict=True):
            one.copy_(other)
    run(params, optimizer, range(4, 8))
    run(twins, twin, range(4, 8))
    for one, other in zip(twins, params, strict=True):
        torch.testing.assert_close(one, other, atol=2e-8, rtol=5e-7)
