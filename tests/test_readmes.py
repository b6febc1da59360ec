"""Every command and every Python block of every README runs, and the first one reaches what it promises."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import vlm_data
from vlm_data.sources import scenes

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent
DISTRIBUTIONS = {path.parent.name for path in ROOT.glob("*/*/pyproject.toml")}
BY_CI = {"uv run nox -s tests", "uv run nox"}  # would run this test again; `.ci/run` runs them


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(readme: Path) -> list[str]:
    lines = [line for block in blocks(readme, "bash") for line in block.splitlines()]
    return [line for line in (re.sub(r"\s+#.*$", "", line).strip() for line in lines) if line]


# vlm-infer's commands use a run that vlm-train's make
READMES = sorted(ROOT.glob("*/*/README.md"), key=lambda path: path.parent.name == "vlm-infer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the READMEs take as a user's own: photos, tables of them, a configuration."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    captions, questions = [["image_name", "caption"]], [["image_name", "question", "answer"]]
    for row in scenes.read("readme", 12):
        name = f"scene_{row['id'].split('-')[3]}.png"
        vlm_data.decode(row["image"]).save(folder / "photos" / name)
        if row["prompt"] is None:
            captions.append([name, row["references"][0]])
        else:
            questions.append([name, row["prompt"], row["references"][0]])
    for name, rows in (("captions", captions), ("photos", captions), ("questions", questions)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    (folder / "photo.png").write_bytes((folder / "photos" / "scene_0.png").read_bytes())
    (folder / "run.yaml").write_text("data: captions.csv\nimage-dir: photos\nmodel: tiny-git\nmax-steps: 2\n")
    return folder


def execute(command: str, folder: Path) -> str:
    """Run a command of a README in `folder`, by the scripts of this environment."""
    if command in BY_CI:
        assert command.split()[-1] in (ROOT / ".ci/run").read_text() + "nox"
        return ""
    if match := re.fullmatch(r"pip install '?([\w-]+)(\[\w+\])?'?", command):
        assert match[1] in DISTRIBUTIONS  # `nox -s wheels` installs each
        return ""
    words = shlex.split(command.removeprefix("pip install uv && ").removeprefix("uv run "))
    if words[0] == "python":
        words[1] = str(ROOT / words[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [str(SCRIPTS / words[0]), *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_commands_of_a_package(readme, folder):
    for command in commands(readme):
        execute(command, folder)


@pytest.mark.parametrize("readme", [*READMES, ROOT / "README.md"], ids=lambda path: path.parent.name)
def test_python_blocks(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "readme"}
    for block in blocks(readme, "python"):
        exec(compile(block, str(readme), "exec"), namespace)


def test_commands_of_the_first_page_reach_what_they_promise(folder):
    first, *rest = commands(ROOT / "README.md")
    assert first == "pip install uv && uv run vlm-train"
    said = execute(first, folder)
    record = json.loads((folder / "runs/tiny-qwen2-vl-lora-easy-vqa/run.json").read_text())
    after = record["results"]["after"]["exact_match"]
    assert record["data"]["validation"]["rows"] >= 2000
    assert after >= 0.90 and after > record["results"]["before"]["exact_match"]
    execute(said.strip().splitlines()[-1].strip(), folder)  # the command that it says to try
    for command in rest:
        execute(command, folder)
