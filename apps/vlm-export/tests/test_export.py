"""What is exported computes what the run computed: against reloaded models, products by hand, and peft."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import peft_methods as pm
import vlm_models
from vlm_export import ExportError, cli, reload
from vlm_export.card import write
from vlm_export.probes import Difference, difference, logits_on, make_probes
from vlm_export.reading_back import check
from vlm_export.source import Source

RELATIVE = 1e-5  # of float32 sums in another order


def export(*arguments: str | Path) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr or repr(result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    Image.effect_noise((80, 60), 90).save(folder / "a.png")
    row = {"image": str(folder / "a.png"), "prompt": "is there a star?", "references": ["no"]}
    lines = [
        row,
        {**row, "image": None},
        {**row, "image": "gone.png"},
        {**row, "prompt": None, "references": ["noise"]},
    ]
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def logits_of(vlm, pictures) -> list[torch.Tensor]:
    return logits_on(vlm.model, vlm.processor, make_probes(pictures / "predictions.jsonl", pictures), pictures)


def of_run(run, model, pictures, quantization="none") -> list[torch.Tensor]:
    vlm = vlm_models.load(model, quantization, device="cpu")
    pm.load(vlm.model, run / "adapter")
    return logits_of(vlm, pictures)


def test_probes_are_validation_rows_with_pictures(pictures, tmp_path):
    made = make_probes(pictures / "predictions.jsonl", tmp_path)
    assert [(one.question, one.answer) for one in made] == [("is there a star?", "no"), ("", "noise")]
    assert len(make_probes(None, tmp_path)) == 1  # a drawn one


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("tiny-qwen2-vl", pm.GRIT(rank=4)),
        ("tiny-blip2", pm.LoRA(rank=4, dora=True, targets=r"re:language_model\..*(fc1|v_proj)")),
        ("tiny-vit-gpt2", pm.BitFit()),
    ],
    ids=["grit", "dora", "bitfit"],
)
def test_merged_models_compute_what_the_run_does(model, method, make_run, pictures, tmp_path):
    run = make_run(model, method)
    said = export("--run", run, "--out", tmp_path / "out", "--shard-size", "2MB")
    assert "logits, merged" in said and "vlm-train --model" in said
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1 and all(shard.stat().st_size < 3e6 for shard in shards)
    assert (tmp_path / "out" / "generation_config.json").exists()
    merged = logits_of(vlm_models.load(str(tmp_path / "out"), device="cpu"), pictures)
    trained, base = of_run(run, model, pictures), logits_of(vlm_models.load(model, device="cpu"), pictures)
    assert difference(trained, merged).relative < RELATIVE < 1e-2 < difference(trained, base).relative


def test_read_back_in_a_new_process(git_run, tmp_path):
    said = export("--run", git_run, "--out", tmp_path / "out", "--check", "--dtype", "bfloat16")
    assert "bfloat16 weights in place of float32" in said and "read back in a new process" in said
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    base = dict(vlm_models.load("tiny-git", device="cpu", dtype="bfloat16").model.named_parameters())
    for name, product in products(git_run / "adapter").items():
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        exact = base[weight].detach().double() + product
        half_a_unit = 2**-8 * 1.001  # of the last bit: it is rounded once
        torch.testing.assert_close(tensors[weight].double(), exact, rtol=half_a_unit, atol=1e-7)


def test_a_damaged_weight_is_found(git_run, pictures, tmp_path):
    export("--run", git_run, "--out", tmp_path / "out")
    vlm = vlm_models.load("tiny-git", device="cpu")
    pm.load(vlm.model, git_run / "adapter")
    trained = logits_of(vlm, pictures)
    reload.main(str(tmp_path / "out"), str(pictures), "cpu")
    assert check(difference(trained, read(pictures)), "float32", tmp_path).agreeing == 1
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors["git.encoder.layer.0.output.dense.weight"] *= 1.1
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    reload.main(str(tmp_path / "out"), str(pictures), "cpu")
    with pytest.raises(ExportError, match="does not compute what was exported"):
        check(difference(trained, read(pictures)), "float32", tmp_path)
    with pytest.raises(ExportError, match="does not compute"):
        check(Difference(float("nan"), 1.0, 0.0), "bfloat16", tmp_path)


def read(pictures) -> list[torch.Tensor]:
    found = load_file(pictures / "logits.safetensors")
    return [found[str(number)] for number in range(len(found))]


def test_four_bits_are_merged_into_the_original_weights(make_run, tmp_path):
    pytest.importorskip("bitsandbytes")
    run = make_run("tiny-qwen2-vl", quantization="nf4")
    said = export("--run", run, "--out", tmp_path / "out")
    assert "float32 weights in place of nf4" in said
    base = dict(vlm_models.load("tiny-qwen2-vl", device="cpu").model.named_parameters())
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj"
    A, B = (adapter[f"base_model.model.{name}.lora_{one}.weight"].double() for one in "AB")
    expected = base[f"{name}.weight"].double() + 16 / 4 * B @ A
    merged = dict(vlm_models.load(str(tmp_path / "out"), device="cpu").model.named_parameters())[f"{name}.weight"]
    torch.testing.assert_close(merged.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", [pm.Adapter("pfeiffer", within=r"git\.encoder.*"), pm.Prefix(length=4)])
def test_what_cannot_be_merged_is_exported_as_it_is(method, make_run, tmp_path):
    run = make_run("tiny-git", method)
    said = export("--run", run, "--out", tmp_path / "out", "--to", "run")
    assert "vlm-infer --run" in said
    one, other = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, tmp_path / "out"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["model"] == "tiny-git" and record["results"]["after"] == {"exact_match": 0.5}
    refused = CliRunner().invoke(cli.app, ["--run", str(run), "--out", str(tmp_path / "peft"), "--to", "peft"])
    assert refused.exit_code == 2 and "PEFT has no words for this" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("OFT", {"r": 2, "oft_block_size": 0}), ("LILY", {"r": 2})],
    ids=["merged", "not to be merged"],
)
def test_kinds_of_adapter_that_only_peft_has(kind, options, make_run, pictures, tmp_path):
    peft = pytest.importorskip("peft")
    run = make_run("tiny-git")
    shutil.rmtree(run / "adapter")
    vlm = vlm_models.load("tiny-git", device="cpu")
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](target_modules=["query", "value"], **options)
    wrapped = peft.get_peft_model(vlm.model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    wrapped.save_pretrained(run / "adapter")
    trained, base = logits_of(vlm, pictures), logits_of(vlm_models.load("tiny-git", device="cpu"), pictures)
    if kind == "LILY":
        refused = CliRunner().invoke(cli.app, ["--run", str(run), "--out", str(tmp_path / "out")])
        assert refused.exit_code == 2 and "PEFT cannot put it into the weights" in refused.stderr
        assert "--to run exports" in refused.stderr and list(tmp_path.iterdir()) == []
    else:
        export("--run", run, "--out", tmp_path / "out")
        merged = logits_of(vlm_models.load(str(tmp_path / "out"), device="cpu"), pictures)
        assert difference(trained, merged).relative < RELATIVE < 1e-2 < difference(trained, base).relative
    refused = CliRunner().invoke(cli.app, ["--run", str(run), "--out", str(tmp_path / "no"), "--rank", "2"])
    assert refused.exit_code == 2 and "only a LoRA can be resized" in refused.stderr
    assert "peft" in export("--run", run, "--out", tmp_path / "peft", "--to", "peft")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (run / "adapter", tmp_path / "peft"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_vision_part_with_an_adapter_of_its_own(make_run, pictures, tmp_path):
    run = make_run("tiny-git")
    vlm = vlm_models.load("tiny-git", device="cpu")
    vision = pm.attach(vlm.model, pm.Adapter("pfeiffer", within=r"git\.image_encoder.*"))
    torch.nn.init.normal_(vision.parameters()[-1])
    vision.save(run / "adapter" / "vision")
    arguments = ["--run", str(run), "--out", str(tmp_path / "no")]
    for more, reason in (([], "cannot be merged"), (["--rank", "2"], "of its own"), (["--to", "peft"], "two adapters")):
        refused = CliRunner().invoke(cli.app, [*arguments, *more])
        assert refused.exit_code == 2 and reason in refused.stderr
    export("--run", run, "--out", tmp_path / "run", "--to", "run")
    other = pm.attach(vlm_models.load("tiny-git", device="cpu").model, pm.LoRA(rank=2, targets=["k_proj"]))
    torch.nn.init.normal_(other.parameters()[-1])
    other.save(tmp_path / "run" / "adapter" / "vision")
    export("--run", tmp_path / "run", "--out", tmp_path / "out")
    both = vlm_models.load("tiny-git", device="cpu")
    pm.load(both.model, run / "adapter")
    pm.load(both.model, tmp_path / "run" / "adapter" / "vision")
    merged = logits_of(vlm_models.load(str(tmp_path / "out"), device="cpu"), pictures)
    assert difference(logits_of(both, pictures), merged).relative < RELATIVE


def products(folder: Path) -> dict[str, torch.Tensor]:
    """scale · B A of each module, from the files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    scale = config["lora_alpha"] / config["r"]
    pairs = {
        name: (tensors[f"{name}.lora_B.weight"].double(), tensors[f"{name}.lora_A.weight"].double()) for name in names
    }
    return {name: scale * B @ A for name, (B, A) in pairs.items()}


def test_a_smaller_rank_is_the_best_of_that_rank(git_run, tmp_path):
    said = export("--run", git_run, "--out", tmp_path / "out", "--to", "run", "--rank", "2")
    before, after = products(git_run / "adapter"), products(tmp_path / "out" / "adapter")
    lost = norm = 0.0
    for name, product in before.items():
        singular = torch.linalg.svdvals(product)
        error = torch.linalg.matrix_norm(product - after[name])
        torch.testing.assert_close(error, singular[2:].norm(), atol=1e-5, rtol=1e-4)
        lost, norm = lost + float(error) ** 2, norm + float(product.norm()) ** 2
    assert f"{(lost / norm) ** 0.5:.2%} of the update's norm is lost" in said
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["rank"] == 2 and "results" not in record  # they are of another adapter


def test_adapters_are_summed_with_weights(git_run, make_run, tmp_path):
    other = make_run("tiny-git", seed=1)
    said = export("--adapters", f"{git_run}=0.7,{other / 'adapter'}=-0.3", "--out", tmp_path / "out", "--to", "peft")
    assert "0.7 × " in said
    one, two, summed = products(git_run / "adapter"), products(other / "adapter"), products(tmp_path / "out")
    for name in summed:
        torch.testing.assert_close(summed[name], 0.7 * one[name] - 0.3 * two[name], atol=1e-6, rtol=1e-5)


def test_to_peft_and_back(make_run, pictures, tmp_path):
    peft = pytest.importorskip("peft")
    run = make_run("tiny-qwen2-vl", pm.GRIT(rank=4, targets=["q_proj", "up_proj"]))
    said = export("--run", run, "--out", tmp_path / "peft", "--to", "peft")
    assert "GRIT's options stay in the file's metadata" in said
    vlm = vlm_models.load("tiny-qwen2-vl", device="cpu")
    theirs = peft.PeftModel.from_pretrained(vlm.model, tmp_path / "peft")
    probes = make_probes(pictures / "predictions.jsonl", pictures)
    by_peft = logits_on(theirs, vlm.processor, probes, pictures)
    assert difference(by_peft, of_run(run, "tiny-qwen2-vl", pictures)).relative < RELATIVE
    theirs.save_pretrained(tmp_path / "saved")
    export("--from-peft", tmp_path / "saved", "--model", "tiny-qwen2-vl", "--out", tmp_path / "merged")
    merged = logits_of(vlm_models.load(str(tmp_path / "merged"), device="cpu"), pictures)
    assert difference(by_peft, merged).relative < RELATIVE


def test_images_are_seen_at_the_size_of_training(make_run, tmp_path):
    run = make_run("tiny-qwen2-vl")
    record = json.loads((run / "run.json").read_text())
    record["config"]["max_image_tokens"] = 9
    (run / "run.json").write_text(json.dumps(record))
    export("--run", run, "--out", tmp_path / "merged")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = processor(text="<|image_pad|>", images=Image.new("RGB", (400, 400)), return_tensors="pt")
    assert inputs["image_grid_thw"].prod() // processor.image_processor.merge_size**2 <= 9


def test_the_card_tells_a_hub_id_from_a_folder(git_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export("--run", git_run, "--out", "own/folder")
    run = tmp_path / "run"
    shutil.copytree(git_run, run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"] = "own/folder"  # which an id of the hub could be called, too
    (run / "run.json").write_text(json.dumps(record))
    export("--run", run, "--to", "peft", "--out", "peft")
    card = ModelCard.load("peft/README.md")
    assert "base_model" not in card.data.to_dict() and "An adapter for `folder`" in card.text
    vlm = vlm_models.load("own/folder", device="cpu")
    source = Source("someone/something", {git_run / "adapter": 1.0}, revision="v1")
    write(tmp_path, source, vlm, "peft", None, {})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "someone/something" and "revision='v1'" in card.text


@pytest.mark.parametrize("to", ["model", "run"])
def test_the_card_is_valid_and_its_code_runs(to, git_run, tmp_path):
    export("--run", git_run, "--out", tmp_path / "out", "--to", to)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "image-text-to-text" and "lora" in card.data.tags
    assert "base_model" not in card.data.to_dict()  # no id of the hub
    assert "| exact match | 0.500 [0.400, 0.600], 300 validation rows |" in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    namespace = {"FOLDER": str(tmp_path / "out")}
    exec(code, namespace)
    assert "model" in namespace or "vlm" in namespace
