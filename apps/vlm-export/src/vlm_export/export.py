"""One export from options to a folder: load, change, merge, write; the logits are compared at each of these steps."""

import gc
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

import peft_methods as pm
import vlm_data
import vlm_models
from vlm_export import adapters, card
from vlm_export.errors import ExportError
from vlm_export.folder import whole_or_nothing
from vlm_export.probes import Difference, difference, logits_on, make_probes
from vlm_export.reading_back import ROUNDING, check, read_back
from vlm_export.source import Source
from vlm_runs import RunError
from vlm_runs.adapters import Adapter

UserError = (ExportError, RunError, vlm_models.ModelError, pm.AdapterError, pm.TargetError)


@dataclass(frozen=True)
class Options:
    """What to write: `to` is "model", "peft" or "run"; the others are those of `vlm-export --help`."""

    out: Path
    to: str = "model"
    rank: int | None = None
    dtype: str | None = None
    device: str = "auto"
    shard_size: str = "5GB"
    check: bool = False


def export(source: Source, options: Options) -> dict[str, str]:
    """Write `options.out`, whole or not at all, and print what was measured, which is returned.

    Raises one of `UserError`.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console()
    with tempfile.TemporaryDirectory() as pictures:
        facts = _Export(source, options, Path(pictures), console).run()
    _show(console, facts, options)
    return facts


class _Export:
    """The steps, with what they share. `facts` is what the user is told, in order; `last` the latest logits."""

    def __init__(self, source: Source, options: Options, pictures: Path, console: Console):
        self.source, self.options, self.pictures, self.console = source, options, pictures, console
        self.probes = make_probes(source.run and source.run / "predictions.jsonl", pictures)
        self.facts = {"adapter": source.name}
        self.last: list[Tensor] = []

    def run(self) -> dict[str, str]:
        source, options = self.source, self.options
        vlm, attached = self._load(source.quantization, source.dtype)
        self.last = as_trained = logits_on(vlm.model, vlm.processor, self.probes, self.pictures)
        own = str(vlm.model.dtype).removeprefix("torch.")
        dtype = options.dtype or own
        trained_on = own if source.quantization == "none" else source.quantization
        if options.to != "run" and trained_on != dtype:
            del vlm, attached  # before the other is loaded: the two need not fit side by side
            _free()
            vlm, attached = self._load("none", dtype)
            self._compare(vlm, f"{dtype} weights in place of {trained_on}")
        if options.rank is not None:
            if len(attached) > 1:
                raise ExportError("--rank: the vision part has an adapter of its own; only a single one can be resized")
            smaller, resized = adapters.resize(attached[0], options.rank)
            attached = [smaller]
            self.facts[f"rank {options.rank}"] = str(resized)
            self._compare(vlm, f"rank {options.rank}")
        with self.console.status(f"writing {options.out}"), whole_or_nothing(options.out) as folder:
            if options.to == "model":
                by_us = all(isinstance(one, pm.Attachment) for one in attached)
                adapters.merge(attached)
                moved = self._compare(vlm, "merged")
                if not by_us and moved.relative > ROUNDING[dtype]:
                    raise ExportError(f"PEFT's merging moved the logits by {moved}; --to run exports it as it is")
                vlm.model.save_pretrained(folder, max_shard_size=options.shard_size)
                vlm.processor.save_pretrained(folder)
            else:
                self._write_adapter(attached, folder)
            card.write(folder, source, vlm, options.to, options.rank, self.facts)
        if options.check:
            device, base = str(vlm.device), source.base if options.to == "peft" else None
            del vlm, attached
            _free()
            with self.console.status("loading it in a new process"):
                found = read_back(options.out, self.pictures, device, base, dtype, source.revision)
            self.facts["read back in a new process"] = str(check(difference(self.last, found), dtype, options.out))
            self.facts["read back, from the run's model"] = str(difference(as_trained, found))
        return self.facts

    def _load(self, quantization: str, dtype: str) -> tuple[vlm_models.VLM, list[Adapter]]:
        source = self.source
        with self.console.status(f"loading {source.base}"):
            vlm = vlm_models.load(source.base, quantization, self.options.device, dtype, source.revision)
            if tokens := source.record.get("config", {}).get("max_image_tokens"):
                vlm_data.limit_image_tokens(vlm.processor, tokens)  # the processor is saved, too
            return vlm, adapters.attach(vlm, source)

    def _compare(self, vlm: vlm_models.VLM, step: str) -> Difference:
        """Note how far this step moved the logits."""
        found = logits_on(vlm.model, vlm.processor, self.probes, self.pictures)
        moved, self.last = difference(self.last, found), found
        self.facts[f"logits, {step}"] = str(moved)
        return moved

    def _write_adapter(self, attached: list[Adapter], folder: Path) -> None:
        source, to = self.source, self.options.to
        if to == "peft":
            adapters.save(attached, folder, source.base)
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            if len(attached) > 1 or config["peft_type"].startswith("peft_methods."):
                what = "two adapters in one" if len(attached) > 1 else f"this {type(attached[0].method).__name__}"
                raise ExportError(f"--to peft: PEFT has no words for {what}; --to run exports it as it is")
            self.facts["for PEFT"] = adapters.what_peft_reads(attached[0])
            return
        adapters.save(attached, folder / "adapter", source.base)
        record = card.run_record(source, self.options.rank)
        (folder / "run.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _show(console: Console, facts: dict[str, str], options: Options) -> None:
    table = Table(show_header=False, title=str(options.out))
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table, highlight=False)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    console.print(f"{size / 1e6:,.1f} MB in {options.out}; {NEXT[options.to].format(out=options.out)}", soft_wrap=True)


NEXT = {
    "model": "load it with transformers' from_pretrained('{out}'), or train on: vlm-train --model {out}",
    "peft": "load it with peft's PeftModel.from_pretrained(model, '{out}')",
    "run": "use it: vlm-infer --run {out} --image FILE",
}
