"""A process that trains nothing, but reports as often as a worker. It imports the standard library only.

Each line of stdin is a job, {"key", "reports", "steps", "seconds"}: the number of reports, the steps in each, and the
seconds between two. A report has two curves. Each line of stdout is one report, with the time it was sent on the
system's monotonic clock. A value is a function of key, name and step, so a reader of the ledger knows what is right.
"""

import json
import sys
import time
import zlib

CURVES = ("grad_norm", "train_loss")


def value_of(key: str, name: str, step: int) -> float:
    return zlib.crc32(f"{key} {name} {step}".encode()) / 2**32


def points_of(key: str, steps: range) -> list[tuple[str, int, float]]:
    return [(name, step, value_of(key, name, step)) for step in steps for name in CURVES]


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        due = time.monotonic()
        for number in range(job["reports"]):
            due += job["seconds"]
            time.sleep(max(0.0, due - time.monotonic()))
            steps = range(number * job["steps"] + 1, (number + 1) * job["steps"] + 1)
            report = {"key": job["key"], "step": steps[-1], "points": points_of(job["key"], steps)}
            report |= {"sent": time.monotonic(), "last": number + 1 == job["reports"]}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
