"""What the commands hand to the parts that they join."""

import os
import shutil
from pathlib import Path

import pytest

from muxfer.commands.clean import clean
from muxfer.commands.retry import retry
from muxfer.commands.sweep import sweep
from muxfer.errors import BadInput
from muxfer.executors import ray_sessions
from muxfer.executors.inline import InlineExecutor
from muxfer.study.resolve import Request, resolve
from muxfer.study.session import open_ledger
from tests.small_sweeps import TINY, run_trials
from tests.typed import muxfer

pytestmark = pytest.mark.slow


@pytest.fixture
def failed(empty_folder: Path) -> Request:
    """A study in the current folder, whose one trial has failed."""
    asked = resolve("lr-width", TINY)
    run_trials(asked, InlineExecutor(worker="nowhere:Nobody"))
    return asked


def test_a_retry_leaves_what_another_driver_settled_while_it_waited(failed: Request) -> None:
    answer = retry("lr-width", TINY, print_line=lambda line: run_trials(failed) if "once more" in line else None)
    assert (answer.data["retried"], answer.data["trials"]) == (0, [])
    assert list(failed.files.path.glob("trials/*/attempt-*/step-*")), "the other's checkpoint"
    with open_ledger(failed) as ledger:
        assert [record.metric is None for record in ledger.records(failed.study)] == [False]


@pytest.fixture
def trained(empty_folder: Path) -> Request:
    """A study in the current folder, all of it trained, and its page written."""
    asked = resolve("lr-width", TINY)
    run_trials(asked)
    sweep("lr-width", TINY, print_line=print)
    return asked


def test_a_page_goes_to_another_ledger_too_once_that_holds_the_study(
    trained: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pages() -> dict[Path, int]:
        return {page: page.stat().st_mtime_ns for page in tmp_path.rglob("report.html")}

    before = pages()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    run_trials(trained)
    sweep("lr-width", TINY, print_line=print)
    assert len(after := pages()) == len(before) + 1
    sweep("lr-width", TINY, print_line=print)
    assert pages() == after, "there was nothing to do"


def test_a_pipe_in_the_place_of_a_pages_stamp_is_not_waited_for(trained: Request, tmp_path: Path) -> None:
    stamp = trained.files.path / "report.of"
    kept = stamp.read_bytes()
    stamp.unlink()
    os.mkfifo(stamp)
    done = muxfer(tmp_path, "sweep", "lr-width", *TINY)
    assert done.returncode == 0, done.stderr
    assert stamp.read_bytes() == kept


def test_a_folder_in_the_place_of_a_pages_stamp_is_refused(trained: Request) -> None:
    stamp = trained.files.path / "report.of"
    stamp.unlink()
    stamp.mkdir()
    with pytest.raises(BadInput, match=r"report\.of can't be written .Is a directory."):
        sweep("lr-width", TINY, print_line=print)


def test_a_study_that_was_moved_and_linked_is_not_cleaned_and_the_line_says_where_it_is(
    failed: Request, tmp_path: Path
) -> None:
    moved = failed.files.path.rename(tmp_path / "larger disk")
    failed.files.path.symlink_to(moved)
    with pytest.raises(BadInput, match=f"is a link to {moved}: remove the link and what it leads to by hand"):
        clean("lr-width", [], confirmed=lambda line: True)
    assert (failed.files.path.is_symlink(), moved.is_dir()) == (True, True)


def test_what_cannot_be_removed_is_told_in_one_line(failed: Request) -> None:
    def replaced(line: str) -> bool:
        shutil.rmtree(failed.files.path)
        failed.files.path.write_text("somebody else's")
        return True

    with pytest.raises(BadInput, match="can't be removed as a whole .Not a directory.: mend that, then run the same"):
        clean("lr-width", [], confirmed=replaced)
    assert failed.files.path.read_text() == "somebody else's"


def test_a_spool_of_another_ledger_is_left_to_that_one(failed: Request) -> None:
    spool = failed.files.path / "spool-0123abcd-000001.jsonl"
    spool.write_text("{}\n")
    with pytest.raises(
        BadInput, match="let muxfer sweep lr-width finish first with the ledger that it was written for"
    ):
        clean("lr-width", [], confirmed=lambda line: True)
    assert spool.exists()


def test_a_retry_keeps_its_files_in_the_folder_of_the_study_that_is_recorded(empty_folder, monkeypatch):
    """The study's driver alone sweeps there; without the override that it was made with, another's is asked for."""
    recorded = resolve("lr-width", [*TINY, "optimizer.parametrization=standard"])
    run_trials(recorded, InlineExecutor(worker="nowhere:Nobody"))

    class OnJoinedCluster(InlineExecutor):
        """Leaves its storage as one that is killed does."""

        def __init__(self, compute, *, folder):
            super().__init__()
            ray_sessions.make_storage(folder)

    monkeypatch.setattr("muxfer.executors.ray_tune.RayExecutor", OnJoinedCluster)
    answer = retry("lr-width", [*TINY, "compute.address=127.0.0.1:6379"], print_line=print)
    assert (answer.data["retried"], answer.data["failed"]) == (1, 0)
    assert len(list(recorded.files.path.glob(".ray-*"))) == 1
    assert list(recorded.folder.iterdir()) == [recorded.files.path]
