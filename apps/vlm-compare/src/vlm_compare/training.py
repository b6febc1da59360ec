"""Each cell is a run of vlm-train in a folder of its own, and in a process of its own, which gives its peak memory."""

import json
import subprocess
import sys
from pathlib import Path

from vlm_compare.cells import Cell, same_conditions
from vlm_train.errors import ConfigError, TrainError
from vlm_train.options.config import TrainConfig
from vlm_train.options.config_file import effective


def status_of(folder: Path, config: TrainConfig) -> str:
    """ "absent", "begun" or "done".

    Raises ConfigError: the run in the folder was made under other conditions.
    """
    file = folder / "run.json"
    if not file.exists():
        return "absent"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        recorded, status = record["config"], record["status"]
    except (ValueError, KeyError):
        raise ConfigError(f"{file}: is damaged; remove {folder} to train it again") from None
    if name := same_conditions(recorded, config):
        asked, was = getattr(config, name), recorded.get(name)
        raise ConfigError(f"{folder}: has {name} {was}, and {asked} is asked for; choose another --out")
    return "done" if status == "done" else "begun"


def train_cell(cell: Cell, config: TrainConfig, folder: Path) -> None:
    """Train a cell, or go on with it. Its configuration is written beside its folder, to be run by hand too.

    Raises TrainError: vlm-train failed; the message is its last line. ConfigError: its folder cannot be made.
    """
    if status_of(folder, config) == "begun":
        arguments = ["--resume", str(folder)]
    else:
        file = folder.with_name(f"{cell.name}.yaml")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(effective(config, {}), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out: {file} cannot be written ({error.strerror}); choose another --out") from error
        arguments = ["--config", str(file)]
    # What it shows goes to the same terminal; what it complains of is needed here.
    command = [sys.executable, "-m", "vlm_train", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode in (130, 143, -2, -15):
        raise KeyboardInterrupt
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"vlm-train ended with {done.returncode}"]
        raise TrainError(lines[-1].removeprefix("error: "))
