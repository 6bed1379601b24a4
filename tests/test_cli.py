"""The command as a person meets it: one line and the right exit code for bad input, an answer on stdout alone."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from muxfer.cli import main
from muxfer.commands.ui import ui_environment
from muxfer.study import resolve as request
from muxfer.study import session
from tests.typed import ROOT, environment, muxfer, start


def refused(done, exit_code, *told):
    """One line on stderr that says so, nothing on stdout, no traceback."""
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    for words in told:
        assert words in lines[0]


BAD = {
    "an unknown sweep": (["sweep", "lr-widht"], "did you mean 'lr-width'?"),
    "an unknown command": (["sweeep", "lr-width"], "did you mean 'sweep'?"),
    "an unknown option": (["sweep", "lr-width", "--jsn"], "--jsn"),
    "no sweep": (["sweep"], "the NAME of a sweep is missing: isoflop, lr-batch, "),
    "no sweep's help": (["sweep"], "; see python -m muxfer sweep --help"),
    "a value of no kind": (
        ["sweep", "lr-width", "--max-hours", "abc"],
        "float range; see python -m muxfer sweep --help",
    ),
    "an unclosed list": (["sweep", "lr-width", "search.base_lr=[1,2"], "close each bracket"),
    "an unknown key": (["sweep", "lr-width", "model.widht=3"], "did you mean 'model.width'?"),
    "an impossible width": (["sweep", "lr-width", "search.width=[40]"], "not divisible by model.head_dim 16; use 32"),
    "an impossible head dim": (["sweep", "lr-width", "model.head_dim=48"], "not divisible by model.head_dim 48"),
    "an empty grid": (["sweep", "lr-width", "search.base_lr=[]"], "empty grid"),
    "a negative grid": (["sweep", "lr-width", "search.base_lr=[-1]"], "expected numbers above 0"),
    "a folder that is none": (["sweep", "lr-width", "data=image_folder", "data.path=/nowhere"], "/nowhere"),
    "no ledger yet": (["transfer", "lr-width"], "run muxfer sweep lr-width first"),
    "a verdict on nothing": (["verdict", "lr-width"], "run muxfer sweep lr-width first"),
    "an unwritable folder": (["sweep", "lr-width", "output_dir=/proc/nothing"], "output_dir=FOLDER"),
    "a ledger of no kind": (["sweep", "lr-width", "ledger.tracking_uri=ftp://host/x"], "ftp://host/x"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, case):
    arguments, told = BAD[case]
    refused(muxfer(tmp_path, *arguments), 2, told)
    assert [path.name for path in tmp_path.iterdir() if path.name != "muxfer"] == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_ledger_that_does_not_answer_is_4_and_its_password_is_not_shown(tmp_path):
    done = muxfer(tmp_path, "sweep", "lr-width", "ledger.tracking_uri=http://ann:s3cret@127.0.0.1:9")
    assert done.returncode == 4
    assert "s3cret" not in done.stderr + done.stdout
    assert "127.0.0.1:9" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [["compute.device=cuda"], ["compute.slots=4096"]])
def test_resources_that_no_node_has_are_5(tmp_path, more):
    done = muxfer(tmp_path, "sweep", "lr-width", "training.steps=20", *more)
    assert done.returncode == 5, done.stderr
    assert "compute." in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_dashboard_keeps_its_usage_to_itself_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    given = ui_environment()
    assert (given["MLFLOW_DISABLE_TELEMETRY"], "DO_NOT_TRACK" in given) == ("true", False)


def test_config_prints_what_the_sweep_would_run(tmp_path):
    done = muxfer(tmp_path, "config", "lr-width", "model.depth=6")
    assert done.returncode == 0
    assert "depth: 6" in done.stdout
    assert "base_lr:\n  - 2^-9" in done.stdout


def test_a_dry_run_lists_every_trial_and_runs_nothing(tmp_path):
    done = muxfer(tmp_path, "sweep", "lr-width", "--dry-run", "--json", "search.width=[32,64]")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)["trials"]
    assert len(listed) == 14
    assert {trial["state"] for trial in listed} == {"run"}
    flops = {trial["setting"]["width"]: trial["flops"] for trial in listed}
    assert 3 < flops[64] / flops[32] < 4
    assert not (tmp_path / "muxfer").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["transfer", "--help"], ["clean", "--help"]])
def test_help_shows_an_example(tmp_path, arguments):
    done = muxfer(tmp_path, *arguments)
    assert done.returncode == 0
    assert "muxfer " in done.stdout
    assert "lr-width" in done.stdout


def test_on_a_terminal_of_80_columns_no_command_s_description_is_cut(tmp_path):
    listed = muxfer(tmp_path, "--help", COLUMNS="80").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(main.commands)
    assert not [line for line in listed if "..." in line or len(line) > 80]


@contextlib.contextmanager
def driven(folder, name="lr-width", ledger="mlflow.db"):
    """A study of `name` is being driven here, recorded in the ledger of that file; gives its folder."""
    uri = f"ledger.tracking_uri=sqlite:///{folder}/{ledger}"
    asked = request.resolve(name, [uri, f"output_dir={folder}/muxfer"])
    with session.drive(asked):
        (asked.files.path / "trials").mkdir(parents=True)
        yield asked.files.path


def test_a_question_nobody_answers_is_a_no(tmp_path):
    with driven(tmp_path) as home:
        pass
    done = muxfer(tmp_path, "clean", "lr-width")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "muxfer: not confirmed; nothing was done"
    assert home.exists()


def test_clean_takes_the_studies_of_that_name_alone_and_never_an_undelivered_spool(tmp_path):
    with driven(tmp_path) as ours:
        pass
    with driven(tmp_path, "lr-batch") as other:
        pass
    spool = ours / "spool-abc-000001.jsonl"
    spool.write_text("{}\n")
    refused(muxfer(tmp_path, "clean", "lr-width", "--yes"), 2, "holds what the ledger has not taken yet")
    spool.unlink()
    done = muxfer(tmp_path, "clean", "lr-width", "--yes")
    assert (done.returncode, done.stdout) == (0, "removed 1 folders\n")
    assert not ours.exists()
    assert other.exists()


@pytest.mark.slow
def test_clean_leaves_and_names_what_its_ledger_does_not_know_for_another_may_have_a_driver_there(tmp_path):
    with driven(tmp_path, ledger="another.db") as theirs:
        told = f"left {theirs}: what is there is not in the ledger sqlite:///mlflow.db"
        refused(muxfer(tmp_path, "clean", "--yes"), 2, told, "MLFLOW_TRACKING_URI=URI")
        with driven(tmp_path, "lr-batch") as ours:
            pass
        done = muxfer(tmp_path, "clean", "--yes")
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
        assert (theirs.exists(), ours.exists()) == (True, False)
        another = f"sqlite:///{tmp_path}/another.db"
        refused(muxfer(tmp_path, "clean", "--yes", MLFLOW_TRACKING_URI=another), 75, "is being driven")
    assert muxfer(tmp_path, "clean", "--yes", MLFLOW_TRACKING_URI=another).returncode == 0
    assert not theirs.exists()


def test_a_reader_of_progress_that_goes_away_does_not_change_the_exit_code(tmp_path):
    with start(tmp_path, "sweep", "lr-width", "search.width=[40]") as process:
        process.stderr.close()
        assert process.wait(timeout=300) == 2


@pytest.mark.parametrize(("given", "code"), [("nope=1", 2), ("training.steps=30", 0)])
def test_a_log_that_cannot_be_written_does_not_change_the_exit_code(tmp_path, given, code):
    with open("/dev/full", "w") as full:
        done = muxfer(tmp_path, "config", "lr-width", given, stdout=subprocess.DEVNULL, stderr=full)
    assert done.returncode == code


def test_an_answer_that_nobody_reads_does_not_change_the_exit_code(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        done = muxfer(tmp_path, "config", "lr-width", stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [["config", "lr-width"], [], ["--help"], ["sweep", "--help"], ["--version"]], ids=" ".join
)
def test_an_answer_or_a_help_that_cannot_be_written_is_no_success(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        done = muxfer(tmp_path, *arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("muxfer: the answer can't be written to stdout (No space left on device)")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"), [("config lr-width", 0), ("--help", 0), ("sweep nope", 2), ("verdict lr-width", 2)]
)
def test_what_the_caller_closed_does_not_change_the_exit_code_and_gets_into_no_file(tmp_path, closed, arguments, code):
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m muxfer {arguments} {closed}', sys.executable],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "muxfer: " not in done.stdout, "what is for stderr is not said on stdout"
    assert list(tmp_path.iterdir()) == []


STOPPED_WITHIN = """
import os, signal, sys, time
from muxfer.invoke import run_command

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

def finalizing():
    Finalized()
    time.sleep(60)

def importing():
    import swallowing
    time.sleep(60)

run_command(globals()[sys.argv[1]], as_json=False, plugins=())
"""
SWALLOWING = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
except BaseException:
    os._exit(9)
"""


@pytest.mark.parametrize("where", ["finalizing", "importing"])
def test_a_signal_is_not_lost_where_what_a_handler_raises_goes_no_further(tmp_path, where):
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WITHIN, where],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "muxfer: stopped by SIGTERM; type the same command again to go on\n"
