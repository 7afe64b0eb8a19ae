"""A forked process is as a new interpreter to a program and to a test."""

import contextlib
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from forked import ENVIRONMENT, ONE_THREAD, PYTHON, Forked, launch, start_server

SEEN = """
import json, os, resource, signal, sys, threading
json.dump({
    'arguments': sys.argv, 'path': sys.path, 'folder': os.getcwd(), 'name': __name__, 'warnings': sys.warnoptions,
    'environment': dict(os.environ), 'files': sorted(os.listdir('/proc/self/fd')), 'group': os.getpgid(0),
    'handlers': [repr(signal.getsignal(number)) for number in signal.valid_signals()],
    'blocked': [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    'threads': [len(os.listdir('/proc/self/task')), len(threading.enumerate())],
    'output': [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stderr.line_buffering],
    'limits': resource.getrlimit(resource.RLIMIT_NOFILE),
}, sys.stdout)
"""


def read(file: int) -> bytes:
    """All that comes; a terminal gives at most 4095 bytes at a time, and at the end an error."""
    text = b''
    with contextlib.suppress(OSError):
        while part := os.read(file, 1 << 16):
            text += part
    return text


def seen(kind: type[subprocess.Popen[str]], cwd: Path, terminal: bool) -> dict[str, object]:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [*PYTHON, SEEN, 'a', 'b c']
    process = kind(command, cwd=cwd, env={**ENVIRONMENT, 'ONE': 'more'}, text=True, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = read(ours)
    os.close(ours)
    assert process.wait(60) == 0
    return json.loads(text)


@pytest.mark.parametrize('terminal', [False, True])
def test_a_program_sees_what_a_new_interpreter_shows_it(tmp_path: Path, terminal: bool) -> None:
    expected, actual = (seen(kind, tmp_path, terminal) for kind in (subprocess.Popen, Forked))
    assert actual == expected
    assert not {*ONE_THREAD} & {*actual['environment']}


def ended(program: str, cwd: Path) -> tuple[int, str, str]:
    process = launch(program, cwd=cwd)
    assert isinstance(process, Forked)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_program_ends_as_in_a_new_interpreter(tmp_path: Path) -> None:
    assert ended('import atexit; atexit.register(print, "last"); raise SystemExit(70)', tmp_path) == (70, 'last\n', '')
    code, out, err = ended('import warnings; print(1, end=""); warnings.warn("w")', tmp_path)
    assert (code, out, err.splitlines()[-1]) == (1, '1', 'UserWarning: w')
    assert ended('import os; os._exit(3)', tmp_path) == (3, '', '')
    assert ended('import os; os.kill(os.getpid(), 9)', tmp_path) == (-9, '', '')


def test_signals_reach_a_forked_process_which_is_a_child_of_this_one(tmp_path: Path) -> None:
    process = launch('print(__import__("os").getpid(), flush=True); __import__("time").sleep(60)', cwd=tmp_path)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    process.send_signal(signal.SIGCONT)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize('name', ['JAX_ENABLE_X64', 'PYTHONHASHSEED', 'XDG_CACHE_HOME', 'XLA_FLAGS'])
def test_a_variable_that_imports_read_starts_a_new_interpreter(tmp_path: Path, name: str) -> None:
    process = launch('import os, sys; print("jax" in sys.modules)', cwd=tmp_path, **{name: '0'})
    assert (type(process), process.communicate(timeout=60)) == (subprocess.Popen, ('False\n', ''))


def test_the_server_ends_with_the_process_that_started_it() -> None:
    connection, process = start_server()
    assert process.poll() is None
    connection.close()
    assert process.wait(60) == 0
