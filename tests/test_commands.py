"""What the commands hand to the parts that they join."""

from muxfer.adapters import ray_sessions
from muxfer.commands import retry
from muxfer.inline import InlineExecutor
from muxfer.plan import grid_trials
from muxfer.progress import Progress
from muxfer.request import driving, open_ledger, request
from muxfer.study import run_study
from muxfer.task import to_plain

TINY = [
    "search.width=[16]",
    "search.base_lr=[2**-6]",
    "model.base_width=16",
    "model.depth=1",
    "model.patch=4",
    "training.steps=4",
    "training.warmup_steps=1",
    "training.batch_size=8",
    "evaluation.timesteps=1",
]


def test_a_retry_keeps_its_files_in_the_folder_of_the_study_that_is_recorded(tmp_path, monkeypatch):
    """The study's driver alone sweeps there; without the override that it was made with, another's is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    recorded = request("lr-width", [*TINY, "optimizer.parametrization=standard"])
    with open_ledger(recorded) as ledger, driving(recorded, recorded.study, ledger, to_plain(recorded.config)) as lease:
        run_study(
            grid_trials(recorded.config, fingerprint=recorded.fingerprint),
            [],
            study=recorded.study,
            ledger=ledger,
            lease=lease,
            start_executor=lambda: InlineExecutor(worker="nowhere:Nobody"),
            folder=recorded.folder,
            progress=Progress(),
        )

    class OnJoinedCluster(InlineExecutor):
        """Leaves its storage as one that is killed does."""

        def __init__(self, compute, *, folder):
            super().__init__()
            ray_sessions.make_storage(folder)

    monkeypatch.setattr("muxfer.adapters.ray_tune.RayExecutor", OnJoinedCluster)
    answer = retry("lr-width", [*TINY, "compute.address=127.0.0.1:6379"], say=print)
    assert (answer.data["retried"], answer.data["failed"]) == (1, 0)
    assert len(list(recorded.home.glob(".ray-*"))) == 1
    assert list(recorded.folder.iterdir()) == [recorded.home]
