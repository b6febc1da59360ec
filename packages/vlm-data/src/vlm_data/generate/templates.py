"""Questions from the attributes of products, by templates: no model, no network, the same for the same seed.

For each attribute an open question ("What color is the chair?") and a yes/no question. Half of the latter are answered
with no: they name a value of another product, of the same category if there is one, and a frequent value more often. So
the value that is asked about says little about the answer.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlm_data.generate.products import Product
from vlm_data.generate.questions import Question
from vlm_data.generate.words import KNOWN, SAME, may_both_be_true
from vlm_data.schema import DataError

_CATEGORIES = ("product_type", "category", "object", "type", "product")


@dataclass(frozen=True)
class Kind:
    """columns: the first that a product has is used. open, closed: questions with {noun} and {value} to fill in."""

    columns: tuple[str, ...]
    open: tuple[str, ...]
    closed: tuple[str, ...]


KINDS = {
    "color": Kind(
        ("color", "colour"),
        ("What color is the {noun}?", "What is the color of the {noun}?", "Which color does the {noun} have?"),
        ("Is the {noun} {value}?", "Is the color of the {noun} {value}?"),
    ),
    "material": Kind(
        ("material", "fabric_type"),
        ("What is the {noun} made of?", "What material is the {noun} made of?", "Which material is the {noun}?"),
        ("Is the {noun} made of {value}?", "Is the material of the {noun} {value}?"),
    ),
    "shape": Kind(
        ("shape", "item_shape"),
        ("What shape is the {noun}?", "What is the shape of the {noun}?", "Which shape does the {noun} have?"),
        ("Is the shape of the {noun} {value}?",),
    ),
    "pattern": Kind(
        ("pattern",),
        ("What pattern does the {noun} have?", "Which pattern is on the {noun}?"),
        ("Is the pattern of the {noun} {value}?",),
    ),
    "count": Kind(
        ("count", "number_of_items", "number_of_pieces", "quantity"),
        ("How many items are there?", "How many items are in the image?"),
        ("Is the number of items {value}?",),
    ),
}


def from_templates(
    products: Sequence[Product], *, seed: int = 0, per_image: int = 10, kinds: Iterable[str] = tuple(KINDS)
) -> list[Question]:
    """At most `per_image` questions about each product, in the products' order.

    An attribute counts only if its answer is one word: the one known word in it ("Matt black steel" is steel, as a
    material), or its only word ("Teal"). "Black/White" names two, and nothing is asked.

    Raises DataError for an unknown kind, and if no product has any of the attributes.
    """
    kinds = tuple(kinds)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise DataError(f"unknown kind of question {unknown[0]!r}; known: {', '.join(KINDS)}")
    answers = [{kind: answer for kind in kinds if (answer := answer_of(product, kind))} for product in products]
    if not any(answers):
        columns = ", ".join(column for kind in kinds for column in KINDS[kind].columns)
        found = ", ".join(sorted({name for product in products for name in product.attributes}))[:200]
        raise DataError(f"no product has an attribute to ask about; found: {found}; needed one of: {columns}")
    pools: dict[tuple[str, str], list[str]] = defaultdict(list)  # answers by kind and noun, "" for all nouns
    for product, own in zip(products, answers, strict=True):
        for kind, answer in own.items():
            pools[kind, _category(product)].append(answer)
            pools[kind, ""].append(answer)
    questions = []
    for product, own in zip(products, answers, strict=True):
        chance = random.Random(f"{seed}/{product.image}")  # of its own, so that other products do not change it
        asked = [one for kind, answer in own.items() for one in _ask(product, kind, answer, pools, chance)]
        questions += sorted(chance.sample(asked, min(per_image, len(asked))), key=asked.index)
    return questions


def answer_of(product: Product, kind: str) -> str | None:
    """The one word that answers this kind of question about a product, or None."""
    value = next((product.attributes[name] for name in KINDS[kind].columns if name in product.attributes), None)
    if value is None:
        return None
    if kind == "count":
        whole = re.fullmatch(r"0*([0-9]{1,3})(\.0+)?", value)
        return whole[1] if whole else None
    words = _words(value)
    known = {word for word in words if word in KNOWN[kind].split()}
    if known:
        return known.pop() if len(known) == 1 else None
    return words[0] if len(words) == 1 else None


def _ask(product: Product, kind: str, answer: str, pools: dict, chance: random.Random) -> list[Question]:
    noun = _noun(product)
    texts = KINDS[kind]
    opened, closed = chance.choice(texts.open), chance.choice(texts.closed)
    asked = [Question(product.image, opened.format(noun=noun), answer, kind)]
    negative = _negative(product, kind, answer, pools, chance)
    if negative is None:  # all products have this value, and yes would always be right
        return asked
    value, said = (answer, "yes") if chance.random() < 0.5 else (negative, "no")
    return [*asked, Question(product.image, closed.format(noun=noun, value=value), said, "yes/no")]


def _negative(product: Product, kind: str, answer: str, pools: dict, chance: random.Random) -> str | None:
    """A value of another product of the same noun, else of any, that nothing says of this product."""
    mentioned = {*may_both_be_true(answer), *(word for value in product.attributes.values() for word in _words(value))}
    for noun in dict.fromkeys((_category(product), "")):
        others = pools.get((kind, noun), [])
        for _ in range(20):  # drawn before filtered: the pool may have 100,000 values, mostly good ones
            if others and (value := chance.choice(others)) not in mentioned:
                return value
        if rest := sorted(set(others) - mentioned):
            return chance.choice(rest)
    return None


def _category(product: Product) -> str:
    """The category in plain words, "" if there is none: "CELLULAR_PHONE_CASE" is "cellular phone case"."""
    value = next((product.attributes[name] for name in _CATEGORIES if name in product.attributes), "")
    return " ".join(re.findall(r"[a-z0-9-]+", value.lower().replace("_", " ")))


def _noun(product: Product) -> str:
    """What the product is called; the templates take a singular."""
    category = _category(product)
    is_plural = category.endswith("s") and not category.endswith("ss")
    return category if 0 < len(category) <= 40 and not is_plural else "product"


def _words(value: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:['-][^\W\d_]+)*", value.lower())
    return [SAME.get(word, word) for word in words if not word.isdecimal()]
