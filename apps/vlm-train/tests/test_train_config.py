"""Options: defaults, YAML files, what is refused, and that the command line has exactly the fields."""

from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from vlm_train import cli
from vlm_train.config import ConfigError, TrainConfig, read_config

run = CliRunner().invoke


def test_every_field_is_an_option_with_help():
    command = typer.main.get_command(cli.app)
    options = {parameter.name: parameter for parameter in command.params}
    names = {field.name for field in fields(TrainConfig)}
    assert options.keys() - {"config", "show_example", "describe", "help"} == names
    assert all(options[name].help for name in options)
    assert all(options[field.name].default == field.default for field in fields(TrainConfig))


def test_help_says_what_it_does():
    result = run(cli.app, ["--help"])
    assert result.exit_code == 0
    assert "Adapt a vision-language model" in result.output and "--learning-rate" in result.output


def test_tiny_models_learn_faster():
    assert TrainConfig().peak_learning_rate == 3e-3
    assert TrainConfig(model="Qwen/Qwen2-VL-2B-Instruct").peak_learning_rate == 2e-4
    assert TrainConfig(learning_rate=1e-5).peak_learning_rate == 1e-5


def test_a_yaml_file_holds_the_same_names(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning-rate: 3e-4\nbatch_size: 4\ntargets: [q_proj, v_proj]\nepochs: 2\nmax_steps: null\n")
    config = TrainConfig(**read_config(file))
    assert (config.learning_rate, config.batch_size, config.epochs, config.max_steps) == (3e-4, 4, 2.0, None)
    assert config.target_list == ["q_proj", "v_proj"]


@pytest.mark.parametrize("word", ["on", "off"])
def test_words_that_are_truth_values_to_yaml(word, tmp_path):
    (tmp_path / "run.yaml").write_text(f"cache-features: {word}\n")
    assert read_config(tmp_path / "run.yaml") == {"cache_features": word}


def test_the_command_line_wins_over_the_file(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr("vlm_train.run.run", chosen.append)
    file = tmp_path / "run.yaml"
    file.write_text("rank: 4\nalpha: 8\nseed: 7\n")
    result = run(cli.app, ["--config", str(file), "--rank", "16", "--seed", "0"])
    assert result.exit_code == 0, result.output
    # rank and seed are given on the command line, though with their default values
    assert (chosen[0].rank, chosen[0].alpha, chosen[0].seed) == (16, 8.0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rnak: 4", "unknown option 'rnak'; did you mean rank?"),
        ("rank: four", "rank: 'four' is no int"),
        ("rank: 4.5", "rank: 4.5 is no int"),
        ("rank: true", "rank: True is no int"),
        ("rank: null", "rank: None is no int"),
        ("model: {a: b}", "model: {'a': 'b'} is no str"),
        ("- rank", "must hold `option: value` lines"),
        ("rank: [", "not YAML"),
        ("", "must hold `option: value` lines"),
    ],
)
def test_a_bad_file_is_told(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    result = run(cli.app, ["--config", str(file)])
    assert result.exit_code == 2
    assert message in result.output and "run.yaml" in result.output and "Traceback" not in result.output


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: No such file"):
        read_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("method", "lroa"),
        ("rank", 0),
        ("alpha", 0),
        ("dropout", 1.0),
        ("epochs", 0),
        ("max_steps", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("learning_rate", -1.0),
        ("warmup", 1.5),
        ("val_fraction", 1.0),
        ("val_rows", -1),
        ("max_rejected", -1),
        ("seed", -1),
        ("data", ""),
        ("cache_features", "maybe"),
        ("cache_size", 0),
        ("cache_size", float("inf")),
    ],
)
def test_a_value_out_of_range_names_its_option(option, value):
    with pytest.raises(ConfigError, match=f"^--{option.replace('_', '-')} "):
        TrainConfig(**{option: value})
