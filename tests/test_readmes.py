"""Every command and every Python block of every README runs, and the first one reaches what it promises."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import typer

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {path.parent.name for path in ROOT.glob("*/*/pyproject.toml")}
BY_CI = {"uv run nox -s tests", "uv run nox"}  # would run this test again; `.ci/run` runs them


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(readme: Path) -> list[str]:
    lines = [line for block in blocks(readme, "bash") for line in block.splitlines()]
    return [line for line in (re.sub(r"\s+#.*$", "", line).strip() for line in lines) if line]


READMES = sorted(ROOT.glob("*/*/README.md"))
# The others' commands use a run that vlm-train's make.
TOGETHER = [ROOT / f"apps/{name}/README.md" for name in ("vlm-train", "vlm-infer", "vlm-export")]


@pytest.fixture(scope="module")
def folder(user_folder) -> Path:
    """What the READMEs take as a user's own: photos, tables of them, a configuration."""
    folder = user_folder("readme", 12)
    (folder / "photos.csv").write_bytes((folder / "captions.csv").read_bytes())
    (folder / "photo.png").write_bytes((folder / "photos" / "0.png").read_bytes())
    products = [f"{number}.png,{color},{number}" for number, color in enumerate(["red", "blue", "green"] * 4)]
    (folder / "products.csv").write_text("\n".join(["image_name,color,count", *products]))
    for number in ("0", "1"):
        (folder / "pairs" / "Image" / number).mkdir(parents=True)
        (folder / "pairs" / "Image" / number / "photo.png").write_bytes((folder / f"photos/{number}.png").read_bytes())
        (folder / "pairs" / "caption").mkdir(exist_ok=True)
        (folder / "pairs" / "caption" / f"{number}.txt").write_text(f"a picture of {number}")
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
        line = [sys.executable, ROOT / words[1], *words[2:]]
        result = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    else:
        result = forked.run(words, folder)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


@pytest.mark.parametrize(
    "readmes",
    [*([readme] for readme in READMES if readme not in TOGETHER), TOGETHER],
    ids=lambda readmes: "-".join(path.parent.name for path in readmes),
)
def test_commands_of_packages(readmes, folder):
    for readme in readmes:
        for command in commands(readme):
            execute(command, folder)


def test_commands_for_those_who_come_from_other_tools(folder):
    for command in commands(ROOT / "docs" / "coming-from.md"):
        execute(command, folder)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("apps/*/pyproject.toml")))
def test_every_option_is_in_the_readme_and_has_help(name):
    def options(app: str) -> dict[str, str]:
        command = typer.main.get_command(importlib.import_module(f"{app.replace('-', '_')}.cli").app)
        return {max(one.opts, key=len): one.help for one in command.params}

    own = options(name)
    if name == "vlm-compare":  # which takes those of vlm-train, and says so
        own = {option: text for option, text in own.items() if option not in options("vlm-train") or option == "--out"}
    text = (ROOT / "apps" / name / "README.md").read_text()
    assert [option for option in own if option.startswith("--") and option not in text] == []
    assert all(own.values())


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
