"""Load what was exported in a process of its own, with transformers alone, and write its logits down.

`python -m vlm_export.reload FOLDER PROBES DEVICE [BASE DTYPE [REVISION]]`: with a BASE, FOLDER is an adapter of Hugging
Face PEFT, which is loaded with peft. The logits go to PROBES/logits.safetensors.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from safetensors.torch import save_file

from vlm_export.probes import logits_on, read_probes


def main(folder: str, probes: str, device: str, base: str = "", dtype: str = "auto", revision: str = "") -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place, hub = base or folder, {"revision": revision or None}
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    model = transformers.AutoModelForImageTextToText.from_pretrained(place, dtype=kind, **hub).to(device)
    if model.config.model_type == "vision-encoder-decoder":
        processor = SimpleNamespace(
            image_processor=transformers.AutoImageProcessor.from_pretrained(place, **hub),
            tokenizer=transformers.AutoTokenizer.from_pretrained(place, **hub),
        )
    else:
        processor = transformers.AutoProcessor.from_pretrained(place, **hub)
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    found = logits_on(model, processor, read_probes(Path(probes)), Path(probes))
    save_file({str(number): one.contiguous() for number, one in enumerate(found)}, Path(probes) / "logits.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
