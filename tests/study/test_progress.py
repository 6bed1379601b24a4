"""What a person sees while a study runs: lines where nobody watches, a table where somebody does."""

import dataclasses
import errno
import io
import os
from types import SimpleNamespace

import pytest

from muxfer.executors.base import TrialUpdate
from muxfer.report.format import show_seconds, show_setting
from muxfer.study.progress import TerminalProgress
from muxfer.trial import Outcome, Trial
from tests.synthetic import settled


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trial(number):
    setting = {"width": 64, "base_lr": 2.0**-number}
    return Trial(
        key=str(number), setting=setting, replicate=0, task={"training": {"steps": 100}}, cost_flops=1e9 * number
    )


def ended(number, metric, *, step=50, resumed_at=0):
    more = {"resumed_at": resumed_at, "train_seconds": 1.0}
    record = settled(trial(number).setting, metric, key=str(number), step=step, **more)
    return TrialUpdate(key=str(number), step=step, record=record)


def failed(number, *, step):
    record = dataclasses.replace(ended(number, None, step=step).record, outcome=Outcome.FAILED, error="broken")
    return TrialUpdate(key=str(number), step=step, record=record)


def drive(stream):
    progress = TerminalProgress(stream)
    progress.start([trial(number) for number in (1, 2, 3)], [ended(1, 0.9).record], slots=2)
    progress.update(TrialUpdate(key="2", step=10))
    progress.update(ended(2, 0.5))
    progress.update(ended(3, None))
    progress.stop()
    return stream.getvalue()


def test_elsewhere_each_event_is_a_line_without_colour():
    lines = drive(io.StringIO()).splitlines()
    assert lines[0] == "3 trials, 1 already done, 2 at a time"
    assert lines[1] == "started  width=64 base_lr=2^-2 seed 0"
    assert "loss 0.5000 (2/3, " in lines[2]
    assert lines[3].startswith("diverged width=64 base_lr=2^-3 seed 0 at step 50 (3/3, 0s left)")
    assert "\x1b" not in "".join(lines)


def test_a_next_round_is_counted_and_said_once():
    progress = TerminalProgress(stream := io.StringIO())
    progress.start([trial(1)], [], slots=1)
    progress.update(ended(1, 0.5))
    progress.more([trial(1), trial(2)])
    progress.more([trial(1), trial(2)])
    progress.update(ended(2, 0.4))
    lines = stream.getvalue().splitlines()
    assert lines[2] == "next round: 1 more"
    assert "(2/2, 0s left)" in lines[3]


def test_on_a_terminal_it_is_a_table_with_the_lowest_loss_so_far_and_the_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = drive(Terminal())
    assert "3/3 done" in shown
    assert "lowest 0.5000 at width=64 base_lr=2^-2" in shown
    assert "0s left" in shown
    assert "diverged" in shown


def test_a_step_is_named_of_a_trial_that_was_resumed_alone():
    progress = TerminalProgress(stream := io.StringIO())
    progress.start([trial(1), trial(2)], [], slots=2)
    progress.update(TrialUpdate(key="1", step=34))
    progress.update(TrialUpdate(key="2", step=74))
    progress.update(ended(1, 0.5))
    progress.update(ended(2, 0.4, step=100, resumed_at=70))
    _, fresh, resumed, fresh_ended, resumed_ended = stream.getvalue().splitlines()
    assert "step" not in fresh + resumed + fresh_ended
    assert "loss 0.4000, resumed at step 70 (2/2, " in resumed_ended


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: Progress takes its time from it alone."""
    now = [0.0]
    monkeypatch.setattr("muxfer.study.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_what_an_earlier_command_trained_does_not_count_as_this_ones_speed(clock):
    progress = TerminalProgress(io.StringIO())
    progress.start([trial(1)], [], slots=1)
    progress.update(TrialUpdate(key="1", step=90))
    assert progress._time_left() == "?", "nobody knows yet how fast it is"
    clock[0] = 8.0
    progress.update(TrialUpdate(key="1", step=94))
    assert progress._time_left() == "12s", "6 steps at 2 s each"


ENDS = {
    "resumed": ([90], ended(1, 0.5, step=100, resumed_at=80), 100),
    "over at its first report": ([], ended(1, 0.5, step=100, resumed_at=80), 100),
    "fresh": ([30], ended(1, 0.5, step=100), 20),
    "diverged": ([], ended(1, None, step=20), 100),
    "its process died and it was resumed": ([30, 90, 60], ended(1, 0.5, step=100, resumed_at=55), 29),
    "resumed, and failed": ([90], failed(1, step=95), 400),
}


@pytest.mark.parametrize(("first", "last", "left"), ENDS.values(), ids=ENDS)
def test_nor_does_it_once_the_trial_is_over(clock, first, last, left):
    progress = TerminalProgress(io.StringIO())
    other = dataclasses.replace(trial(1), key="other")
    progress.start([trial(1), other], [], slots=1)
    for step in first:
        progress.update(TrialUpdate(key="1", step=step))
    clock[0] = 20.0
    progress.update(last)
    assert progress._time_left() == show_seconds(left)


def test_no_color_is_kept(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in drive(Terminal())


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_went_away_and_a_full_disk_stop_nothing(error, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")

    class Gone(io.StringIO):
        def isatty(self):
            return terminal

        def write(self, text):
            raise OSError(error, os.strerror(error))

        def flush(self):
            self.write("")

    drive_into = TerminalProgress(Gone())
    drive_into.start([trial(1)], [], slots=1)
    drive_into.update(ended(1, 0.5))
    drive_into.stop()


def test_values_are_written_as_people_write_them():
    assert show_setting({"base_lr": 2.0**-7, "width": 64, "note": "a"}) == "base_lr=2^-7 width=64 note=a"
    assert [show_seconds(seconds) for seconds in (5, 65, 3720)] == ["5s", "1m05s", "1h02m"]
