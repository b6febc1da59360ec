"""What a run leaves to look at: metrics, curves, page, card; and what --dry-run and --batch-size auto find out."""

import io
import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import peft_methods as pm
import vlm_data
import vlm_models
from vlm_train import cli
from vlm_train.adapting.attaching import attach
from vlm_train.adapting.prefix_start import start_prefix
from vlm_train.engine import batch_size
from vlm_train.engine.batch_size import fitting_batch_size, kept_bytes
from vlm_train.engine.fast_paths import describe_step
from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig
from vlm_train.outcome.trackers import check_trackers
from vlm_train.run import run


@pytest.fixture(scope="module")
def options(captions):
    data = str(captions / "captions.csv")
    return {"model": "tiny-git", "data": data, "max_steps": 4, "batch_size": 4, "val_rows": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "run"
    return run(TrainConfig(**options, evaluate_every=2, out=str(out)))


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_metrics_have_speed_timers_and_memory(folder):
    (step,) = [line for line in lines(folder) if "loss" in line]
    assert step["step"] == 4 and step["skipped_steps"] == 0
    assert step["rows_per_second"] > 0 and step["supervised_tokens_per_second"] > step["rows_per_second"]
    seconds = step["data_seconds"] + step["compute_seconds"] + step["rest_seconds"]
    assert seconds == pytest.approx(4 / step["rows_per_second"])
    assert min(step["data_seconds"], step["compute_seconds"], step["rest_seconds"]) >= 0
    assert 2**25 < step["peak_memory_bytes"] < 2**36
    assert [line["step"] for line in lines(folder) if "validation_loss" in line] == [0, 2, 4]


def test_a_run_of_a_few_steps_is_told(options, tmp_path, capsys):
    one = {name: value for name, value in options.items() if name != "max_steps"}
    run(TrainConfig(**one | {"batch_size": 64}, out=str(tmp_path / "run")))
    said = " ".join(capsys.readouterr().out.split())
    assert "rows · 1 step on cpu" in said
    assert "1 step will hardly change the model; --epochs 100 makes some 100" in said


def test_the_environment_is_recorded(folder):
    record = json.loads((folder / "run.json").read_text())
    assert record["environment"]["threads"] == torch.get_num_threads() and record["environment"]["device"] == "cpu"


def test_the_page_is_one_file_with_curves_configuration_and_pictures(folder):
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(?!data:)[\w/.]|@import|url\(|https?:""", page.replace("image.src =", ""))
    assert "max_gradient_norm: 1.0" in page and "vlm-train:" in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert [one["name"] for one in data["runs"]] == ["after", "before"]
    predictions = lines(folder, "predictions.jsonl")
    assert [row["said"][0]["text"] for row in data["rows"]] == [one["prediction"] for one in predictions]
    assert all("picture" in row for row in data["rows"])
    assert Image.open(folder / "curves.png").size[0] > 800


def test_the_card_is_valid_for_the_hub(folder):
    card = ModelCard.load(folder / "README.md")
    results = json.loads((folder / "run.json").read_text())["results"]
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == pytest.approx(
        results["after"], abs=1e-6
    )
    first = card.data.eval_results[0]
    assert first.metric_type == "bleu"
    assert first.metric_args["interval_95"] == pytest.approx(results["intervals"]["bleu"], abs=1e-6)
    # its own name is nobody's model on the hub; LoRA's files are PEFT's
    assert card.data.base_model is None and card.data.library_name == "peft"
    code = re.search(r"```python\n(.*?)```", card.text, re.S)[1].replace('"adapter"', repr(str(folder / "adapter")))
    namespace = {}
    exec(code, namespace)
    assert len(pm.attachments(namespace["vlm"].model)) == 1


def test_the_card_names_what_loading_needs(folder):
    from vlm_train.outcome.card import card_text

    record = json.loads((folder / "run.json").read_text())
    record["config"] |= {"model": "Salesforce/blip2-opt-2.7b", "revision": "abc", "quantization": "nf4"}
    record["config"] |= {"data": "org/photos", "format": "datasets"}
    card = ModelCard(card_text(record, [("a", "b")], folder))
    assert card.data.base_model == "Salesforce/blip2-opt-2.7b" and card.data.datasets == ["org/photos"]
    assert "vlm_models.load('Salesforce/blip2-opt-2.7b', revision='abc', quantization='nf4')" in card.text


def test_nothing_is_said_of_other_images_where_they_may_be_the_same(folder, options, tmp_path, capsys):
    assert "rows of other images" in (folder / "README.md").read_text()
    same = {"val_data": options["data"], "allow_overlap": True, "max_steps": 1, "out": str(tmp_path / "run")}
    told = (run(TrainConfig(**options | same)) / "README.md").read_text() + capsys.readouterr().out
    assert "validation rows" in told and "other images" not in told and "not trained on" not in told


def test_trackers_by_name(options, tmp_path, capsys):
    with pytest.raises(ConfigError, match="^--track 'tensorbord' is unknown; known: .*tensorboard"):
        check_trackers(TrainConfig(track="tensorbord"))
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = run(TrainConfig(**options, cache_features="off", track="tensorboard", out=str(tmp_path / "run")))
    written = accumulators.EventAccumulator(str(done / "tracking" / "run"))
    written.Reload()
    wanted = {line["step"]: line["validation_loss"] for line in lines(done) if "validation_loss" in line}
    found = {event.step: event.value for event in written.Scalars("validation_loss")}
    assert found == pytest.approx(wanted) and "loss" in written.Tags()["scalars"]


def test_a_tracker_that_is_not_installed_is_told(monkeypatch):
    tracking = pytest.importorskip("accelerate.tracking")
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ConfigError, match=r"^--track wandb: it is not installed; pip install 'vlm-train\[wandb\]'"):
        check_trackers(TrainConfig(track="wandb"))


def test_a_plain_run_has_the_same_losses(options, folder, tmp_path, capsys):
    plain = run(TrainConfig(**options, evaluate_every=2, plain=True, out=str(tmp_path / "run")))
    assert "plain: all 4 rows of a pass in full, and the head at all of its" in capsys.readouterr().out
    fast, slow = (
        [line["validation_loss"] for line in lines(one) if "validation_loss" in line] for one in (folder, plain)
    )
    assert slow == pytest.approx(fast, rel=1e-4)


def one_of_each_image(size):
    rows = vlm_data.open("scenes", split="families", size=size)
    first = {row["image"]["bytes"]: index for index, row in reversed(list(enumerate(rows)))}
    return rows.select(sorted(first.values()))


@pytest.mark.parametrize("name", vlm_models.TINY)
def test_plain_passes_have_the_same_losses(name):
    vlm = vlm_models.load(name, device="cpu")
    batch = vlm_data.collator(vlm.processor, vlm.family)(vlm_data.open("scenes", split="families", size=1).to_list())
    with torch.no_grad():
        loss, tokens = vlm(batch)
        vlm.plain = True
        plain, counted = vlm(batch)
    assert plain.item() == pytest.approx(loss.item(), rel=1e-4) and counted == tokens > len(batch["input_ids"])
    assert describe_step(vlm, batch)[0].startswith("plain: all ")


@pytest.fixture(scope="module")
def chat():
    vlm = vlm_models.load("tiny-qwen2-vl", device="cpu")
    return vlm, vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)


def test_each_fast_path_says_what_it_does(chat):
    vlm, collate = chat
    rows = one_of_each_image(3).to_list()
    questions = [{**rows[0], "prompt": f"what is {word}?", "references": ["a"]} for word in ("this", "that", "it")]
    packed, head = describe_step(vlm, collate(questions))
    assert re.fullmatch(r"rows packed: 3 of a pass behind 1 images, \d+ positions for \d+, 0% of them padding", packed)
    supervised = int((collate(questions)["labels"] != -100).sum())
    assert head.startswith(f"head at the supervised positions alone: {supervised} of ")
    assert describe_step(vlm, collate(rows[:1]))[0] == "rows are not packed: here it would spare nothing"


def test_a_prefix_starts_where_the_loss_is_lower(chat):
    vlm, collate = chat
    rows = vlm_data.open("scenes", split="families", size=4)
    attached = attach(TrainConfig(method="prefix", method_options="length=8"), vlm)
    random = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    said = start_prefix(attached, vlm, collate, rows)  # which this model was trained on
    assert said.startswith("the prefix starts random: loss 0.0")
    assert all(torch.equal(tensor, random[name]) for name, tensor in attached.state_dict().items())

    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.normal_(std=3)
    said = start_prefix(attached, vlm, collate, rows)
    low, high = map(float, re.fullmatch(r"the prefix starts as first tokens .*: loss (.*), random (.*)", said).groups())
    assert low < high
    with torch.no_grad():
        sample = rows.shuffle(seed=0).select(range(min(64, len(rows)))).to_list()
        found = [vlm(collate(sample[start : start + 16])) for start in range(0, len(sample), 16)]
    assert low == pytest.approx(sum(loss.item() for loss, _ in found) / sum(n.item() for _, n in found), abs=1e-3)
    attached.detach()


def test_other_methods_and_long_prefixes_start_as_they_are(chat):
    vlm, collate = chat
    rows = vlm_data.open("scenes", split="families", size=1)
    long = attach(TrainConfig(method="prefix", method_options="length=500"), vlm)
    assert re.match(r"the prefix starts random: .* real tokens at most", start_prefix(long, vlm, collate, rows))
    long.detach()
    lora = attach(TrainConfig(), vlm)
    assert start_prefix(lora, vlm, collate, rows) is None
    lora.detach()


def test_what_a_pass_keeps_is_counted(chat):
    """Of a layer with ReLU: its input, for the weight's gradient, and its output, for ReLU's."""

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(8, 16)

        def forward(self, batch):
            return self.linear(batch["x"]).relu().sum(), torch.tensor(1)

    assert kept_bytes(Layer(), {"x": torch.randn(32, 8)}) == 4 * (32 * 8 + 32 * 16)


@pytest.mark.parametrize("gigabytes", [0.05, 10.0])
def test_the_batch_is_the_largest_that_fits(chat, gigabytes, monkeypatch):
    vlm, collate = chat
    attached = attach(TrainConfig(), vlm)
    rows = one_of_each_image(20)

    class Memory:
        available = gigabytes * 2**30

    monkeypatch.setattr(batch_size.psutil, "virtual_memory", Memory)
    console = Console(file=io.StringIO(), width=200)
    size = fitting_batch_size(vlm, attached, collate, rows, console)
    batches = {many: collate(batch_size.widest_rows(collate, rows)[:many]) for many in (size, 2 * size)}
    allowed = 0.8 * gigabytes * 2**30 / batch_size.HIGH_WATER
    assert kept_bytes(vlm, batches[size]) <= allowed
    assert size == 16 or kept_bytes(vlm, batches[2 * size]) > allowed
    assert (size == 16) == (gigabytes == 10.0) and console.file.getvalue().startswith(f"batch size {size}: needs ")
    attached.detach()


def test_a_dry_run_plans_and_writes_nothing(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [*given, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "4 steps of 4 x 1 rows" in result.output and re.search(r"tokens an image, of \d+ sampled: ", result.output)
    assert "predicted time: " in result.output and "predicted memory: " in result.output
    assert len(re.search(r"losses of two steps: (.*)", result.output)[1].split(", ")) == 2
    assert "images encoded once" in result.output and not list(tmp_path.iterdir())
    small = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [*given, "--dry-run", "--cache-size=0.00001"]).output
    assert "every step: --cache-size does not hold their" in small and "encoded once" not in small
