"""The program as a process: Ctrl-C and SIGTERM, pipes and terminals, a full disk."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_fixtures import CONFIG, losses
from subprogram import PATIENCE, PROGRAM, start, wait_for

LONG = CONFIG.replace('steps=4', 'steps=10**6').replace('_every=2', '_every=10').replace('_every=4', '_every=10**5')


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_prints_how_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, 'train', 'small.py', '--simulate', config=LONG)
    try:
        wait_for(lambda: bool(losses(tmp_path / 'runs' / 'small-1')), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert err == 'stopping after this step, and saving (once more to leave at once)\n'
    stopped, command = out.splitlines()[-2:]
    match = re.fullmatch(r'stopped; step (\d+) is saved\. Resume with:', stopped)
    assert match
    assert command == '  jaxdist train runs/small-1'
    step = int(match[1])
    again = start(tmp_path, *command.split()[1:], '--steps', str(step + 10), config=LONG)
    out, err = again.communicate(timeout=PATIENCE)
    assert (again.returncode, err) == (0, '')
    assert f'\nresuming from step {step}\n' in out
    assert max(losses(tmp_path / 'runs' / 'small-1')) == step + 10


TWICE = """
import os, signal, time
from jaxdist.cli.stopping import asked_to_stop

with asked_to_stop() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop() and stop.code == 130
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        print('not at once')
"""


def test_a_second_ctrl_c_ends_at_once() -> None:
    ended = subprocess.run([sys.executable, '-c', TWICE], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == ''
    assert 'once more to leave at once' in ended.stderr


def read_terminal(end: int) -> str:
    """All output to the terminal whose other end this is, until it is closed."""
    text = b''
    while True:
        ready, _, _ = select.select([end], [], [], PATIENCE)
        assert ready, 'nothing was printed'
        try:
            part = os.read(end, 65536)
        except OSError:  # how Linux reports that it is closed
            part = b''
        if not part:
            return text.decode()
        text += part


def in_terminal(folder: Path, columns: int, no_color: str) -> str:
    """The output of a run in a terminal."""
    ours, theirs = pty.openpty()
    env = {'COLUMNS': str(columns), 'TERM': 'xterm-256color', 'NO_COLOR': no_color}
    # 400 steps take some seconds: long enough for the live line to be drawn several times, at ten times a second.
    config = LONG.replace('10**6', '400').replace('_every=10**5', '_every=200').replace('log_every=10', 'log_every=1')
    process = start(folder, 'train', 'small.py', '--simulate', config=config, terminal=theirs, **env)
    os.close(theirs)
    try:
        text = read_terminal(ours)
        process.wait(PATIENCE)
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 0, text
    return text


CONTROL = re.compile(r'\x1b\[[\d;?]*[A-Za-z]')
COLOUR = re.compile(r'\x1b\[(3\d|38;[\d;]*)m')


@pytest.mark.slow
@pytest.mark.parametrize('columns, no_color', [(80, ''), (50, '1')])
def test_a_terminal_shows_a_live_line_that_fits(tmp_path: Path, columns: int, no_color: str) -> None:
    text = in_terminal(tmp_path, columns, no_color)
    parts = [CONTROL.sub('', part).rstrip() for part in re.split(r'[\r\n]', text)]
    live = [part for part in parts if re.search('[━╸╺]', part) or re.match(r'step \d+/400', part)]
    assert max(map(len, live)) <= columns
    assert any(re.match(r'step \d+/400  loss \d\.\d{4}', part) for part in live)
    assert any(' left ' in part for part in live)
    rest = [part for part in parts if part and part not in live]
    stays = [CONTROL.sub('', line.rstrip('\r').split('\r')[-1]) for line in text.split('\n')]
    # The last live line is drawn and then erased, with the cursor back on it.
    assert len([line for line in stays if re.match(r'step \d+/400', line)]) <= 1
    assert [part for part in rest if part.startswith('step 400  held-out: accuracy')]
    assert text.count('\x1b[?25l') == text.count('\x1b[?25h')  # the cursor is shown again
    assert bool(COLOUR.search(text)) != bool(no_color)


@pytest.mark.slow
def test_a_broken_pipe_saves_and_ends_the_run(tmp_path: Path) -> None:
    with start(tmp_path, 'train', 'small.py', '--simulate', config=LONG) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith('runs/small-1: ')
            process.stdout.close()
            process.wait(PATIENCE)
            assert process.stderr is not None
            assert process.stderr.read() == ''
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGPIPE
    assert [path.name for path in (tmp_path / 'runs/small-1/checkpoints').iterdir() if path.name.isdecimal()]


@pytest.mark.slow
def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2400, 2400)); '
    process = start(tmp_path, 'train', 'small.py', '--simulate', config=LONG, program=limit + PROGRAM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    # The library that writes the arrays may print warnings in between, from other threads.
    assert re.search(r'error: step 10 was not saved in \S+runs/small-1/checkpoints: .*File too large\n', err), err
    assert 'step 10/1000000' in out
