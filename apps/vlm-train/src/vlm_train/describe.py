"""What the data hold, before anything is trained on them."""

from pathlib import Path

from rich.console import Console

import vlm_data
from vlm_train.options.config import TrainConfig
from vlm_train.rows.data import open_part, said_on
from vlm_train.run import quiet


def describe(config: TrainConfig) -> list[Path]:
    """Print what each part of the data holds and write a picture of random rows of it; returns the pictures' files.

    They are `NAME-PART.png` in --out, by default in the current folder.
    """
    console = Console()
    quiet()
    folder = Path(config.out or ".")
    name = Path(config.data).stem
    files = []
    for part in vlm_data.splits(config.data) or [None]:
        rejected: list[vlm_data.Rejected] = []
        with said_on(console):
            rows = open_part(config, part, rejected if config.data not in ("easy-vqa", "scenes") else None)
        title = f"{config.data}, {part} part" if part else config.data
        console.rule(title, style="dim")
        console.print(str(vlm_data.describe(rows)), highlight=False, markup=False, soft_wrap=True)
        for record in rejected[:5]:
            console.print(f"rejected: {record.source}: {record.reason}", style="yellow", markup=False, soft_wrap=True)
        if len(rejected) > 5:
            console.print(f"rejected: {len(rejected) - 5} more rows", style="yellow")
        if len(rows):
            folder.mkdir(parents=True, exist_ok=True)
            files.append(folder / (f"{name}-{part}.png" if part else f"{name}.png"))
            vlm_data.contact_sheet(rows, seed=config.seed).save(files[-1])
            console.print(f"24 random rows: {files[-1]}", highlight=False, soft_wrap=True)
    return files
