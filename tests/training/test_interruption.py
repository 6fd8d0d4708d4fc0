"""A signal becomes a flag that is looked at where stopping is safe; random numbers go on where they were."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
import torch

from vlmft.training.interruption import Interrupted, StopRequest, stop_request
from vlmft.training.random_state import random_state, set_random_state


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_request(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with stop_request() as stop:
        stop.check()  # nothing was asked yet
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="stopped by SIG") as raised:
            stop.check()
    assert raised.value.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with stop_request():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_request_that_is_not_installed_hears_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    StopRequest().check()
    assert signal.getsignal(signal.SIGTERM) is before


def test_random_numbers_go_on_where_they_were() -> None:
    def draw() -> tuple[object, ...]:
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    draw()  # an odd number of normal draws, so that a second one is waiting in numpy and in Python
    state = random_state()
    expected = draw()
    assert draw() != expected
    set_random_state(state)
    assert draw() == expected
