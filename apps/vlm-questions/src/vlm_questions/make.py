"""Products in, questions out: by templates, or from a model."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from vlm_data import Rejected, generate
from vlm_runs.progress import track

CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Made:
    """The questions; pairs of a model that were dropped, by reason; and the products without a reply."""

    questions: list[generate.Question]
    dropped: Counter[str] = field(default_factory=Counter)
    unanswered: list[Rejected] = field(default_factory=list)


def read(
    data: Path, image_dir: Path | None, language: str, images: int | None, seed: int
) -> tuple[list[generate.Product], Path, list[Rejected]]:
    """The products to ask about, their image folder, and the rows left out."""
    rejected: list[Rejected] = []
    with CONSOLE.status(f"reading {data}"):
        products, image_dir = generate.read_products(data, image_dir=image_dir, language=language, rejected=rejected)
    if images is not None and images < len(products):
        chosen = set(random.Random(seed).sample(range(len(products)), images))
        products = [product for number, product in enumerate(products) if number in chosen]
    return products, image_dir, rejected


def by_templates(products: list[generate.Product], seed: int, per_image: int, kinds: str | None) -> Made:
    kinds = tuple(generate.KINDS) if kinds is None else tuple(kind.strip() for kind in kinds.split(","))
    with CONSOLE.status("writing questions"):
        return Made(generate.from_templates(products, seed=seed, per_image=per_image, kinds=kinds))


def by_model(
    products: list[generate.Product],
    url: str,
    model: str,
    key: str | None,
    out: Path,
    per_image: int,
    concurrency: int,
    retries: int,
    timeout: float,
) -> Made:
    """Asks about the products that no earlier run for the same `out` has asked about."""
    endpoint = generate.Endpoint(url, model, key=key, retries=retries, timeout=timeout)
    with (
        generate.Journal(replies_file(out), {"model": model, "per_image": per_image}) as journal,
        track(CONSOLE, "asking about images", len(products)) as progress,
    ):
        unanswered = generate.ask_all(
            products,
            endpoint,
            journal,
            per_image=per_image,
            concurrency=concurrency,
            progress=progress.at,
        )
        return Made(*generate.from_replies(products, journal), unanswered)


def replies_file(out: Path) -> Path:
    return out.with_suffix(".replies.jsonl")
