"""A study's folder belongs to the drivers of one ledger at a time."""

import subprocess
import sys

import pytest

from muxfer.errors import StudyBusy
from muxfer.ledger.folder_lock import FOLDER_LOCK, hold_folder


def test_folder_is_locked_against_drivers_of_another_ledger(tmp_path):
    home = tmp_path / "lr-width-01234567"
    unlock = hold_folder(home, "one", "sqlite:///one.db, experiment muxfer")
    hold_folder(home, "one", "sqlite:///one.db, experiment muxfer")()  # drivers of one ledger have the lease
    with pytest.raises(StudyBusy, match=r"a driver of another ledger, sqlite:///one.db, experiment muxfer: wait"):
        hold_folder(home, "two", "sqlite:///two.db, experiment muxfer")
    unlock()
    assert not list(home.iterdir())
    hold_folder(home, "two", "sqlite:///two.db, experiment muxfer")()


def test_folder_of_a_killed_driver_is_unlocked(tmp_path):
    code = (
        "import sys; from pathlib import Path; from muxfer.ledger.folder_lock import hold_folder;"
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
