"""The configuration of a run: one field for each option of the command line, with its help."""

import os
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from vlm_train.options.checks import AUTO, METHODS, check
from vlm_train.schedules import SCHEDULES

TINY_LEARNING_RATE, LEARNING_RATE = 3e-3, 2e-4
MOST_WORKERS = 4  # each holds a batch
PANELS = {  # of `--help`
    "Data": (
        "data image_dir format columns stream val_data val_fraction val_rows stratify allow_overlap max_rejected "
        "answer_choice max_image_tokens"
    ),
    "Model": "model revision quantization dtype device",
    "Method": "method rank alpha dropout targets vision_method method_options peft_config",
    "Training": (
        "epochs max_steps max_minutes batch_size accumulate learning_rate warmup schedule optimizer weight_decay "
        "max_gradient_norm lora_plus_ratio seed"
    ),
    "Evaluation on the way": "evaluate_every metric patience",
    "Speed": "workers cache_features cache_size cache_dir plain gradient_checkpointing",
    "The run's folder": "out overwrite checkpoint_every keep_checkpoints track",
}


def _option(help: str, **more: Any) -> Any:
    return typer.Option(help=help, show_default=True, **more)


def _flag(name: str, help: str) -> Any:
    return typer.Option(name, help=help)


def rows_or_auto(text: str | int) -> int:
    """A batch size, or `AUTO`."""
    if text == "auto":
        return AUTO
    if not str(text).isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is neither a whole number of at least 1 nor auto")
    return int(text)


@dataclass(frozen=True)
class TrainConfig:
    """What `vlm-train` was asked to do."""

    model: Annotated[str, _option("Hub id, folder, or tiny-git, tiny-blip2, tiny-qwen2-vl, tiny-vit-gpt2.")] = (
        "tiny-qwen2-vl"
    )
    data: Annotated[
        str, _option("easy-vqa, scenes, or a file or folder of images and texts; a hub name with --format datasets.")
    ] = "easy-vqa"
    image_dir: Annotated[str | None, _option("Where a table's images are. (default: the table's folder)")] = None
    format: Annotated[
        str, _option("How to read the data: auto, or a format that vlm-data's README lists, as captions-csv.")
    ] = "auto"
    columns: Annotated[
        str | None,
        _option("A table's own names for the usual columns: image=…,prompt=…,references=…; any of the three."),
    ] = None
    answer_choice: Annotated[
        str, _option("Of several reference answers train on the most frequent, or sample one by frequency each epoch.")
    ] = "frequent"
    max_image_tokens: Annotated[
        int, _option("Shrink images that would take more tokens, for models that take images of any size (Qwen's).")
    ] = 1024
    allow_overlap: Annotated[bool, _flag("--allow-overlap", "Go on though training and test part share pictures.")] = (
        False
    )
    val_data: Annotated[
        str | None, _option("Other data to evaluate on. (default: a part of --data, or pictures held out of it)")
    ] = None
    stream: Annotated[
        bool, _flag("--stream", "Read --data from shards (.tar, .parquet, .jsonl), which may be larger than memory.")
    ] = False
    method: Annotated[str, _option(f"What to train: {', '.join(METHODS)}; or peft, with --peft-config.")] = "lora"
    method_options: Annotated[
        str | None,
        _option("Further options of the method, as peft-methods' README lists them: energy=0.99,rebalance_every=50."),
    ] = None
    peft_config: Annotated[
        str | None, _option("With --method peft: a configuration of Hugging Face PEFT, as adapter_config.json.")
    ] = None
    rank: Annotated[int, _option("Rank of the matrices of LoRA and its kin (rslora, dora).")] = 16
    alpha: Annotated[float, _option("LoRA's scale: updates are multiplied by alpha / rank.")] = 32.0
    dropout: Annotated[float, _option("Dropout before the LoRA matrices.")] = 0.0
    targets: Annotated[
        str,
        _option(
            "language, vision or all; or re: and a regular expression of names; or, for LoRA and its kin, module-name "
            "suffixes (q_proj,v_proj)."
        ),
    ] = "language"
    vision_method: Annotated[
        str | None, _option("Another method, on the vision part, beside --targets language; of the same names.")
    ] = None
    epochs: Annotated[
        float | None, _option("Passes over the training rows. (default: one, or as many as --max-steps takes)")
    ] = None
    max_steps: Annotated[int | None, _option("Stop after this many optimizer steps.")] = None
    max_minutes: Annotated[
        float | None, _option("Stop training after so many minutes, by which the learning rate is at its end, too.")
    ] = None
    batch_size: Annotated[
        int, _option("Rows in a forward pass; or auto: as many as fit into memory.", parser=rows_or_auto, metavar="INT")
    ] = 32
    accumulate: Annotated[int, _option("Forward passes in an optimizer step.")] = 1
    learning_rate: Annotated[
        float | None,
        _option(f"Peak learning rate. (default: {LEARNING_RATE:g}; {TINY_LEARNING_RATE:g} for the tiny models)"),
    ] = None
    warmup: Annotated[float, _option("Share of the steps in which the learning rate rises from zero.")] = 0.03
    schedule: Annotated[
        str, _option(f"Of the learning rate after it has risen: {', '.join(SCHEDULES)}; all but constant end at zero.")
    ] = "cosine"
    optimizer: Annotated[
        str, _option("adamw; adamw8bit, which keeps its moments in 8 bits, on CUDA; or sgd, with momentum 0.9.")
    ] = "adamw"
    weight_decay: Annotated[float, _option("Decoupled weight decay of trained matrices; never of biases, norms.")] = 0.0
    max_gradient_norm: Annotated[float, _option("Gradients are scaled down to this norm; 0: never.")] = 1.0
    lora_plus_ratio: Annotated[
        float, _option("LoRA+: the learning rate of LoRA's B over that of all others; 16 is usual.")
    ] = 1.0
    val_fraction: Annotated[float, _option("Share of the images held out, where the data has no test split.")] = 0.2
    stratify: Annotated[
        bool, _flag("--stratify", "Hold out images so that every answer has its share in both parts.")
    ] = False
    val_rows: Annotated[int, _option("Evaluate on at most this many validation rows; 0 is all.")] = 2500
    max_rejected: Annotated[
        int | None, _option("Bad rows tolerated before the run stops. (default: 1 % of the rows, at least 10)")
    ] = None
    seed: Annotated[int, _option("Of the split, the order of rows, the initial weights and dropout.")] = 0
    device: Annotated[str, _option("auto, cpu, cuda, mps or xpu.")] = "auto"
    dtype: Annotated[str, _option("Of the frozen model: auto, float32, bfloat16, float16 or float64.")] = "auto"
    revision: Annotated[str | None, _option("Branch, tag or commit of a hub id. (default: its main branch)")] = None
    quantization: Annotated[
        str,
        _option(
            "Of the language model's frozen weights: none, nf4 (4 bit), int8, or auto: nf4 on a GPU whose free memory "
            "does not suffice."
        ),
    ] = "none"
    workers: Annotated[
        int | None,
        _option(
            "Threads that prepare images ahead of the model (with --stream: processes); 0: none. "
            f"(default: one less than the cores, {MOST_WORKERS} at most)"
        ),
    ] = None
    cache_features: Annotated[
        str, _option("on: keep what a frozen image encoder makes of each image on disk; or off.")
    ] = "on"
    cache_size: Annotated[
        float, _option("GiB that the feature cache may take; what was not used for longest goes.")
    ] = 10.0
    cache_dir: Annotated[
        str | None,
        _option("The feature cache's folder, which runs share. (default: ~/.cache/vlm-models/features)"),
    ] = None
    plain: Annotated[
        bool,
        _flag("--plain", "Without what makes training fast: no feature cache, no packed rows, the head on all tokens."),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        _flag(
            "--gradient-checkpointing", "Layers keep their inputs alone and run again backward: less memory, slower."
        ),
    ] = False
    track: Annotated[
        str | None,
        _option("Also log to a tracker that accelerate knows: tensorboard, wandb, mlflow, …; several with commas."),
    ] = None
    evaluate_every: Annotated[
        int | None, _option("Steps between evaluations; the best state of them is kept. (default: one at the end)")
    ] = None
    metric: Annotated[
        str | None, _option("What the best state is chosen by: a score, or loss. (default: the first score)")
    ] = None
    patience: Annotated[
        int | None, _option("Stop after this many evaluations in a row without a better one. (default: never)")
    ] = None
    checkpoint_every: Annotated[
        int | None, _option("Steps between two checkpoints. (default: one a minute, fewer if writing takes long)")
    ] = None
    keep_checkpoints: Annotated[int, _option("Checkpoints that stay while the run goes on, beside the best.")] = 2
    out: Annotated[str | None, _option("The run's folder. (default: runs/MODEL-METHOD-DATA)")] = None
    overwrite: Annotated[bool, _flag("--overwrite", "Remove the run that is in --out, and begin anew.")] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def peak_learning_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return TINY_LEARNING_RATE if self.model.startswith("tiny-") else LEARNING_RATE

    @property
    def worker_count(self) -> int:
        """`workers`, by default as many as there are cores beside the one that feeds the model."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(MOST_WORKERS, cores - 1)

    @property
    def target_list(self) -> str | list[str]:
        """`targets` as peft_methods takes it; the named parts (language, vision, all) are for the model to resolve."""
        return self.targets if self.targets.startswith("re:") else [part.strip() for part in self.targets.split(",")]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
