"""Options: defaults, YAML files, what is refused, and that the command line has exactly the fields."""

from dataclasses import fields

import pytest
import typer
from typer.testing import CliRunner

from vlm_train import cli
from vlm_train.errors import ConfigError
from vlm_train.options.config import AUTO, TrainConfig
from vlm_train.options.config_file import read_config

run = CliRunner().invoke


def test_every_field_is_an_option_with_help():
    command = typer.main.get_command(cli.app)
    options = {parameter.name: parameter for parameter in command.params}
    names = {field.name for field in fields(TrainConfig)}
    others = {"config", "print_config", "show_example", "describe", "dry_run", "resume", "help"}
    assert options.keys() - others - {"install_completion", "show_completion"} == names
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
    monkeypatch.setattr("vlm_train.run.run", lambda config, resume: chosen.append(config))
    file = tmp_path / "run.yaml"
    file.write_text("rank: 4\nalpha: 8\nseed: 7\n")
    result = run(cli.app, ["--config", str(file), "--rank", "16", "--seed", "0"])
    assert result.exit_code == 0, result.output
    # rank and seed are given on the command line, though with their default values
    assert (chosen[0].rank, chosen[0].alpha, chosen[0].seed) == (16, 8.0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\n\nrnak: 4", "run.yaml:3: unknown option 'rnak'; did you mean rank?"),
        ("lerning-rat: 4", "run.yaml:1: unknown option 'lerning-rat'; did you mean learning-rate?"),
        ("zzz: 4", "run.yaml:1: unknown option 'zzz'; vlm-train --help"),
        ("rank: 4\nrank: 8", "run.yaml:2: rank stands in line 1 already"),
        ("batch-size: 0", "--batch-size must be at least 1, or auto ("),
        ("batch-size: many", "batch_size: 'many' is no whole number"),
        ("rank: four", "rank: 'four' is no whole number"),
        ("rank: 4.5", "rank: 4.5 is no whole number"),
        ("rank: true", "rank: True is no whole number"),
        ("rank: null", "rank: None is no whole number"),
        ("model: {a: b}", "model: {'a': 'b'} is no text"),
        ("- rank", "must hold `option: value` lines"),
        ("seed: 1\nrank: [", "run.yaml:2: not YAML: expected the node content"),
        ("seed: \x00", "run.yaml: not YAML: "),
        ("", "must hold `option: value` lines"),
    ],
)
def test_a_bad_file_is_told(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    result = run(cli.app, ["--config", str(file)], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output and "run.yaml" in result.output and "Traceback" not in result.output


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: No such file"):
        read_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("method", "lroa"),
        ("vision_method", "lroa"),
        ("optimizer", "adam"),
        ("schedule", "cosin"),
        ("quantization", "nf3"),
        ("weight_decay", -0.1),
        ("weight_decay", float("nan")),
        ("max_gradient_norm", -1),
        ("lora_plus_ratio", 0),
        ("max_minutes", 0),
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
        ("workers", -1),
        ("metric", "blue"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "prefix", "rank": 4}, "--rank is for lora, rslora, dora, grit, not for --method prefix"),
        ({"method": "full", "lora_plus_ratio": 16}, "--lora-plus-ratio is for lora"),
        ({"method": "peft"}, "--method peft: give its configuration by --peft-config"),
        ({"peft_config": "a.json"}, "--peft-config is for --method peft, not lora"),
        ({"method": "peft", "peft_config": "a.json", "rank": 4}, "--rank is for lora"),
        ({"method": "peft", "peft_config": "a.json", "vision_method": "lora"}, "--vision-method goes with"),
        ({"method": "peft", "peft_config": "a.json", "method_options": "a=1"}, "--method-options for --method peft"),
        ({"vision_method": "lora", "targets": "all"}, "--vision-method needs --targets language"),
        ({"vision_method": "prefix"}, "--vision-method prefix: is for causal attention"),
        ({"targets": "re:("}, "--targets 're:\\(' is no regular expression"),
        ({"method": "full", "quantization": "nf4"}, "--quantization nf4 weights cannot be trained by --method full"),
        ({"method": "grit", "optimizer": "adamw8bit"}, "--optimizer adamw8bit: --method grit changes"),
        ({"data": "scenes", "image_dir": "photos"}, "--image-dir is for data of your own, not for --data scenes"),
        ({"cache_features": "off", "cache_dir": "there"}, "--cache-dir says nothing beside --cache-features off"),
        ({"plain": True, "cache_size": 1.0}, "--cache-size says nothing beside --plain"),
        ({"revision": "main"}, "--revision is of a hub id, and tiny-qwen2-vl comes with the package"),
    ],
)
def test_options_that_make_no_sense_together(options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        TrainConfig(**options)


def test_vision_and_lora_options_go_with_a_lora_on_either_part():
    assert TrainConfig(method="full", vision_method="lora", rank=4).rank == 4
    assert TrainConfig(method="full", targets="vision", quantization="nf4").quantization == "nf4"


def test_two_options_that_only_show_something_are_refused():
    result = run(cli.app, ["--describe", "--dry-run"])
    assert result.exit_code == 2 and "--describe and --dry-run each stop" in result.output


def test_the_whole_configuration_with_its_sources_is_itself_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("# mine\ntargets: [q_proj, v_proj]\nbatch-size: auto\nrank: 4\ncache-features: off\n")
    result = run(cli.app, ["--config", str(file), "--rank", "2", "--print-config"])
    lines = {line.partition(":")[0]: line for line in result.output.splitlines()}
    assert lines["targets"].split("  # ")[1:] == [f"{file}:2"] and lines["rank"].split() == [
        "rank:",
        "2",
        "#",
        "command",
        "line",
    ]
    assert lines["alpha"].endswith("  # default") and lines["learning-rate"].endswith("# default, 0.003 for this model")
    again = tmp_path / "again.yaml"
    again.write_text(result.output)
    read = read_config(again)
    assert read.keys() == {field.name for field in fields(TrainConfig)}
    wanted = TrainConfig(targets="q_proj,v_proj", batch_size=AUTO, rank=2, cache_features="off")
    assert TrainConfig(**read) == wanted
