"""Other places that the metrics are written to, by transformers' own callbacks; what they keep lies beside the job."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from modelworks.core.errors import Problem
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import Setup


def missing_packages(spec: TrainSpec) -> Iterator[Problem]:
    for package in spec.report_to:
        if find_spec(package) is None:
            yield Problem("report_to", f"{package} is not installed here", f"pip install {package}")


def report_elsewhere(setup: Setup, trainer: Any) -> None:
    """Attach what spec.report_to names."""
    for place in setup.spec.report_to:
        trainer.add_callback(_OPEN[place](setup, trainer))


def _tensorboard(setup: Setup, _trainer: Any) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(_folder(setup, "tensorboard"))))


def _wandb(setup: Setup, _trainer: Any) -> Any:
    import wandb  # type: ignore[import-not-found] # only where it is installed
    from transformers.integrations import WandbCallback

    # Where nobody has logged in it is kept for `wandb sync`; else WANDB_MODE may ask for the same.
    mode = None if wandb.api.api_key else "offline"
    wandb.init(
        project="modelworks", name=setup.spec.published_name, id=setup.job.job_id, resume="allow", mode=mode,
        dir=str(_folder(setup, "wandb")), settings=wandb.Settings(silent=True),
    )  # fmt: skip
    return WandbCallback()


def _mlflow(setup: Setup, _trainer: Any) -> Any:
    import mlflow  # type: ignore[import-not-found] # only where it is installed
    from transformers.integrations import MLflowCallback

    folder = _folder(setup, "mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    if mlflow.get_experiment_by_name("modelworks") is None:
        mlflow.create_experiment("modelworks", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("modelworks")
    mlflow.start_run(run_name=setup.spec.published_name)
    return MLflowCallback()


def _trackio(setup: Setup, trainer: Any) -> Any:
    from transformers.integrations import TrackioCallback

    trainer.args.project, trainer.args.run_name = "modelworks", setup.spec.published_name
    return TrackioCallback()


def _folder(setup: Setup, place: str) -> Any:
    folder = setup.job.checkpoints.parent / "reports" / place
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
