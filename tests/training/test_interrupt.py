"""Guards against a second Ctrl-C that is ignored, and against handlers left behind."""

import signal
from types import SimpleNamespace

import pytest
import torch

from gradscale.training.interrupt import Interrupt

ARGS = SimpleNamespace(device=torch.device("cpu"), world_size=1)
STATE = SimpleNamespace(global_step=3)


def control():
    return SimpleNamespace(should_save=False, should_training_stop=False, should_evaluate=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_step(number, capsys):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        interrupt.on_train_begin(ARGS, STATE, None)
        step = control()
        interrupt.on_step_end(ARGS, STATE, step)
        assert vars(step) == vars(control()) and interrupt.signal is None
        signal.raise_signal(number)
        interrupt.on_step_end(ARGS, STATE, step)
        assert step.should_save and step.should_training_stop and not step.should_evaluate
        assert interrupt.signal == number
        # The end of a broken-off epoch saves and evaluates nothing more.
        epoch = SimpleNamespace(should_save=True, should_evaluate=True)
        interrupt.on_epoch_end(ARGS, STATE, epoch)
        assert not epoch.should_save and not epoch.should_evaluate
    assert signal.getsignal(number) is before
    assert "Ctrl-C again stops at once" in capsys.readouterr().err


def test_the_second_ctrl_c_stops_at_once():
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a scheduler that asks again is no reason to lose the checkpoint
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_during_an_evaluation():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        evaluation = control()
        interrupt.on_evaluate(ARGS, STATE, evaluation)
        assert evaluation.should_save and evaluation.should_training_stop
