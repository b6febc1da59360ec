"""Training in two processes is training in one, the base model sharded or whole in each: losses, adapter, checkpoints.

And neither outlives the other.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import processes_driver
import pytest
from processes_driver import METHODS, config
from safetensors.torch import load_file, save_file

import vlm_data
import vlm_models
from vlm_train.run import run

DRIVER = Path(processes_driver.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`rows.jsonl`: questions about 20 pictures, with answers of one word or many."""
    folder = tmp_path_factory.mktemp("processes")
    with (folder / "rows.jsonl").open("w") as file:
        for row in vlm_data.open("scenes", split="train", size=20):
            image = f"{row['id'].rsplit('-', 1)[0]}.png"
            vlm_data.decode(row["image"]).save(folder / image)
            said = {"question": row["prompt"] or "what is it?", "answer": row["references"][0]}
            file.write(json.dumps({"image": image, **said}) + "\n")
    return folder


def interrupted(name: str, folder: Path) -> None:
    """A run by one process that is stopped in its fourth step."""
    plain = vlm_models.VLM.forward
    processes_driver.in_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(config(folder, name, cache_dir=str(folder / "another")))
    vlm_models.VLM.forward = plain


def without_pooler(folder: Path) -> None:
    """A model of which weights that nothing needs are not in the file."""
    vlm_models.load("tiny-vit-gpt2", device="cpu").save(str(folder))
    kept = {name: one for name, one in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def launched(folder) -> tuple[subprocess.CompletedProcess, float]:
    """What the two processes said, and how many seconds they took to end when one was killed."""
    without_pooler(folder / "no-pooler")
    interrupted("begun-by-1", folder)
    shutil.copytree(folder / "begun-by-1", folder / "begun-by-1-unsharded")
    for stage in (2, 3):
        said = {"zero_optimization": {"stage": stage}, "train_batch_size": 14, "gradient_accumulation_steps": 2}
        (folder / f"zero-{stage}.json").write_text(json.dumps(said))
    with socket.socket() as free, socket.socket() as another:
        ports = []
        for one in (free, another):
            one.bind(("127.0.0.1", 0))
            ports.append(str(one.getsockname()[1]))
    # Without --cpu, with which accelerate starts several processes by MPI alone; each takes the CPU by its --device.
    options = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--main_process_port", ports[0]]
    launch = ["-m", "accelerate.commands.launch", *options]
    command = [sys.executable, *launch, str(DRIVER), str(folder), ports[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (folder / "killed").exists(), done.stdout[-1000:] + done.stderr[-3000:]
    killed = max(path.stat().st_mtime for path in (folder / "killed" / "checkpoints").glob("step-*"))
    return done, time.time() - killed


def adapters(folder: Path, *names: str) -> list[dict]:
    return [load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in names]


def close(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[key] - other[key]).abs().max() < 1e-9 for key in one)


def lines(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "validation_loss", "gradient_norm", "exact_match", "bleu")
    return [{name: line[name] for name in kept if name in line} for line in found]


def predictions(folder: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_adapter_are_those_of_one_process(method, folder, launched):
    run(config(folder, f"{method}-1", **METHODS[method]))
    one, two = adapters(folder, f"{method}-1", f"{method}-2")
    assert close(one, two)
    for alone, together in zip(lines(folder / f"{method}-1"), lines(folder / f"{method}-2"), strict=True):
        assert together == pytest.approx(alone, abs=1e-9)
    assert predictions(folder / f"{method}-1") == predictions(folder / f"{method}-2")


def test_sharded_layers_are_held_half_by_each_and_give_the_same_run(folder, launched):
    assert close(*adapters(folder, "lora-2", "sharded"))
    for whole, sharded in zip(lines(folder / "lora-2"), lines(folder / "sharded"), strict=True):
        assert sharded == pytest.approx(whole, abs=1e-9)
    assert predictions(folder / "lora-2") == predictions(folder / "sharded")
    layers = vlm_models.load("tiny-git", device="cpu", dtype="float64").model.git.encoder.layer
    whole = sum(parameter.nbytes for parameter in layers.parameters())
    held = [int((folder / f"held-{rank}").read_text()) for rank in (0, 1)]
    assert sum(held) == whole and max(held) < 0.51 * whole


def test_checkpoints_of_sharded_runs_are_those_of_others(folder, launched):
    """These two are sharded by a DeepSpeed configuration."""
    said = launched[0].stdout
    assert said.count(f"{folder / 'zero-3.json'}, ZeRO 3: done by torch, the base model shared out by FSDP2") == 2
    run(config(folder, "killed-while-sharded"), resume=True)
    whole, first, second = adapters(folder, "lora-2", "begun-by-1-unsharded", "killed-while-sharded")
    assert close(whole, first) and close(whole, second)


def test_every_process_reads_all_weights_of_a_model_to_shard(folder, launched):
    whole = vlm_models.load("tiny-vit-gpt2", device="cpu")
    of_each = [int((folder / f"loaded-{rank}").read_text()) for rank in (0, 1)]
    assert of_each == [sum(parameter.numel() for parameter in whole.parameters())] * 2


def test_where_one_is_killed_in_a_gathering_the_other_says_so_and_ends(folder, launched):
    seconds, said = (folder / "killed-while-sharded.txt").read_text().split(" ", 1)
    assert float(seconds) < 60
    assert said.startswith("TrainError: another process of the run has stopped")


def test_each_image_is_encoded_once_by_one_of_them(folder, launched):
    first = [int((folder / f"encoded-first-{rank}").read_text()) for rank in (0, 1)]
    second = [int((folder / f"encoded-then-{rank}").read_text()) for rank in (0, 1)]
    trained = {json.loads(line)["image"] for line in (folder / "rows.jsonl").read_text().splitlines()}
    held_out = {
        json.loads(line)["image"] for line in (folder / "lora-2" / "predictions.jsonl").read_text().splitlines()
    }
    assert sum(first) == len(trained) - len({Path(path).name for path in held_out}) and min(first) > 0
    assert second == first  # the next run finds them all


def test_checkpoints_of_one_are_resumed_by_two_and_the_reverse(folder, launched):
    assert [(folder / f"code-{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert json.loads((folder / "begun-by-2" / "run.json").read_text())["status"] == "interrupted after step 4 of 7"
    run(config(folder, "begun-by-2"), resume=True)
    assert (
        f"{folder / 'zero-2.json'}, ZeRO 2: done by torch, the base model whole in each process" in launched[0].stdout
    )
    whole, first, second = adapters(folder, "lora-2", "begun-by-1", "begun-by-2")
    assert close(whole, first) and close(whole, second)
    assert [line["step"] for line in lines(folder / "begun-by-2")] == [0, 7, 7]


def test_where_one_is_killed_the_others_end_and_the_run_goes_on(folder, launched):
    done, seconds = launched
    assert done.returncode != 0 and seconds < 60
    assert f"--resume {folder / 'killed'}" in (done.stdout + done.stderr).replace("\n", ""), done.stdout[-2000:]
    run(config(folder, "killed"), resume=True)
    assert close(*adapters(folder, "lora-2", "killed"))
