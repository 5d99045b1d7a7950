"""ALSDGC in the Trainer, in one process: thresholds, skipped steps, fp16, checkpoints, logs.

Guards against a threshold that comes too late, a skipped step that moves the schedule or the optimizer, NaN weights
that are logged as a loss of 0, statistics that a resume forgets, and patches that outlive the training.
"""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from gradscale import ALSDGC, ALSDGCCallback, GradScaler
from gradscale.options import OptionError
from tests.integrations.alsdgc_runs import Recorder, logged, make, same, weights
from tests.integrations.test_scripts import OLD_FILES


@pytest.fixture(autouse=True)
def _old_files(monkeypatch):
    for name, value in OLD_FILES.items():
        monkeypatch.setenv(name, value)


def entries(value):
    """All tensors and numbers of nested state."""
    if isinstance(value, dict):
        return [one for key in value for one in entries(value[key])]
    if isinstance(value, list | tuple):
        return [one for item in value for one in entries(item)]
    return [value]


def equal(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(entries(one), entries(other), strict=True)
    )


def test_a_threshold_is_that_of_the_same_step(tmp_path):
    plain = "grouping=none"  # an element at the edge of two clusters would make more of the last digit
    fixed = make(tmp_path, max_grad_norm=0.25, optim_args=plain)
    fixed.train()
    ours = make(tmp_path, alsdgc="robust,warmup_threshold=0.25", optim_args=plain)
    ours.train()
    assert logged(ours, "grad_norm") == pytest.approx(logged(fixed, "grad_norm"), rel=1e-4)
    for mine, theirs in zip(weights(ours).values(), weights(fixed).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert logged(ours, "alsdgc/threshold") == [0.25] * 8
    assert logged(ours, "alsdgc/clipped_norm") == pytest.approx([0.25] * 8, rel=1e-4)
    assert logged(ours, "alsdgc/norm") == pytest.approx(logged(ours, "grad_norm"))


def test_a_spike_is_clipped_in_the_step_in_which_it_comes(tmp_path):
    trainer = make(
        tmp_path,
        alsdgc={"mode": "robust", "warmup_steps": 4, "window": 8, "reseed_span": 8, "reseed_after": 8, "max_skips": 0},
        gradients={7: 1000.0},
        learning_rate=1e-4,
        max_steps=9,
    )
    trainer.train()
    norms, kept = logged(trainer, "alsdgc/norm"), logged(trainer, "alsdgc/clipped_norm")
    assert norms[7] > 100 * norms[6] and kept[7] < 2 * norms[6]
    assert logged(trainer, "grad_norm")[7] == pytest.approx(norms[7])


@pytest.mark.parametrize("bad", [{"factors": {3: math.nan}}, {"gradients": {3: math.inf}}])
def test_a_bad_step_leaves_weights_optimizer_and_schedule_as_they_are(tmp_path, bad):
    trainer = make(tmp_path, alsdgc="robust", **bad)
    recorder = Recorder(trainer)
    trainer.train()
    moved = [not equal(*pair) for pair in zip(recorder.before, recorder.after, strict=True)]
    assert moved == [True] * 3 + [False] + [True] * 4
    assert logged(trainer, "alsdgc/skipped") == [0] * 3 + [1] * 5
    reason = "alsdgc/skipped_non_finite_loss" if "factors" in bad else "alsdgc/skipped_non_finite_norm"
    assert logged(trainer, reason) == [1] * 5
    assert logged(trainer, "alsdgc/clipped_norm")[3] == 0
    assert trainer.lr_scheduler.state_dict()["last_epoch"] == 7
    assert all(param.isfinite().all() for param in trainer.model.parameters())


def test_gradient_accumulation_is_one_observation_per_optimizer_step(tmp_path):
    trainer = make(tmp_path, alsdgc="robust", gradient_accumulation_steps=2, max_steps=4, factors={5: math.nan})
    trainer.train()
    callback = trainer.callback_handler.callbacks[0]
    assert callback.controller.steps == 4 and callback.controller.summary()["skipped"] == {"non-finite loss": 1}
    assert logged(trainer, "alsdgc/skipped") == [0, 0, 1, 1]


def test_a_loss_that_is_not_finite_is_never_logged_as_0(tmp_path):
    trainer = make(tmp_path, alsdgc="robust", factors={2: math.nan, 3: math.inf, 4: math.nan}, logging_steps=2)
    trainer.train()
    losses = logged(trainer, "loss")
    finite = make(tmp_path, alsdgc="robust", max_steps=2)
    finite.train()
    assert (
        math.isnan(losses[1])
        and losses[2] > 1
        and losses[0] == pytest.approx(sum(logged(finite, "loss")) / 2, rel=1e-4)
    )
    (whole,) = logged(trainer, "train_loss")
    assert whole > 1


def test_nan_weights_are_logged_as_nan(tmp_path):
    trainer = make(tmp_path, alsdgc="robust", max_steps=3)
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = math.nan
    result = trainer.train()
    assert all(map(math.isnan, logged(trainer, "loss"))) and len(logged(trainer, "loss")) == 3
    assert math.isnan(logged(trainer, "train_loss")[0]) and math.isnan(result.metrics["train_loss"])


def test_trackers_receive_what_is_logged_and_the_end_is_summed_up(tmp_path, capsys):
    received = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            received.append(dict(logs))

    trainer = make(tmp_path, callbacks=[Tracker(), ALSDGCCallback("robust", window=32)], factors={3: math.nan})
    trainer.train()
    steps = [logs for logs in received if "loss" in logs]
    keys = {"alsdgc/norm", "alsdgc/threshold", "alsdgc/clipped_norm", "alsdgc/clipped", "alsdgc/skipped"}
    assert len(steps) == 8 and all(keys <= logs.keys() for logs in steps)
    assert "alsdgc/loss_scale" not in steps[0]  # there is none in full precision
    assert "ALSDGC (robust): 8 steps" in (out := capsys.readouterr().out) and "1 skipped (1 non-finite loss)" in out


def fp16(trainer):
    """accelerate's own loop for fp16, on CPU: it takes a scaler for GPUs only."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"
    return trainer


@pytest.fixture
def _full_precision_again():
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_full_precision_again")
@pytest.mark.parametrize("optim", ["sgg_adamw", "adamw_torch_fused"])
def test_the_loss_scale_of_fp16_is_the_controllers(tmp_path, optim):
    extra = {} if optim == "sgg_adamw" else {"optim_args": None}
    trainer = fp16(
        make(
            tmp_path, alsdgc="robust", optim=optim, factors={1: math.nan}, gradients={4: math.inf, 5: math.inf}, **extra
        )
    )
    recorder = Recorder(trainer)
    before = trainer.accelerator.scaler
    trainer.train()
    assert logged(trainer, "alsdgc/loss_scale")[:4] == [2.0**14] * 4  # a bad loss is no overflow
    assert logged(trainer, "alsdgc/loss_scale")[-1] == 2.0**12
    assert logged(trainer, "alsdgc/skipped") == [0, 1, 1, 1, 2, 3, 3, 3]
    moved = [not equal(*pair) for pair in zip(recorder.before, recorder.after, strict=True)]
    assert moved == [True, False, True, True, False, False, True, True]
    assert trainer.lr_scheduler.state_dict()["last_epoch"] == 5
    assert logged(trainer, "alsdgc/norm")[0] < 10  # unscaled
    assert trainer.accelerator.scaler is before and trainer.optimizer.scaler is before  # given back


@pytest.mark.usefixtures("_full_precision_again")
def test_fp16_trains_as_full_precision_does_where_nothing_overflows(tmp_path):
    full = make(tmp_path, alsdgc="robust")
    full.train()
    half = fp16(make(tmp_path, alsdgc="robust"))
    half.train()
    assert logged(half, "loss") == pytest.approx(logged(full, "loss"), rel=1e-3)
    assert logged(half, "loss") != logged(full, "loss")  # it did autocast
    assert logged(half, "alsdgc/norm") == pytest.approx(logged(full, "alsdgc/norm"), rel=1e-2)


@pytest.mark.usefixtures("_full_precision_again")
def test_a_controller_without_loss_scale_leaves_the_scaler_alone_but_skips(tmp_path):
    trainer = fp16(make(tmp_path, callbacks=[ALSDGCCallback(ALSDGC())], factors={1: math.nan}))
    trainer.train()
    assert not isinstance(trainer.accelerator.scaler, GradScaler)
    assert logged(trainer, "alsdgc/skipped")[-1] == 1 and trainer.lr_scheduler.state_dict()["last_epoch"] == 7
    assert trainer.accelerator.scaler.get_scale() == 2.0**13  # torch's own rule


SAVING = {
    "save_strategy": "steps",
    "save_steps": 4,
    "alsdgc": "robust,warmup_steps=4,window=16,reseed_after=8,reseed_span=16",
}


def test_a_resume_continues_the_statistics_bit_for_bit(tmp_path):
    bad = {"factors": {2: math.nan}, "gradients": {6: 50.0}}
    whole = make(tmp_path / "whole", **SAVING, **bad)
    whole.train()
    resumed = make(tmp_path / "resumed", **SAVING, gradients=bad["gradients"], skip_batches=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert same(weights(resumed), weights(whole))
    for key in ("alsdgc/threshold", "alsdgc/norm", "alsdgc/skipped", "loss"):
        assert str(logged(resumed, key)) == str(logged(whole, key))  # NaN is not equal to itself
    states = [run.callback_handler.callbacks[0].controller.state_dict() for run in (whole, resumed)]
    assert states[0] == states[1] and states[0]["counters"]["steps"] == 8


@pytest.mark.usefixtures("_full_precision_again")
def test_the_loss_scale_of_fp16_survives_a_resume(tmp_path):
    bad = {1: math.inf, 2: math.inf, 5: math.inf}
    whole = fp16(make(tmp_path / "whole", **SAVING, gradients=bad))
    whole.train()
    resumed = fp16(make(tmp_path / "resumed", **SAVING, gradients=bad, skip_batches=4))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    scales = logged(whole, "alsdgc/loss_scale")
    assert logged(resumed, "alsdgc/loss_scale") == scales and len(set(scales)) > 2
    assert same(weights(resumed), weights(whole))


@pytest.mark.usefixtures("_full_precision_again")
def test_the_scale_of_torchs_scaler_in_an_older_checkpoint_is_taken_over(tmp_path):
    older = fp16(make(tmp_path, **{**SAVING, "alsdgc": None}, gradients={1: math.inf, 2: math.inf}))
    older.train()
    trainer = fp16(make(tmp_path, **SAVING, skip_batches=4))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    kept = (tmp_path / "checkpoint-4" / "scaler.pt").exists()  # older transformers keep none on CPU
    assert logged(trainer, "alsdgc/loss_scale") == [2.0**12 if kept else 2.0**14] * 4
    assert kept or not hasattr(trainer, "_save_scaler")


def test_a_checkpoint_without_statistics_is_resumed_with_new_ones_and_can_be_saved(tmp_path, caplog):
    make(tmp_path, **{**SAVING, "alsdgc": None}).train()
    trainer = make(tmp_path, **SAVING, restore_callback_states_from_checkpoint=True, skip_batches=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "the checkpoint of step 4 has no statistics of ALSDGC" in caplog.text
    saved = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert saved["alsdgc"]["counters"]["steps"] == 4
    # And the other way round: without --alsdgc, and with the Trainer's own way of restoring callbacks.
    again = make(tmp_path, **{**SAVING, "alsdgc": None, "max_steps": 10}, restore_callback_states_from_checkpoint=True)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert again.state.global_step == 10


def test_statistics_of_another_mode_are_refused(tmp_path):
    make(tmp_path, **SAVING).train()
    with pytest.warns(UserWarning, match="faithful"):
        trainer = make(tmp_path, **{**SAVING, "alsdgc": "faithful"})
        with pytest.raises(ValueError, match="mode='robust' was saved"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_training_again_begins_anew_and_nothing_stays_patched(tmp_path):
    trainer = make(tmp_path, alsdgc="robust", factors={3: math.nan})
    trainer.train()
    trainer.train()
    assert trainer.callback_handler.callbacks[0].controller.steps == 8
    assert "clip_grad_norm_" not in vars(trainer.accelerator) and "backward" not in vars(trainer.accelerator)
    assert getattr(trainer.optimizer.step, "__name__", "") != "step_unless_skipped"


def test_no_clipping_asked_for_is_overridden_and_said(tmp_path, caplog):
    trainer = make(tmp_path, alsdgc="robust", max_grad_norm=0.0)
    trainer.train()
    assert "max_grad_norm=0.0 asks for no clipping" in caplog.text
    assert logged(trainer, "alsdgc/threshold") == [1.0] * 8 and trainer.args.max_grad_norm == 0.0


def test_param_groups_have_thresholds_of_their_own(tmp_path):
    trainer = make(tmp_path, alsdgc="robust,per_group=true,warmup_threshold=0.1", weight_decay=0.1, max_steps=2)
    grads = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            for group in optimizer.param_groups:
                grads.append(torch.nn.utils.get_total_norm([param.grad for param in group["params"]]).item())

    trainer.add_callback(Watch())
    trainer.train()
    assert len(grads) == 4 and all(norm <= 0.1001 for norm in grads) and max(grads) > 0.09


def test_faithful_mode_gets_the_learning_rate(tmp_path):
    with pytest.warns(UserWarning, match="faithful"):
        trainer = make(tmp_path, alsdgc="faithful", max_steps=3)
        trainer.train()
    assert logged(trainer, "alsdgc/threshold") == pytest.approx([1.0, 1.1, 1.21])  # norms are above theta * lr


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"--alsdgc: unknown option windw='3' of ALSDGC, did you mean 'window'"):
        make(tmp_path, alsdgc="robust,windw=3")
    with pytest.raises(ValueError, match="2 ALSDGCCallbacks"):
        make(tmp_path, callbacks=[ALSDGCCallback(), ALSDGCCallback()])
    with pytest.raises(RuntimeError, match="works in a transformers.Trainer only"):
        ALSDGCCallback().on_train_begin(None, None, None)
    with pytest.raises(OptionError, match="give window to the controller"):
        ALSDGCCallback(ALSDGC(), window=3)
    with pytest.raises(OptionError, match=r"window='x' is not allowed"):
        ALSDGCCallback("robust", window="x")
