"""The installed command works from an empty folder, and no package called conf or sweeps is installed with it."""

import subprocess
import sys
import zipfile

from tests.typed import ROOT, environment


def test_wheel_holds_configurations_and_templates_and_no_other_package(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("muxfer-*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"muxfer", "proxy_models"}
    templates = {path.name for path in (ROOT / "muxfer" / "report" / "templates").iterdir()}
    assert {"page.css", "page.html"} <= templates
    assert {path.name for path in (site / "muxfer" / "report" / "templates").iterdir()} == templates
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import muxfer.cli; print(muxfer.__file__); muxfer.cli.main()", "config", "lr-width"],
        cwd=empty,
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in done.stdout + done.stderr
    assert "base_width: 64" in done.stdout
    assert list(empty.iterdir()) == []
