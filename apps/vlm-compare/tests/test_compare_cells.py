"""Which runs a comparison is made of, and what is refused before any of them."""

import subprocess
import sys
from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from vlm_compare import cli
from vlm_compare.cells import Cell, cells_of, same_conditions
from vlm_train.options.config import TrainConfig

HEAVY = {"torch", "transformers", "datasets", "numpy", "vlm_eval", "vlm_models", "peft_methods", "matplotlib"}
run = CliRunner(env={"COLUMNS": "300"}).invoke


def test_every_method_point_and_seed():
    cells = cells_of("lora,prefix", ["learning-rate=1e-3,3e-3", "batch_size=4"], 2, {"max_steps": 5, "rank": 8})
    assert [(cell.group, cell.seed) for cell in cells] == [
        (f"{method} learning-rate={rate} batch-size=4", seed)
        for method in ("lora", "prefix")
        for rate in (0.001, 0.003)
        for seed in (0, 1)
    ]
    wanted = TrainConfig(method="lora", seed=1, learning_rate=3e-3, batch_size=4, max_steps=5, rank=8)
    assert cells[Cell("lora", (("learning_rate", 3e-3), ("batch_size", 4)), 1)] == wanted
    assert len({cell.name for cell in cells}) == 8 and next(iter(cells)).name.endswith("batch_size=4-seed0")


def test_options_of_some_methods_are_left_out_for_others():
    cells = cells_of("lora,prefix", ["rank=2,4"], 1, {"dropout": 0.1})
    assert [cell.group for cell in cells] == ["lora rank=2", "lora rank=4", "prefix"]
    assert [config.dropout for config in cells.values()] == [0.1, 0.1, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lora,houslby"], "--methods: 'houslby' is unknown; did you mean houlsby?"),
        (["--methods", "lora,lora"], "names one twice"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--grid", "learnig_rate=1"], "did you mean learning_rate?"),
        (["--grid", "data=a,b"], "an option of vlm-train other than what is trained on"),
        (["--grid", "seed=1,2"], "an option of vlm-train other than what is trained on"),
        (["--grid", "rank"], "give OPTION=VALUE,VALUE"),
        (["--grid", "rank=4,x"], "rank: 'x' is no whole number"),
        (["--grid", "rank=4", "--grid", "rank=8"], "--grid: an option is given twice"),
        (["--baseline", "full"], "--baseline 'full' is not among those compared: lora; houlsby"),
        (["--forgetting-rows", "-1"], "--forgetting-rows must not be negative"),
        (["--schedule", "cosin"], "--schedule 'cosin' is unknown"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(arguments, message):
    result = run(cli.app, arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_file_of_options_must_not_hold_what_differs_between_runs(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 3\n")
    result = run(cli.app, ["--config", str(tmp_path / "run.yaml")])
    assert result.exit_code == 2 and "seed is another one in each run" in result.stderr


def test_all_options_of_training_are_taken():
    command = typer.main.get_command(cli.app)
    options = {parameter.name: parameter for parameter in command.params}
    wanted = {field.name for field in fields(TrainConfig)} - {"method", "seed", "overwrite"}
    assert wanted <= options.keys() and all(option.help for option in options.values())


def test_conditions_are_the_same_up_to_where_and_how_often_is_saved():
    config = TrainConfig(batch_size=-1, out="there")
    recorded = TrainConfig(batch_size=64, out="here", track="wandb", checkpoint_every=3).as_dict()
    assert same_conditions(recorded, config) is None
    assert same_conditions({**recorded, "rank": 8}, config) == "rank"
    assert same_conditions({**recorded, "plain": True}, config) == "plain"  # which takes longer
    assert same_conditions(recorded, TrainConfig(batch_size=32)) == "batch_size"


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, vlm_compare.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "vlm_compare.cli" in loaded and not HEAVY & set(loaded)
