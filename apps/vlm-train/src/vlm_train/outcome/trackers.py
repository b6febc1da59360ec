"""The trackers of accelerate, by name: TensorBoard, Weights & Biases, MLflow and others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig

PACKAGES = {"comet_ml": "comet-ml"}  # where the tracker is not called what its package is
OWN_EXTRAS = ("tensorboard", "wandb")


def check_trackers(config: TrainConfig) -> list[str]:
    """The names in `--track`. Raises ConfigError: one is unknown, or its package is not installed."""
    if config.track is None:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # takes a second

    names = [name.strip() for name in config.track.split(",")]
    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"--track {name!r} is unknown; known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in installed:
            package = f"'vlm-train[{name}]'" if name in OWN_EXTRAS else PACKAGES.get(name, name)
            raise ConfigError(f"--track {name}: it is not installed; pip install {package}")
    return list(dict.fromkeys(names))


class Trackers:
    """What `--track` names, open for one run; those that write files write them to `FOLDER/tracking`."""

    def __init__(self, config: TrainConfig, folder: Path):
        self._open = []
        names = check_trackers(config)
        if not names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # the trackers ask it which process they are in
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": str(folder / "tracking")} if kind.requires_logging_directory else {}
            tracker = kind(folder.name, **where)
            tracker.start()
            tracker.store_init_configuration(
                {option: "none" if value is None else value for option, value in config.as_dict().items()}
            )
            self._open.append(tracker)

    def log(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: numbers, and the step that they are of."""
        values = {name: value for name, value in record.items() if name != "step" and isinstance(value, int | float)}
        for tracker in self._open:
            tracker.log(values, step=record["step"])

    def finish(self) -> None:
        for tracker in self._open:
            tracker.finish()
