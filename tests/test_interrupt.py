import os
import signal

import pytest

from pneumo import interrupt


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt.install()
    yield
    interrupt.install()  # forgets what is still asked
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once(number):
    with pytest.raises(KeyboardInterrupt):
        send(number)


def test_the_clean_up_is_left_in_peace_for_a_while():
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    send(signal.SIGTERM)
    interrupt.install()  # as after the grace
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)


class Destroyed:
    def __del__(self):
        send(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_was_lost_comes_again():
    interrupt.check()
    Destroyed()  # Python ignores what a destructor raises
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_a_deferred_signal_waits_for_the_check():
    passed = []
    with pytest.raises(KeyboardInterrupt), interrupt.deferred():
        send(signal.SIGINT)
        passed.append("signal")
        interrupt.check()
        passed.append("check")
    assert passed == ["signal"]
    send(signal.SIGTERM)  # the second is not heard


def test_the_end_of_the_block_is_a_check():
    passed = []
    with pytest.raises(KeyboardInterrupt):
        with interrupt.deferred():
            send(signal.SIGINT)
            passed.append("inside")
        passed.append("after")
    assert passed == ["inside"]


def test_an_error_inside_goes_first():
    with pytest.raises(ValueError, match="inside"), interrupt.deferred():
        send(signal.SIGINT)
        raise ValueError("inside")
