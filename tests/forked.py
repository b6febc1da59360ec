"""Commands in processes forked from one that has imported what all of them import, which takes longer than the rest."""

import multiprocessing
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["datasets", "peft_methods", "torch", "transformers", "vlm_data", "vlm_models"])


def run(words: list[str], folder: Path) -> CompletedProcess:
    """What `subprocess.run` returns for a console script of this environment and its arguments, run in `folder`."""
    with TemporaryDirectory() as outputs:
        texts = [Path(outputs) / name for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_child, args=(words, folder, texts, {**os.environ, "COLUMNS": "200"}))
        process.start()
        process.join()
        return CompletedProcess(words, process.exitcode, *(text.read_text() for text in texts))


def _child(words: list[str], folder: Path, texts: list[Path], environment: dict[str, str]) -> None:
    for descriptor, text in enumerate(texts, start=1):
        os.dup2(os.open(text, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    (script,) = entry_points(group="console_scripts", name=words[0])
    sys.exit(script.load()())
