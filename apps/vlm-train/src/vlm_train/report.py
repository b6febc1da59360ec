"""What people look at: curves, a page of predictions with their pictures, and a model card."""

import base64
import html
import io
from typing import Any

from datasets import Dataset
from matplotlib.figure import Figure

from vlm_data import decode
from vlm_eval import Score
from vlm_train.loop import Step
from vlm_train.rundir import RunDir

SAMPLES = 24
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .7em;text-align:left}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:1em}
figure{margin:0;border:1px solid #ddd;padding:.6em;border-radius:6px}figure img{width:100%;image-rendering:auto}
.right{color:#06752b}.wrong{color:#b00020}"""


def curves(run: RunDir, steps: list[Step]) -> None:
    """`curves.png`: loss by optimizer step, and its running mean."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    losses = [step.loss for step in steps]
    window = max(1, len(losses) // 50)
    means = [sum(losses[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(losses))]
    numbers = [step.step for step in steps]
    axes.plot(numbers, losses, alpha=0.3, label="loss")
    axes.plot(numbers, means, label=f"mean of {window}")
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)", yscale="log")
    axes.legend()
    figure.savefig(run.folder / "curves.png", dpi=120)


def page(run: RunDir, title: str, facts: list[tuple[str, str]], rows: Dataset, predictions: list[dict]) -> None:
    """`report.html`: the closing table, the curves, and predictions with their pictures, wrong ones first."""
    wrong_first = sorted(range(len(predictions)), key=lambda index: predictions[index]["exact_match"])
    half = SAMPLES // 2
    chosen = wrong_first if len(wrong_first) <= SAMPLES else wrong_first[:half] + wrong_first[-half:]
    figures = "".join(_figure(rows[index], predictions[index]) for index in chosen)
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts)
    run.write_text(
        "report.html",
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><table>{cells}</table><p><img src=curves.png alt='loss curve' width=700></p>"
        f"<h2>Predictions</h2><div class=grid>{figures}</div>\n",
    )


def card(run: RunDir, record: dict[str, Any], facts: list[tuple[str, str]]) -> None:
    """`README.md`: a model card."""
    config = record["config"]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts)
    run.write_text(
        "README.md",
        f"# {config['model']} adapted to {config['data']}\n\n"
        f"An adapter ({config['method']}, rank {config['rank']}, alpha {config['alpha']:g}) for `{config['model']}` "
        f"(`{record['model']['class']}`), trained on {record['data']['train']['rows']:,} rows and evaluated on "
        f"{record['data']['validation']['rows']:,} rows of other images.\n\n| | |\n|---|---|\n{table}\n\n"
        f"Use it with `vlm-infer --run {run.folder} --image FILE`, or in Python:\n\n"
        "```python\nimport peft_methods, vlm_models\n\n"
        f'vlm = vlm_models.load({config["model"]!r})\npeft_methods.load(vlm.model, "adapter")\n```\n',
    )


def score_text(score: Score) -> str:
    low, high = score.interval
    return f"{score.value:.3f} [{low:.3f}, {high:.3f}]"


def _figure(row: dict, record: dict) -> str:
    picture = decode(row["image"])
    picture.thumbnail((256, 256))
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    data = base64.b64encode(buffer.getvalue()).decode()
    verdict = "right" if record["exact_match"] else "wrong"
    expected = " / ".join(record["references"])
    asked, answered, expected = map(html.escape, (row["prompt"] or "caption", record["prediction"], expected))
    return (
        f"<figure><img src='data:image/png;base64,{data}' alt=''><figcaption>{asked}<br>"
        f"<b class={verdict}>{answered}</b><br>expected {expected}</figcaption></figure>"
    )
