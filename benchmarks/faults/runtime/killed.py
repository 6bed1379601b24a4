"""Processes that die or get a signal: the driver, the process of a trial, Ray's own."""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.faults.harness.promise import assert_promise, random_moment, reference
from benchmarks.faults.harness.settings import ADAPTIVE, GRID, Case
from benchmarks.faults.harness.sweep import Exit, Process, Sweep, listed, new_folder, wait_for
from muxfer.processes import start_time

STOP_SECONDS = 30.0
"""How long a command may take to end after a signal, or after Ray died."""
KINDS = ((signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGUSR1, False))
"""Signals, and whether the whole process group gets them."""
RAY = ("gcs_server", "raylet")
KILLS_WITH_CUT = 10
"""Among this many kills of trials, at least one must fall into the write of a checkpoint."""

Interruption = Callable[[Sweep, random.Random], Exit | None]
"""Start the command and interrupt it while it runs. Returns its exit if it ended with 0 before that, else None."""


def interrupting(*kinds: Interruption, overrides: Callable[[int], Sequence[str]] = lambda seed: GRID) -> Case:
    """A case of these interruptions in turn. The same command follows each at once; at the end it must converge."""

    def case(seed: int, folder: Path, faults: int) -> int:
        rng = random.Random(seed)
        caused = 0
        while caused < faults:
            sweep, ended = Sweep(new_folder(folder), overrides(seed)), None
            reference(sweep.name, sweep.overrides)  # made now, so that no interruption waits for it
            while caused < faults and ended is None:
                ended = kinds[(seed + caused) % len(kinds)](sweep, rng)
                caused += ended is None
            assert_promise(sweep, sweep.finish() if ended is None else ended.result)
        return caused

    return case


def _kill_driver(sweep: Sweep, rng: random.Random) -> Exit | None:
    """The lease lasts ten minutes: a command that waits for it instead of taking over does not end in time."""
    process = sweep.start("ledger.lease_seconds=600")
    if rng.random() < 0.1:  # before it has done anything
        time.sleep(rng.uniform(0.0, 1.0))
    else:
        random_moment(sweep, process, rng)
    process.kill()
    ended = sweep.end(process).expect(-signal.SIGKILL, 0)
    return ended if ended.code == 0 else None


def _kill_ray(sweep: Sweep, rng: random.Random) -> Exit | None:
    """Kill Ray's gcs or raylet, also while Ray starts. The command must report it and end."""
    name = rng.choice(RAY)
    process = sweep.start()
    if not wait_for(lambda: _processes_named(sweep, name), process):
        return sweep.end(process).expect(0)
    pid = _processes_named(sweep, name)[0]
    if rng.random() < 0.5:
        _wait_for_next_checkpoint(sweep, process)
    time.sleep(rng.uniform(0.0, 2.0))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    ended = sweep.end(process, timeout=STOP_SECONDS).expect(3, 0)  # 0: all trials were already done
    assert ended.code == 0 or f"{name} (pid {pid}) died" in ended.last_line, ended.err[-2000:]
    return ended if ended.code == 0 else None


def _stop(signum: signal.Signals, to_group: bool) -> Interruption:
    """Send a signal at a random moment, from the first millisecond on."""

    def stop(sweep: Sweep, rng: random.Random) -> Exit | None:
        process = sweep.start()
        chance = rng.random()
        if chance < 0.5:
            random_moment(sweep, process, rng)
        else:
            if chance < 0.75:
                _wait_for_next_checkpoint(sweep, process)
            time.sleep(rng.uniform(0.0, 2.0))
        has_handlers, born = _has_handlers(process.pid), start_time(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum) if to_group else process.send_signal(signum)
        ended = sweep.end(process, timeout=STOP_SECONDS)
        if ended.code == 0:  # it finished before the signal came
            return ended.expect(0)
        code = 130 if signum == signal.SIGINT else 143
        if has_handlers:
            ended.expect(code)
            assert signum.name in ended.last_line, ended.err[-2000:]
        else:  # Python itself was starting, and no line of muxfer had run
            assert ended.code in (code, -signum, 1), f"exit {ended.code}: {ended.err[-2000:]}"
        if rng.random() < 0.5:  # else the next command starts while the last processes of this one are dying
            sweep.assert_no_processes(since=born or 0)
        return None

    return stop


def trial_killed(seed: int, folder: Path, faults: int) -> int:
    """kill -9 of processes of trials, many in one sweep, half of them as they begin to write a checkpoint."""
    rng = random.Random(seed)
    killed = cut = 0
    while killed < faults:
        sweep = Sweep(new_folder(folder))
        num_killed, num_cut, ended = _kill_trials(sweep, rng, most=faults - killed)
        killed, cut = killed + num_killed, cut + num_cut
        assert_promise(sweep, ended.result)
    assert cut or faults < KILLS_WITH_CUT, f"none of {killed} kills fell into the write of a checkpoint"
    return killed


def _kill_trials(sweep: Sweep, rng: random.Random, *, most: int = 1) -> tuple[int, int, Exit]:
    """Run one command and kill processes of its trials.

    Returns how many were killed, how many of them inside a write, and the exit of the command, which must be 0.
    """
    process = sweep.start("compute.max_failures=1000")
    newest: dict[tuple[str, str], int] = {}
    victims: set[int] = set()
    num_cut = 0
    while len(victims) < most:
        writing = rng.random() < 0.5
        time.sleep(rng.uniform(0.0, 0.5))
        pid = _process_of_a_trial(sweep, process, victims, writing=writing)
        if pid is None:
            break
        if not writing:
            time.sleep(rng.uniform(0.0, 1.5))
        _note_attempts(sweep, newest)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            victims.add(pid)
            num_cut += _cut_a_write(sweep, pid)
    while process.poll() is None:
        _note_attempts(sweep, newest)
        time.sleep(0.05)
    ended = sweep.end(process).expect(0)
    for key, run in sweep.runs().items():
        attempts = sorted(attempt for known, attempt in newest if known == key)
        before = max((newest[key, attempt] for attempt in attempts[:-1]), default=0)
        resumed_at = run.record["resumed_at"]
        shown = f"trial {key} started again at {resumed_at}, although it had a checkpoint at {before}"
        assert resumed_at >= before, shown
    return len(victims), num_cut, ended


def _kill_trial(sweep: Sweep, rng: random.Random) -> Exit | None:
    num_killed, _, ended = _kill_trials(sweep, rng)
    return None if num_killed else ended


driver_killed = interrupting(_kill_driver, overrides=lambda seed: ADAPTIVE if seed % 3 == 2 else GRID)
ray_killed = interrupting(_kill_ray)
stopped = interrupting(*(_stop(*kind) for kind in KINDS))
one_of_each = interrupting(_kill_driver, _stop(signal.SIGTERM, True), _kill_ray, _kill_trial)
"""The test suite's case of the four rows above."""


def _process_of_a_trial(sweep: Sweep, process: Process, but: set[int], *, writing: bool) -> int | None:
    """A process that holds a trial, or that writes its checkpoint. None if the command ended before there was one."""
    pids: list[int] = []

    def look() -> bool:
        if writing:
            halves = listed(sweep.folder, "muxfer/*/trials/*/attempt-*/.step-*.tmp")
            pids[:] = [int(half.name.split(".")[-2]) for half in halves]
        else:
            pids[:] = [pid for pid, title in sweep.processes().items() if title.startswith("ray::TrialActor")]
        pids[:] = [pid for pid in pids if pid not in but]
        return bool(pids)

    return pids[0] if wait_for(look, process) else None


def _cut_a_write(sweep: Sweep, pid: int) -> bool:
    """Whether a process that was just killed left a half-written checkpoint."""
    while start_time(pid) is not None:
        time.sleep(0.001)
    return next(sweep.folder.glob(f"muxfer/*/trials/*/attempt-*/.step-*.{pid}.tmp"), None) is not None


def _wait_for_next_checkpoint(sweep: Sweep, process: Process) -> None:
    """Wait until one more trial has a checkpoint of this command."""
    before = len(sweep.checkpoints())
    wait_for(lambda: len(sweep.checkpoints()) > before, process)


def _note_attempts(sweep: Sweep, newest: dict[tuple[str, str], int]) -> None:
    """Note the step of the newest whole checkpoint of every attempt, by trial key and the attempt's name."""
    for attempt in listed(sweep.folder, "muxfer/*/trials/*/attempt-*"):
        steps = [int(step.name.removeprefix("step-")) for step in listed(attempt, "step-*")]
        place = attempt.parent.name, attempt.name
        newest[place] = max([*steps, newest.get(place, 0)])


def _processes_named(sweep: Sweep, name: str) -> list[int]:
    """Pids of the sweep's processes with this name."""
    pids = []
    for pid in sweep.processes():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                pids.append(pid)
    return pids


def _has_handlers(pid: int) -> bool:
    """Whether the command has set its signal handlers. SIGUSR1's is the last one that it sets."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)
