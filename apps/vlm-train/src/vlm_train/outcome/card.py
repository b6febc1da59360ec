"""`README.md` of a run: a model card with the metadata that the Hugging Face hub reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vlm_models import TINY
from vlm_runs.adapters import VISION
from vlm_train.options.config import TrainConfig

NAMES = {"exact_match": "Exact match", "vqa_accuracy": "VQA accuracy", "bleu": "BLEU", "cider": "CIDEr"}


def card_text(record: dict[str, Any], facts: Sequence[tuple[str, str]], folder: Path) -> str:
    """The card of a run that is done, in `folder`; `record` is what run.json holds, `facts` the closing table."""
    config, results, data = record["config"], record["results"], record["data"]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts)
    scored = ", ".join(f"`{signature}`" for signature in results["signatures"].values())
    loaded = _loaded_by(config, folder)
    return f"""---
{_metadata(record, loaded)}
---

# {_title(config)}

{_what(config, record)}, trained on {data["train"]["rows"]:,} rows of `{config["data"]}` and evaluated on \
{data["validation"]["rows"]:,} rows{" of other images" if apart(record) else ""}.

| | |
|---|---|
{table}

Scores are before → after training, with 95 % bootstrap intervals over rows: {scored}.

## Use

```python
{_code(config, loaded)}
```

or `vlm-infer --run {folder.name} --image FILE`.

## Trained with

{_trained_with(config, record)}
"""


def apart(record: dict[str, Any]) -> bool:
    """Whether it is certain that no image is both trained and evaluated on."""
    return not (record["config"]["allow_overlap"] or record["config"]["stream"])


def _metadata(record: dict[str, Any], loaded: list[tuple[str, str]]) -> str:
    config, results = record["config"], record["results"]
    task = "image-to-text" if "bleu" in results["after"] else "visual-question-answering"
    on_hub = config["model"] not in TINY and not Path(config["model"]).exists()
    from_hub = config["format"] == "datasets"
    measured = [
        EvalResult(
            task_type=task,
            dataset_type=config["data"] if from_hub else Path(config["data"]).name,
            dataset_name=Path(config["data"]).name,
            dataset_split="validation",
            metric_type=name,
            metric_name=NAMES.get(name, name),
            metric_value=round(value, 6),
            metric_args={
                "interval_95": [round(end, 6) for end in results["intervals"][name]],
                "signature": results["signatures"][name],
                "rows": record["data"]["validation"]["rows"],
            },
        )
        for name, value in results["after"].items()
    ]
    return ModelCardData(
        # A name that is not the hub's would be a link to someone else's model.
        base_model=config["model"] if on_hub else None,
        datasets=[config["data"]] if from_hub else None,
        library_name="peft" if {library for library, _ in loaded} == {"peft"} else "peft-methods",
        pipeline_tag=task,
        tags=["vision-language", "image-text-to-text", f"base:{record['model']['family']}", config["method"]],
        metrics=list(results["after"]),
        model_name=_title(config),
        eval_results=measured,
    ).to_yaml()


def _loaded_by(config: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """(library, adapter) for each of the run's adapters: "peft" where its format is that of Hugging Face PEFT."""
    found = []
    for name in ("adapter", f"adapter/{VISION}"):
        file = folder / name / "adapter_config.json"
        if file.exists():
            of_peft = "peft_type" in json.loads(file.read_text(encoding="utf-8"))
            found.append(("peft" if of_peft else "peft-methods", name))
    return found


def _title(config: dict[str, Any]) -> str:
    return f"{Path(config['model']).name} adapted to {Path(config['data']).name}"


def _what(config: dict[str, Any], record: dict[str, Any]) -> str:
    method = config["method"]
    if method in ("lora", "rslora", "dora", "grit"):
        method += f", rank {config['rank']}, alpha {config['alpha']:g}"
    if config["vision_method"]:
        method += f"; {config['vision_method']} on the vision part"
    base = f"`{config['model']}`" + (f" at revision `{config['revision']}`" if config["revision"] else "")
    return f"An adapter ({method}) for {base} (`{record['model']['class']}`)"


def _code(config: dict[str, Any], loaded: list[tuple[str, str]]) -> str:
    options = {name: config[name] for name in ("revision", "quantization") if config[name] not in (None, "none")}
    named = "".join(f", {name}={value!r}" for name, value in options.items())
    library = "peft" if config["method"] == "peft" else "peft_methods"
    lines = [f"import {library}", "import vlm_models", "", f"vlm = vlm_models.load({config['model']!r}{named})"]
    for _, adapter in loaded:
        call = "PeftModel.from_pretrained" if library == "peft" else "load"
        lines.append(f'{library}.{call}(vlm.model, "{adapter}")')
    return "\n".join(lines)


def _trained_with(config: dict[str, Any], record: dict[str, Any]) -> str:
    rate = TrainConfig(**config).peak_learning_rate
    return (
        f"{config['optimizer']}, learning rate {rate:g}, {config['schedule']} schedule, "
        f"{config['batch_size']} x {config['accumulate']} rows a step, {record['results']['steps']:,} steps, seed "
        f"{config['seed']}; vlm-train {record['versions']['vlm-train']}, torch {record['versions']['torch']}, "
        f"transformers {record['versions']['transformers']}. `run.json` holds the whole configuration."
    )
