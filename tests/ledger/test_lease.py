"""One driver at a time, by epochs and heartbeats; no clock on a wall has a say."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from muxfer import processes
from muxfer.errors import BadInput, LedgerUnreachable, StudyBusy
from muxfer.ledger.folder_lock import FOLDER_LOCK, hold_folder
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import WATCHES, Claims, acquire


class Shelf:
    """A lease store in memory; `away` makes it unreachable."""

    def __init__(self):
        self.lock = threading.Lock()
        self.claims = {}
        self.released = set()
        self.count = 0
        self.away = False
        self.refused = None
        self.beaten = threading.Event()

    def read(self):
        if self.away:
            raise LedgerUnreachable("away")
        if self.refused is not None:
            raise self.refused
        with self.lock:
            epoch = max(self.claims, default=0)
            holder = self.claims.get(epoch)
            holders = () if holder is None or holder.token in self.released else (holder,)
            return Claims(epoch=epoch, holders=holders, beats={"": str(self.count)})

    def claim(self, epoch, holder):
        with self.lock:
            return self.claims.setdefault(epoch, holder) == holder

    def beat(self, epoch, count):
        self.count += 1
        self.beaten.set()

    def let_go(self, epoch, holder):
        self.released.add(holder.token)


class Nap:
    """A sleep that takes no time; `meanwhile` happens at each one."""

    def __init__(self, meanwhile=lambda: None):
        self.seconds = 0.0
        self.meanwhile = meanwhile

    def __call__(self, seconds):
        self.seconds += seconds
        self.meanwhile()


def elsewhere(token="t"):
    return dataclasses.replace(Holder.this_process(), host="node7", boot="another", token=token)


def never(seconds):
    raise AssertionError("must not wait")


def test_a_holder_survives_json():
    holder = dataclasses.replace(Holder.this_process(), ttl_seconds=30.0)
    assert Holder.from_json(holder.to_json()) == holder
    assert holder.alive() is True


@pytest.mark.parametrize(
    ("field", "value"), [("pid", 0), ("ttl_seconds", math.inf), ("ttl_seconds", 1e6), ("ttl_seconds", -1)]
)
def test_a_holder_for_whom_nobody_could_wait_is_refused(field, value):
    wrong = json.loads(Holder.this_process().to_json()) | {field: value}
    with pytest.raises(ValueError, match=field):
        Holder.from_json(json.dumps(wrong))


@pytest.mark.parametrize("text", ["", "5", "[]", "{", "null", '{"pid": 1}', None])
def test_what_is_no_holder_is_refused(text):
    wrong = Holder.this_process().to_json().replace('"pid": ', '"pid": "', 1).replace(", ", '", ', 1)
    with pytest.raises((ValueError, TypeError)):
        Holder.from_json(wrong if text is None else text)


def test_a_pid_that_was_given_to_another_process_is_dead():
    assert dataclasses.replace(Holder.this_process(), started="1").alive() is False


HIDDEN = """
import os, subprocess, sys
from muxfer.lease import Holder
subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
os.setgid(65534)
os.setuid(65534)
print([Holder.from_json(text).alive() for text in sys.argv[1:]])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="mounts /proc")
def test_a_process_that_proc_hides_is_not_taken_for_dead():
    ours = Holder.this_process()
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout
    looked = subprocess.run(
        [
            "unshare",
            "--mount",
            sys.executable,
            "-c",
            HIDDEN,
            ours.to_json(),
            dataclasses.replace(ours, pid=int(gone)).to_json(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert looked.stdout.strip() == "[None, False]", looked.stderr


def test_a_name_that_is_no_text_does_not_hide_a_process(tmp_path):
    program = tmp_path / os.fsdecode(b"\xff\xfe)")
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        try:
            while (
                processes.status(process.pid) is None or (Path(f"/proc/{process.pid}/comm").read_bytes())[:1] != b"\xff"
            ):
                time.sleep(0.01)
            assert processes.start_time(process.pid) >= processes.start_time(os.getpid())
            assert dataclasses.replace(Holder.this_process(), pid=process.pid, started="1").alive() is False
        finally:
            process.kill()


def test_another_host_or_container_cannot_be_judged_by_pid():
    assert elsewhere().alive() is None
    assert dataclasses.replace(Holder.this_process(), namespace="pid:[1]").alive() is None
    assert dataclasses.replace(Holder.this_process(), boot="", namespace="").alive() is None


def test_a_heart_that_has_not_beaten_for_long_is_silent_and_one_of_which_nothing_is_known_is_not():
    holder = dataclasses.replace(elsewhere(), ttl_seconds=30.0)
    now = datetime.now().astimezone()
    beats = [None, now, now - timedelta(seconds=200), now - timedelta(seconds=400)]
    assert [dataclasses.replace(holder, beat=beat).silent() for beat in beats] == [False, False, False, True]


def test_a_living_holder_here_is_busy_at_once_and_named():
    shelf = Shelf()
    lease = acquire(shelf, "s-1", ttl_seconds=60)
    with pytest.raises(StudyBusy, match=rf"study s-1 .*pid {os.getpid()} on host .*stop it"):
        acquire(shelf, "s-1", ttl_seconds=60, sleep=never)
    lease.release()
    assert acquire(shelf, "s-1", ttl_seconds=60, sleep=never).epoch == 2


def test_a_dead_holder_here_is_taken_over_at_once():
    shelf = Shelf()
    shelf.claim(1, dataclasses.replace(Holder.this_process(), started="1"))
    assert acquire(shelf, "s", ttl_seconds=60, sleep=never).epoch == 2


@pytest.mark.parametrize("theirs", [1.0, 60.0])
def test_a_silent_holder_elsewhere_is_taken_over_after_the_longer_time_to_live(theirs):
    shelf, nap = Shelf(), Nap()
    shelf.claim(1, dataclasses.replace(elsewhere(), ttl_seconds=theirs))
    assert acquire(shelf, "s", ttl_seconds=30, sleep=nap).epoch == 2
    assert nap.seconds == pytest.approx(max(theirs, 30))


@pytest.mark.parametrize("step", [3600, 86400, -3600, -86400])
def test_no_clock_that_steps_makes_a_living_holder_silent_or_a_wait_longer(step, monkeypatch):
    """Every clock there is jumps at each look: the holder beats once in a time-to-live, and is not taken over."""
    shelf, jumps = Shelf(), []
    shelf.claim(1, elsewhere())
    for name in ("time", "monotonic", "perf_counter"):
        true = getattr(time, name)
        monkeypatch.setattr(time, name, lambda true=true: true() + sum(jumps))

    def jump():
        jumps.append(step)
        if len(jumps) == WATCHES:
            shelf.beat(1, 0)

    nap = Nap(jump)
    with pytest.raises(StudyBusy, match="node7"):
        acquire(shelf, "s", ttl_seconds=30, sleep=nap)
    assert nap.seconds == pytest.approx(30)


def test_a_beating_holder_elsewhere_is_busy():
    shelf = Shelf()
    shelf.claim(1, elsewhere())
    with pytest.raises(StudyBusy, match="node7"):
        acquire(shelf, "s", ttl_seconds=30, sleep=Nap(lambda: shelf.beat(1, 0)))


def test_a_holder_that_lets_go_while_we_watch_is_followed():
    shelf = Shelf()
    shelf.claim(1, elsewhere("a"))
    assert acquire(shelf, "s", ttl_seconds=30, sleep=Nap(lambda: shelf.released.add("a"))).epoch == 2


def test_of_many_who_start_at_once_one_wins():
    shelf, start, won, lost = Shelf(), threading.Barrier(8), [], []

    def drive():
        start.wait()
        try:
            won.append(acquire(shelf, "s", ttl_seconds=60))
        except StudyBusy:
            lost.append(1)

    drivers = [threading.Thread(target=drive) for _ in range(8)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert (len(won), len(lost)) == (1, 7)


@pytest.mark.parametrize(
    ("last", "borne", "epoch"), [(0, 0, 1), (0, 6, 7), (2, 1, 3), (2, 2, 3), (2, 3, 4), (2, 9, 10)]
)
def test_a_lease_is_claimed_above_all_that_the_study_bears(last, borne, epoch):
    """A store that came out of a backup, or another one, knows of no epoch that a spool or an attempt bears."""
    shelf = Shelf()
    if last:
        shelf.claim(last, elsewhere())
        shelf.let_go(last, elsewhere())
    lease = acquire(shelf, "s", ttl_seconds=60, sleep=never, borne=lambda: borne)
    assert lease.epoch == epoch == shelf.read().epoch
    lease.release()
    assert acquire(shelf, "s", ttl_seconds=60, sleep=never).epoch == epoch + 1


def test_of_hosts_that_start_at_once_and_know_of_different_epochs_one_wins():
    shelf, read, won, lost = Shelf(), threading.Barrier(4), [], []

    def drive(number):
        asked = []

        def borne():
            if not asked:
                asked.append(read.wait())
            return number

        try:
            won.append(acquire(shelf, "s", ttl_seconds=60, borne=borne))
        except StudyBusy:
            lost.append(number)

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert (len(won), len(lost)) == (1, 3)
    assert won[0].held()
    assert not won[0].overtaken()


@pytest.mark.parametrize("before", [["loser"], ["loser", "winner"]])
def test_who_loses_a_race_over_a_fresh_study_is_not_named_as_its_driver(before):
    """Its claims on runs that the winner had not seen stand until it finds that it lost."""
    us = Holder.this_process()
    holders = {name: dataclasses.replace(us, token=name, since=f"the {name}'s time") for name in ("loser", "winner")}
    shelf = Shelf()
    standing = [holders[name] for name in before]
    shelf.read = lambda: Claims(epoch=1, holders=tuple(standing), beats={"one run": "", "another": ""})
    naps = iter(range(100))

    def let_go():
        standing[:] = [holders["winner"]] if next(naps) else [holders["loser"], holders["winner"]]

    with pytest.raises(StudyBusy, match="the winner's time"):
        acquire(shelf, "s", ttl_seconds=30, sleep=Nap(let_go))


def test_a_holder_finds_itself_fenced_and_lets_nothing_go():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.claim(2, elsewhere("other"))
    lease._beating.join()
    assert not lease.held()
    assert lease.lost
    lease.release()
    assert shelf.released == set()


@pytest.mark.parametrize("claimed", [None, 6, 7, 8])
def test_a_holder_whose_store_came_out_of_a_backup_finds_itself_fenced(claimed):
    shelf = Shelf()
    shelf.claim(6, dataclasses.replace(Holder.this_process(), started="1"))
    lease = acquire(shelf, "s", ttl_seconds=600)
    shelf.beaten.wait()
    assert lease.epoch == 7
    shelf.claims = {5: elsewhere("earlier")}
    if claimed:
        shelf.claim(claimed, elsewhere("other"))
    assert lease.overtaken()
    assert not lease.held()
    lease.release()
    assert shelf.released == set()


def test_a_holder_that_asks_is_told_before_its_next_heartbeat():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=600)
    shelf.beaten.wait()
    assert not lease.overtaken()
    shelf.claim(2, elsewhere("other"))
    shelf.away = True
    assert not lease.overtaken()
    shelf.away = False
    assert lease.overtaken()
    assert not lease.held()
    lease.release()
    assert shelf.released == set()


def test_a_holder_that_was_stopped_asks_before_it_writes():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=600)
    shelf.beaten.wait()
    shelf.claim(2, elsewhere("other"))
    assert lease.surely_held(), "within a time-to-live nobody can have taken over: it does not ask"
    lease._looked -= 601
    shelf.away = lease._away = True  # cut off alone: the others may have seen no beat of ours
    with pytest.raises(LedgerUnreachable):
        lease.surely_held()
    shelf.away = False
    assert not lease.surely_held()
    lease.release()
    assert shelf.released == set()


def test_a_holder_that_may_not_read_its_lease_any_more_ends():
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.refused = BadInput("written by a newer muxfer")
    lease._beating.join()
    assert not lease.held()
    lease.release()
    assert shelf.released == set()


@pytest.mark.parametrize("how", [{"away": True}, {"refused": RuntimeError("of a kind that nobody thought of")}])
def test_an_outage_fences_nobody_and_stops_no_heart(how):
    shelf = Shelf()
    lease = acquire(shelf, "s", ttl_seconds=0.03)
    shelf.beaten.wait()
    vars(shelf).update(how)
    while not lease._away:
        pass
    assert lease.held()
    shelf.beaten.clear()
    shelf.away, shelf.refused = False, None
    shelf.beaten.wait()
    assert lease.held()
    lease.release()
    assert not lease.held()


def test_a_folder_is_kept_to_the_drivers_of_one_ledger(tmp_path):
    home = tmp_path / "lr-width-01234567"
    let_in = hold_folder(home, "one", "sqlite:///one.db, experiment muxfer")
    hold_folder(home, "one", "sqlite:///one.db, experiment muxfer")()  # its lease says whether this one may
    with pytest.raises(StudyBusy, match=r"a driver of another ledger, sqlite:///one.db, experiment muxfer: wait"):
        hold_folder(home, "two", "sqlite:///two.db, experiment muxfer")
    let_in()
    assert not list(home.iterdir())
    hold_folder(home, "two", "sqlite:///two.db, experiment muxfer")()


def test_the_folder_of_a_driver_that_was_killed_is_free(tmp_path):
    code = (
        "import sys; from pathlib import Path; from muxfer.lease import hold_folder;"
        " held = hold_folder(Path(sys.argv[1]), 'one', 'x'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(StudyBusy):
                hold_folder(tmp_path, "two", "y")
        finally:
            holder.kill()
    assert (tmp_path / FOLDER_LOCK).read_text() == "one x"
    hold_folder(tmp_path, "two", "y")()
    assert not (tmp_path / FOLDER_LOCK).exists()
