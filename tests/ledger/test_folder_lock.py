"""A study's folder belongs to the drivers of one ledger at a time."""

import subprocess
import sys

import pytest

from muxfer.errors import StudyBusy
from muxfer.ledger.folder_lock import FOLDER_LOCK, hold_folder


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
