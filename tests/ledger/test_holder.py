"""The process that holds a lease: written as JSON, read back, and judged alive, dead or unknown."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from muxfer import processes
from muxfer.ledger.holder import Holder
from tests.ledger.lease_doubles import holder_elsewhere


def test_holder_round_trips_through_json():
    holder = dataclasses.replace(Holder.this_process(), ttl_seconds=30.0)
    assert Holder.from_json(holder.to_json()) == holder
    assert holder.alive() is True


@pytest.mark.parametrize(
    ("field", "value"), [("pid", 0), ("ttl_seconds", math.inf), ("ttl_seconds", 1e6), ("ttl_seconds", -1)]
)
def test_holder_with_impossible_pid_or_ttl_is_refused(field, value):
    wrong = json.loads(Holder.this_process().to_json()) | {field: value}
    with pytest.raises(ValueError, match=field):
        Holder.from_json(json.dumps(wrong))


@pytest.mark.parametrize("text", ["", "5", "[]", "{", "null", '{"pid": 1}', None])
def test_text_that_is_not_a_holder_is_refused(text):
    wrong = Holder.this_process().to_json().replace('"pid": ', '"pid": "', 1).replace(", ", '", ', 1)
    with pytest.raises((ValueError, TypeError)):
        Holder.from_json(wrong if text is None else text)


def test_holder_whose_pid_was_reused_is_dead():
    assert dataclasses.replace(Holder.this_process(), started="1").alive() is False


HIDDEN = """
import os, subprocess, sys
from muxfer.ledger.holder import Holder
subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
os.setgid(65534)
os.setuid(65534)
print([Holder.from_json(text).alive() for text in sys.argv[1:]])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="mounts /proc")
def test_process_hidden_by_proc_is_not_taken_for_dead():
    ours = Holder.this_process()
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout
    holders = [holder.to_json() for holder in (ours, dataclasses.replace(ours, pid=int(gone)))]
    command = ["unshare", "--mount", sys.executable, "-c", HIDDEN, *holders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[None, False]", done.stderr


def test_process_with_undecodable_name_is_judged(tmp_path):
    program = tmp_path / os.fsdecode(b"\xff\xfe)")
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        try:
            name = Path(f"/proc/{process.pid}/comm")
            while processes.status(process.pid) is None or name.read_bytes()[:1] != b"\xff":
                time.sleep(0.01)
            assert processes.start_time(process.pid) >= processes.start_time(os.getpid())
            assert dataclasses.replace(Holder.this_process(), pid=process.pid, started="1").alive() is False
        finally:
            process.kill()


def test_process_on_another_host_or_in_another_container_is_unknown():
    assert holder_elsewhere().alive() is None
    assert dataclasses.replace(Holder.this_process(), namespace="pid:[1]").alive() is None
    assert dataclasses.replace(Holder.this_process(), boot="", namespace="").alive() is None


def test_holder_is_silent_only_after_a_known_and_old_heartbeat():
    holder = dataclasses.replace(holder_elsewhere(), ttl_seconds=30.0)
    now = datetime.now().astimezone()
    beats = [None, now, now - timedelta(seconds=200), now - timedelta(seconds=400)]
    assert [dataclasses.replace(holder, beat=beat).silent() for beat in beats] == [False, False, False, True]
