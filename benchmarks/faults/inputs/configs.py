"""Malformed, enormous and mutated configurations. Each must end as a plan, or as one line and exit 2.

Three kinds are mutated: override strings, YAML files in ./sweeps and ./conf, and plain data as Hydra composes them. A
mutation may happen to be valid; then it must lead to trials. No case may take five seconds of processor time.
"""

import copy
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.refusals import COMMAND_SECONDS, TooLong, limited, refusal, run_command
from benchmarks.faults.harness.sweep import new_folder
from benchmarks.faults.inputs import config_mutations as mutations
from benchmarks.faults.inputs.config_mutations import FILES, NAME
from muxfer.config.hydra_compose import compose
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse
from muxfer.errors import BadInput
from muxfer.redaction import one_line
from muxfer.study.resolve import output_folder, resolve
from muxfer.study.rounds import proposing
from muxfer.study.trials import study_of

MIN_REFUSED = 0.5
"""At least this share of a batch must be refused, else it tests few refusals. 96 to 98 of 100 were refused."""


def in_process(seed: int, folder: Path, faults: int) -> int:
    """Mutate, compose, parse, and list the trials: a plan, or BadInput in one line. No file may be made."""
    rng = random.Random(seed)
    os.environ.pop("NOT_SET", None)
    os.chdir(folder)
    before = sorted(folder.rglob("*"))
    plain = compose("lr-width")
    for text in FILES:
        mutations.write_file(folder / "sweeps" / f"{NAME}.yaml", text.encode())
        with limited():
            assert refusal(lambda: _plan(NAME, [])), f"it was accepted: {text[:300]!r}"
    shutil.rmtree(folder / "sweeps")
    refused = 0
    for number in range(faults):
        mutation, act = _mutation(rng, folder, plain)
        try:
            with limited():
                act()
        except BadInput as error:
            refused += 1
            line = one_line(str(error))
            assert 0 < len(line) <= 1000, f"{number}: {mutation}: {line!r}"
            assert line.isprintable(), f"{number}: {mutation}: {line!r}"
        except (Exception, TooLong) as error:
            raise AssertionError(f"{number}: {type(error).__name__}: {error}: {mutation}") from error
        for file in (folder / "sweeps", folder / "conf"):
            subprocess.run(["rm", "-rf", str(file)], check=True) if file.exists() else None
        assert sorted(folder.rglob("*")) == before, f"{number}: a file was made: {mutation}"
    assert refused >= MIN_REFUSED * faults, f"only {refused} of {faults} were refused"
    return faults


def by_command(seed: int, folder: Path, faults: int) -> int:
    """The same through the real command: exit 2 with one line, or a valid result; never a traceback."""
    rng = random.Random(seed)
    refused = 0
    for number in range(faults):
        home = new_folder(folder)
        special = False
        if rng.random() < 0.5:
            arguments = mutations.mutated_overrides(rng)
        else:
            special = rng.random() < 0.4
            arguments = mutations.special_file(rng, home) if special else mutations.mutated_file(rng, home)
        file = home / "sweeps" / f"{NAME}.yaml"
        name = NAME if file.is_symlink() or file.parent.is_dir() else "lr-width"
        invalid = special or (file.is_file() and file.read_bytes() in {text.encode() for text in FILES})
        command, more = rng.choice([("sweep", ["--dry-run"]), ("plan", []), ("config", []), ("sweep", ["--dry-run"])])
        arguments = [word for word in arguments if "\0" not in word]
        code, out, err, seconds = run_command(home, [command, name, *more, "--", *arguments])
        shown = f"{number}: muxfer {command} {name} {str(arguments)[:300]} in {home}: {err[-1500:]}"
        assert code in ((2,) if invalid else (0, 2)), f"exit {code}: {shown}"
        refused += code == 2
        assert "Traceback" not in err, shown
        assert seconds < COMMAND_SECONDS, f"{seconds:.1f} s: {shown}"
        if code == 2:
            assert out == "", shown
            assert err.startswith("muxfer: "), shown
            assert err.count("\n") == 1, shown
        assert not (home / "canary").exists(), shown
    assert refused >= MIN_REFUSED * faults, f"only {refused} of {faults} were refused"
    return faults


def _mutation(rng: random.Random, folder: Path, plain: Mapping[str, Any]) -> tuple[str, Callable[[], None]]:
    """A description of a random mutation, and the call that plans with it."""
    kind = rng.random()
    if kind < 0.4:
        overrides = mutations.mutated_overrides(rng)
        return f"overrides {overrides}"[:3000], lambda: _plan("lr-width", overrides)
    if kind < 0.6:
        overrides = mutations.mutated_file(rng, folder)
        texts = [file.read_bytes()[:1500] for file in folder.rglob("*.yaml")]
        name = NAME if (folder / "sweeps").is_dir() else "lr-width"
        return f"{name} {overrides}, files {texts}", lambda: _plan(name, overrides)
    data = mutations.mutated_data(rng, copy.deepcopy(dict(plain)))
    try:
        text = f"data {data}"[:5000]
    except (RecursionError, ValueError):  # too deep to be written, or a number that is too long
        text = f"data of {', '.join(map(str, data))}"[:5000]
    return text, lambda: _plan_of(data)


def _plan(name: str, overrides: Sequence[str]) -> None:
    """Do what `muxfer sweep NAME --dry-run` does, up to the list of trials."""
    request = resolve(name, overrides, planned=True)
    proposing(request.config, fingerprint=request.fingerprint)([])


def _plan_of(data: Mapping[str, Any]) -> None:
    config = parse(data)
    config = replace(config, model=with_num_classes(config.model, 10))
    study_of("lr-width", config, fingerprint="0" * 16)
    output_folder(config)
    proposing(config, fingerprint="0" * 16)([])
