"""`comparison.html`: the table with plots, in one file."""

import base64
import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from vlm_compare.statistics import Line
from vlm_compare.tables import cells_of

STYLE = """:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 16px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35em .55em;font-size:.93em;border-bottom:1px solid #8884;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}img{max-width:100%;background:#fff}
small,.soft{color:#777}"""


def comparison_page(
    title: str, lines: Sequence[Line], baseline: str, failed: Sequence[tuple[str, str]], notes: Sequence[str]
) -> str:
    """HTML that needs no other file; the runs' own reports are linked, as folders beside it in `runs/`.

    `failed` are cells that could not be trained, with the reason.
    """
    head, rows = cells_of(lines, baseline)
    table = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in [*head, "runs"]) + "</tr>"
    for line, cells in zip(lines, rows, strict=True):
        links = " ".join(
            f'<a href="runs/{html.escape(run)}/report.html">{number}</a>' for number, run in enumerate(line.runs)
        )
        table += "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in cells) + f"<td>{links}</td></tr>"
    told = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in failed)
    more = f"<h2>Not trained</h2><ul>{told}</ul>" if failed else ""
    said = "".join(f"<p class=soft>{html.escape(note)}</p>" for note in notes)
    picture = base64.b64encode(plots(lines, baseline)).decode()
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta name=viewport content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><div class=wide><table>{table}</table></div>{said}"
        f'<p><img src="data:image/png;base64,{picture}" alt="scores with intervals, and beside what they cost"></p>'
        f"{more}</html>\n"
    )


def plots(lines: Sequence[Line], baseline: str) -> bytes:
    """A PNG: scores with intervals, and beside trained share and time."""
    figure = Figure(figsize=(12, max(3.2, 0.45 * len(lines) + 1.6)), layout="constrained")
    by_score, by_share, by_time = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    metric = lines[0].metric.replace("_", " ")
    for place, line in enumerate(lines):
        color = f"C{place % 10}"
        low, high = line.interval
        by_score.errorbar(
            line.score, -place, xerr=[[line.score - low], [high - line.score]], fmt="o", color=color, capsize=4
        )
        for axes, cost in ((by_share, 100 * line.trained_share), (by_time, line.training_seconds)):
            axes.errorbar(cost, line.score, yerr=[[line.score - low], [high - line.score]], fmt="o", color=color)
            axes.annotate(line.group, (cost, line.score), xytext=(6, 4), textcoords="offset points", fontsize=8)
    by_score.axvline(lines[0].before, color="gray", linestyle=":", label="base model")
    by_score.set_yticks([-place for place in range(len(lines))], [line.group for line in lines])
    by_score.set(xlabel=f"{metric}, 95 % interval", ylim=(0.6 - len(lines), 0.6))
    by_score.legend(frameon=False, fontsize=8)
    by_share.set(xlabel="trained parameters (%)", ylabel=metric, xscale="log")
    by_share.xaxis.set_major_formatter("{x:g}")
    by_share.xaxis.set_minor_formatter(NullFormatter())
    by_time.set(xlabel="training (s)", xlim=(0, 1.25 * max(line.training_seconds for line in lines)))
    for axes in (by_score, by_share, by_time):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.margins(x=0.15)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
