"""What a person sees while a study runs: lines where nobody watches, a table where somebody does."""

import errno
import io
import os

import pytest

from muxfer.progress import Progress, show_seconds, show_setting
from muxfer.trial import Outcome, Record, Trial
from muxfer.worker import Report


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trial(number):
    setting = {"width": 64, "base_lr": 2.0**-number}
    return Trial(
        key=str(number), setting=setting, replicate=0, task={"training": {"steps": 100}}, cost_flops=1e9 * number
    )


def ended(number, metric):
    outcome = Outcome.DIVERGED if metric is None else Outcome.FINISHED
    record = Record(
        key=str(number), setting=trial(number).setting, replicate=0, outcome=outcome, metric=metric, step=50,
        train_seconds=1.0,
    )  # fmt: skip
    return Report(key=str(number), step=50, record=record)


def drive(stream):
    progress = Progress(stream)
    progress.start([trial(number) for number in (1, 2, 3)], [ended(1, 0.9).record], slots=2)
    progress.update(Report(key="2", step=10))
    progress.update(ended(2, 0.5))
    progress.update(ended(3, None))
    progress.stop()
    return stream.getvalue()


def test_elsewhere_each_event_is_a_line_without_colour():
    lines = drive(io.StringIO()).splitlines()
    assert lines[0] == "3 trials, 1 already done, 2 at a time"
    assert lines[1].startswith("started  width=64 base_lr=2^-2 seed 0 at step 10")
    assert "loss 0.5000 (2/3, " in lines[2]
    assert lines[3].startswith("diverged width=64 base_lr=2^-3 seed 0 at step 50 (3/3, 0s left)")
    assert "\x1b" not in "".join(lines)


def test_a_next_round_is_counted_and_said_once():
    progress = Progress(stream := io.StringIO())
    progress.start([trial(1)], [], slots=1)
    progress.update(ended(1, 0.5))
    progress.more([trial(1), trial(2)])
    progress.more([trial(1), trial(2)])
    progress.update(ended(2, 0.4))
    lines = stream.getvalue().splitlines()
    assert lines[2] == "next round: 1 more"
    assert "(2/2, 0s left)" in lines[3]


def test_on_a_terminal_it_is_a_table_with_the_best_so_far_and_the_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = drive(Terminal())
    assert "3/3 done" in shown
    assert "best 0.5000 at width=64 base_lr=2^-2" in shown
    assert "0s left" in shown
    assert "diverged" in shown


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

    drive_into = Progress(Gone())
    drive_into.start([trial(1)], [], slots=1)
    drive_into.update(ended(1, 0.5))
    drive_into.stop()


def test_values_are_written_as_people_write_them():
    assert show_setting({"base_lr": 2.0**-7, "width": 64, "note": "a"}) == "base_lr=2^-7 width=64 note=a"
    assert [show_seconds(seconds) for seconds in (5, 65, 3720)] == ["5s", "1m05s", "1h02m"]
