"""What a person sees while a study runs: a live table on a terminal, one line per event elsewhere. Always on stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from muxfer.executors.base import TrialUpdate
from muxfer.redaction import printable, redact
from muxfer.report.format import show_seconds, show_setting
from muxfer.trial import Outcome, Record, Trial


class LossyStream:
    """A text stream that drops what can't be written: a closed or full stderr must not stop the work."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class TerminalProgress:
    """Counts the trials that ended, and estimates the time left from their FLOPs. Draws to `stream`."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream: Any = LossyStream(stream or sys.stderr)
        self.live: Any = None

    def start(self, trials: Sequence[Trial], records: Sequence[Record], *, slots: int) -> None:
        settled = {record.key: record for record in records if record.outcome.settled}
        self.trials = {trial.key: trial for trial in trials}
        self.records = {key: record for key, record in settled.items() if key in self.trials}
        self.steps: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.before, self.began = set(self.records), time.monotonic()
        self._print(f"{len(trials)} trials, {len(self.before)} already done, {slots} at a time")
        if self.stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(file=self.stream), refresh_per_second=4, get_renderable=self._table)
            self.live.start()

    def more(self, trials: Sequence[Trial]) -> None:
        if new := {trial.key: trial for trial in trials if trial.key not in self.trials}:
            self.trials |= new
            self._print(f"next round: {len(new)} more")

    def update(self, update: TrialUpdate) -> None:
        trial = self.trials[update.key]
        if update.record is None:
            if update.key not in self.first:
                self.first[update.key] = update.step
                self._print(f"started  {show_setting(trial.setting)} seed {trial.replicate}")
            self.steps[update.key] = update.step
            return
        self.steps.pop(update.key, None)
        self.records[update.key] = record = update.record
        result = {
            Outcome.FINISHED: f"loss {record.metric:.4f}" if record.metric is not None else "",
            Outcome.DIVERGED: f"at step {record.step}",
            Outcome.FAILED: record.error or "",
        }.get(record.outcome, "")
        resumed = f", resumed at step {record.resumed_at}" if record.resumed_at else ""
        self._print(
            f"{record.outcome:<8} {show_setting(trial.setting)} seed {trial.replicate} {result}{resumed}"
            f" ({len(self.records)}/{len(self.trials)}, {self._time_left()} left)"
        )

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _print(self, line: str) -> None:
        if self.live is None:
            print(printable(redact(line)), file=self.stream, flush=True)

    def _time_left(self) -> str:
        """Time left: the FLOPs still to do over the rate since this command started. Earlier commands do not count."""
        records, steps, first = dict(self.records), dict(self.steps), dict(self.first)
        left = done = 0.0
        for key, trial in list(self.trials.items()):
            if key in self.before:
                continue
            record = records.get(key)
            step = steps.get(key, 0) if record is None else record.step
            begun = first.get(key, step)
            if record is not None and record.outcome is not Outcome.FAILED:  # the record has the exact step
                begun = min(begun, record.resumed_at)
            step_flops = trial.cost_flops / trial.task["training"]["steps"]
            done += max(0, step - begun) * step_flops
            left += trial.cost_flops - step * step_flops if record is None else 0.0
        elapsed = time.monotonic() - self.began
        return show_seconds(left * elapsed / done) if done else "?"

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # A thread of rich draws while updates arrive: copy what they change.
        records, steps = list(self.records.values()), dict(self.steps)
        finished = [record for record in records if record.metric is not None]
        best = min(finished, key=lambda record: record.metric or 0.0, default=None)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("trial", "seed", "step", "loss"):
            table.add_column(column, justify="left" if column == "trial" else "right", no_wrap=True)
        for record in records[-6:]:
            loss = f"{record.metric:.4f}" if record.metric is not None else f"[red]{record.outcome}[/red]"
            style = "bold green" if record is best else "dim"
            table.add_row(show_setting(record.setting), str(record.replicate), str(record.step), loss, style=style)
        for key, step in steps.items():
            trial = self.trials[key]
            last = trial.task["training"]["steps"]
            table.add_row(show_setting(trial.setting), str(trial.replicate), f"{step}/{last}", "…")
        lowest = f"lowest {best.metric:.4f} at {show_setting(best.setting)}" if best is not None else "no result yet"
        line = f"{len(records)}/{len(self.trials)} done · {lowest} · {self._time_left()} left"
        return Group(table, Text(line, style="italic"))
