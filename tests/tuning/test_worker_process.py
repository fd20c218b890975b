"""A worker's process with a stub command: its output, and how it ends."""

import _thread
import signal
import time
from functools import partial
from queue import SimpleQueue
from threading import Thread

import pytest

from pneumo.runtime.errors import UserError
from pneumo.tuning.launchers.worker_process import Worker, WorkerDiedError, run_worker
from tests.support.studies import let_workers_run, until

TRACE = "Timeout (0:00:01)!\nThread 0x1:\n  File x, line 1 in fit\n"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return `let_workers_run` for this test."""
    return partial(let_workers_run, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("code", "exit_code", "reason", "trace", "printed"),
    [
        ("print('a line')", 0, "", "", "a line\n"),
        ("print('a', file=sys.stderr)", 0, "", "", "a\n"),
        ("print('a'); sys.exit('pneumo: for a reason')", 1, "for a reason", "", "a\n"),
        (f"print('a'); print({TRACE!r}, end=''); os._exit(1)", 1, "", TRACE, "a\n"),
        ("os.kill(os.getpid(), 9)", -9, "", "", ""),
        ("os.write(1, b'\\xff\\n')", 0, "", "", "\N{REPLACEMENT CHARACTER}\n"),
    ],
)
def test_the_output_of_a_worker(command, capsys, code, exit_code, reason, trace, printed):
    # On its way out Python flushes what is printed, and os._exit does not
    command(code.replace("os._exit", "sys.stdout.flush(); os._exit"))
    ended = SimpleQueue()
    worker = Worker(3, [], {}, ended)
    assert worker.wait() == exit_code
    assert (worker.number, worker.reason, worker.trace) == (3, reason, trace)
    assert capsys.readouterr().out == printed
    assert ended.get(timeout=10) is worker


def test_the_arguments_of_a_worker(command, capsys, monkeypatch, tmp_path):
    command("print(sys.argv[1:], os.environ['A'], os.environ.get('MLFLOW_RUN_ID'), os.getpid())")
    monkeypatch.setenv("MLFLOW_RUN_ID", "1234")  # else it would end that run
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "pneumo.py").write_text("raise AssertionError('not this one')")
    worker = Worker(0, ["--study", "night"], {"A": "b"}, SimpleQueue())
    assert worker.wait() == 0
    printed = f"['worker', '--study', 'night'] b None {worker.id.pid}\n"
    assert capsys.readouterr().out == printed


def test_a_worker_that_does_not_exit_is_killed(command):
    command("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)")
    worker = Worker(0, [], {}, SimpleQueue())
    worker.terminate()
    assert worker.wait(timeout=0.5) < 0


def test_the_input_of_a_worker_ends_with_the_process_that_started_it(command):
    command("sys.exit(7 if os.read(0, 1) == b'' else 8)")
    worker = Worker(0, [], {}, SimpleQueue())
    worker._process.stdin.close()
    assert worker.wait() == 7


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("print('pneumo: no such data'); sys.exit(2)", UserError, "no such data"),
        ("sys.exit('pneumo: it stopped')", WorkerDiedError, "it stopped"),
        ("os.kill(os.getpid(), 9)", WorkerDiedError, "exit code -9"),
    ],
)
def test_how_a_worker_ends(command, code, error, message):
    command(code)
    with pytest.raises(error, match=f"^{message}$"):
        run_worker(0, [], {})


@pytest.mark.slow
def test_an_interrupt_from_python_ends_the_worker(command, tmp_path):
    """Ray cancels a task in this way, which Python notices only in the main thread."""
    ended, ready = tmp_path / "ended", tmp_path / "ready"
    command(
        "import signal\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(ended)!r}, 'x'), sys.exit(1)))\n"
        f"open({str(ready)!r}, 'x').close()\n"
        "time.sleep(100)"
    )

    def interrupt() -> None:
        until(ready.exists)
        time.sleep(0.5)  # `run_worker` waits for the worker by then
        _thread.interrupt_main()

    # A process in the background of a shell ignores the signal, and so do those that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_worker(0, [], {})
    thread.join()  # so that it interrupts no other test if something else has ended the worker
    assert ended.exists()
