"""Processes that die or are told to stop: the driver, a trial's own, Ray's; and the signals that ask for an end."""

import itertools
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.faults.harness.moments import random_moment, wait_for
from benchmarks.faults.harness.promise import assert_promise, reference
from benchmarks.faults.harness.row import Case
from benchmarks.faults.harness.settings import ADAPTIVE, GRID
from benchmarks.faults.harness.sweep import Ended, Sweep, listed, new_folder
from muxfer.processes import start_time

STOP_SECONDS = 30.0
"""How long a command may take to end after a signal, or after Ray died."""
KINDS = ((signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGUSR1, False))
"""Signals, and whether the whole process group gets it."""
RAY = ("gcs_server", "raylet")
SOME_CUT = 10
"""Of so many kills of trials one at least must fall into the write of a checkpoint."""


Hurt = Callable[[Sweep, random.Random], Ended | None]
"""Start the command, and hurt it while it runs; how it ended where that was with 0, before it could be hurt."""


def hurting(*hurts: Hurt, overrides: Callable[[int], Sequence[str]] = lambda seed: GRID) -> Case:
    """A case of these in turn, each time followed at once by the same command; then it must converge."""

    def case(seed: int, folder: Path, faults: int) -> int:
        rng = random.Random(seed)
        caused = 0
        for number in itertools.count():
            sweep, ended = Sweep(new_folder(folder, number), overrides(seed)), None
            reference(sweep.name, sweep.overrides)  # makes it where there is none: nobody waits to be hurt meanwhile
            while caused < faults and ended is None:
                ended = hurts[(seed + caused) % len(hurts)](sweep, rng)
                caused += ended is None
            assert_promise(sweep, sweep.finish() if ended is None else ended.answer)
            if caused == faults:
                return caused
        raise AssertionError

    return case


def _kill_driver(sweep: Sweep, rng: random.Random) -> Ended | None:
    """With a lease of ten minutes: a command that waited for it instead of taking over would not end in time."""
    process = sweep.start("ledger.lease_seconds=600")
    if rng.random() < 0.1:  # before it has done anything
        time.sleep(rng.uniform(0.0, 1.0))
    else:
        random_moment(sweep, process, rng)
    process.kill()
    return _whole(sweep.end(process).expect(-signal.SIGKILL, 0))


def _whole(ended: Ended) -> Ended | None:
    return ended if ended.code == 0 else None


def _kill_ray(sweep: Sweep, rng: random.Random) -> Ended | None:
    """Its gcs or raylet, also while Ray starts: the command says so and ends."""
    name = rng.choice(RAY)
    process = sweep.start()
    if not wait_for(lambda: _named(sweep, name), process):
        return sweep.end(process).expect(0)
    pid = _named(sweep, name)[0]
    if rng.random() < 0.5:
        _next_checkpoint(sweep, process)
    time.sleep(rng.uniform(0.0, 2.0))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    ended = sweep.end(process, timeout=STOP_SECONDS).expect(3, 0)
    # With 0 Ray had done its work.
    assert ended.code == 0 or f"Ray's {name} (pid {pid}) died" in ended.last_line, ended.err[-2000:]
    return _whole(ended)


def _stop(signum: signal.Signals, to_group: bool) -> Hurt:
    """A signal at a random moment from the first millisecond on."""

    def stop(sweep: Sweep, rng: random.Random) -> Ended | None:
        process = sweep.start()
        chance = rng.random()
        if chance < 0.5:
            random_moment(sweep, process, rng)
        else:
            if chance < 0.75:
                _next_checkpoint(sweep, process)
            time.sleep(rng.uniform(0.0, 2.0))
        began, born = _handles(process.pid), start_time(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum) if to_group else process.send_signal(signum)
        ended = sweep.end(process, timeout=STOP_SECONDS)
        if ended.code == 0:  # it was faster
            return ended.expect(0)
        code = 130 if signum == signal.SIGINT else 143
        if began:
            ended.expect(code)
            assert signum.name in ended.last_line, ended.err[-2000:]
        else:  # Python itself was starting: not a line of ours had run
            assert ended.code in (code, -signum, 1), f"exit {ended.code}: {ended.err[-2000:]}"
        if rng.random() < 0.5:  # else the next one starts while the last processes of this one are dying
            sweep.nobody_left(since=born)
        return None

    return stop


def trial_killed(seed: int, folder: Path, faults: int) -> int:
    """kill -9 of trials' processes, many in one sweep, half of them as they begin to write a checkpoint."""
    rng = random.Random(seed)
    killed = cut = 0
    for number in itertools.count():
        sweep = Sweep(new_folder(folder, number))
        count, halves, ended = _kill_trials(sweep, rng, most=faults - killed)
        killed, cut = killed + count, cut + halves
        assert_promise(sweep, ended.answer)
        if killed == faults:
            assert cut or faults < SOME_CUT, f"none of {killed} kills fell into the write of a checkpoint"
            return killed
    raise AssertionError


def _kill_trials(sweep: Sweep, rng: random.Random, *, most: int = 1) -> tuple[int, int, Ended]:
    """One command; how many it lost, how many of them inside a write, and how it ended: with 0."""
    process = sweep.start("compute.max_failures=1000")
    newest: dict[tuple[str, str], int] = {}
    victims: set[int] = set()
    cut = 0
    while len(victims) < most:
        writing = rng.random() < 0.5
        time.sleep(rng.uniform(0.0, 0.5))
        pid = _trial_process(sweep, process, victims, writing=writing)
        if pid is None:
            break
        if not writing:
            time.sleep(rng.uniform(0.0, 1.5))
        _note(sweep, newest)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            victims.add(pid)
            cut += _cut_a_write(sweep, pid)
    while process.poll() is None:
        _note(sweep, newest)
        time.sleep(0.05)
    ended = sweep.end(process).expect(0)
    for key, run in sweep.runs().items():
        attempts = sorted(attempt for known, attempt in newest if known == key)
        before = max((newest[key, attempt] for attempt in attempts[:-1]), default=0)
        resumed_at = run.record["resumed_at"]
        assert resumed_at >= before, f"trial {key} began again at {resumed_at} with a checkpoint at {before}"
    return len(victims), cut, ended


def _kill_trial(sweep: Sweep, rng: random.Random) -> Ended | None:
    count, _, ended = _kill_trials(sweep, rng)
    return None if count else ended


driver_killed = hurting(_kill_driver, overrides=lambda seed: ADAPTIVE if seed % 3 == 2 else GRID)
ray_killed = hurting(_kill_ray)
stopped = hurting(*(_stop(*kind) for kind in KINDS))
one_of_each = hurting(_kill_driver, _stop(signal.SIGTERM, True), _kill_ray, _kill_trial)
"""What the tests have of the four rows above."""


def _trial_process(sweep: Sweep, process: "subprocess.Popen[str]", but: set[int], *, writing: bool) -> int | None:
    """A process that holds a trial, or is writing its checkpoint; None where the command ended before there was one."""
    found: list[int] = []

    def find() -> bool:
        if writing:
            for temporary in listed(sweep.folder, "muxfer/*/trials/*/attempt-*/.step-*.tmp"):
                found.append(int(temporary.name.split(".")[-2]))
        else:
            found.extend(pid for pid, title in sweep.processes().items() if title.startswith("ray::TrialActor"))
        found[:] = [pid for pid in found if pid not in but]
        return bool(found)

    return found[0] if wait_for(find, process) else None


def _cut_a_write(sweep: Sweep, pid: int) -> bool:
    """Whether a process that was just killed has left a checkpoint half written."""
    with suppress(OSError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            time.sleep(0.001)
    return next(sweep.folder.glob(f"muxfer/*/trials/*/attempt-*/.step-*.{pid}.tmp"), None) is not None


def _next_checkpoint(sweep: Sweep, process: "subprocess.Popen[str]") -> None:
    """Wait until one more trial has a checkpoint of this command's."""
    before = len(sweep.checkpoints())
    wait_for(lambda: len(sweep.checkpoints()) > before, process)


def _note(sweep: Sweep, newest: dict[tuple[str, str], int]) -> None:
    """Remember the newest whole checkpoint of every attempt, by trial key and the attempt's name."""
    for attempt in listed(sweep.folder, "muxfer/*/trials/*/attempt-*"):
        steps = [int(step.name.removeprefix("step-")) for step in listed(attempt, "step-*")]
        place = attempt.parent.name, attempt.name
        newest[place] = max([*steps, newest.get(place, 0)])


def _named(sweep: Sweep, name: str) -> list[int]:
    """The sweep's processes of this name."""
    found = []
    for pid in sweep.processes():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


def _handles(pid: int) -> bool:
    """Whether the command has handlers of its own by now: SIGUSR1's is the last that it sets."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)
