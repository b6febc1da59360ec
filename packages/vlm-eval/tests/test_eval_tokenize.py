"""The caption tokenizer against Stanford's: frozen results of the Java program, and the program itself where it is."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_eval.tokenize import tokenize

FROZEN = Path(__file__).parent / "data" / "ptb_captions.json"  # [[caption, its words in the COCO tools], ...]

PLAIN = [
    "a an the A The on of in with man woman dogs cat surfboard t-shirt fire-hydrant laptop Frisbee wave",
    "is are riding holds sitting isn't won't can't cannot gonna he's they're that'll dog's women's I'm don't",
    "red Blue green two-story black-and-white young small LARGE (tiny) half-eaten well-lit and/or his/her",
]
RARE = [
    "Mr. Smith|Mrs. Jones|Dr. O'Brien|St. Louis|the U.S.|Washington D.C.|J. R. R. Tolkien|New York, N.Y.|Main St.|AT&T|"
    "M&M's|Coca-Cola|Ben & Jerry's|L'Oreal|D'Angelo|McDonald's|7-Eleven|No. 5|Ph.D.|U.K.|Sgt. Pepper|Jan. 5|Sept. 11|"
    "Acme Inc.|Apple Corp.|i.e. this|e.g. that|etc.|a.m.|5 p.m.|vs. them|Plan B. He|fig. 3",
    "1|2|3.5|1,000|10:30|1/2|3/4|1st|22nd|50%|100%|#1|$5|$1,299.99|£20|€15|5¢|20°C|1990s|'80s|1990's|5'10\"|6ft|10am|4x4|"
    "12/25/2014|2014-05-01|555-1234|(555) 123-4567|1-800-555-0199|-5|+3|1½|½|.5|1080p|24/7|9-11|"
    "10,000-seat|3.5mm|1.5x|1 1/2",
    "http://www.example.com/a?b=c|www.foo.org|example.com|a.b@mail.com|#sunset|@user|<b>bold</b>|<br/>|&amp;|photo.jpg|"
    "IMG_1234.jpg|001.png|t.co/abc123|https://t.co/Xy12Z|snake_case|C++|C#",
    ":)|:-)|;-)|:(|:D|:P|=)|<3|^_^|-_-|:'(|xD|😀|🐶|❤|❤️|★|♥|☺|✓|→|👨‍👩‍👧|🇺🇸|©|®|™",
    "'tis|'twas|'em|'n'|rock'n'roll|y'all|ma'am|o'clock|dogs'|James's|don’t|it’s|‘til|'cause|somethin'|ol'|c'mon|would've|"
    "shouldn't've|she'd|DON'T|Cat's|l'eau|jack-o'-lantern|doesn`t",
    "日本語|の|写真|中文|한국어|שלום|مرحبا|привет|мир|Ελλάδα|हिन्दी|ไทย|Zürich|façade|Ñandú|ßtraße|İstanbul|æther|ﬁsh|Ωmega|naı̈ve",
    "w/|w/o|men/women/kids|n/a|1/2-inch|TV/DVD|c/o|a/b/c/d",
]  # fmt: skip
PLAIN, RARE = [words.split() for words in PLAIN], [words.split("|") for words in RARE]
AROUND = "\"{}\" '{}' “{}” ‘{}’ ``{}'' ({}) [{}] {{{}}} «{}» *{}* **{}** _{}_ <{}> --{}-- `{}`"
BEHIND = ". . . . , ; : ! ? ... .. !! ?! !!! … – — - -- / & + = ~ | \\ % ^ @ • ·"
BETWEEN = [" "] * 96 + ["  "] * 3 + list("\t\u00a0\u200b\ufeff\u3000\u00ad\x01-/,.&'")
LAST = [".", ".", ".", "", " .", "!", "?", "...", ". "]


def caption(random: Random, plain: float) -> str:
    """A caption as people and models write them; a share `plain` has words and stops only."""
    is_plain, text = random.random() < plain, ""
    for i in range(random.randint(1, 14)):
        if is_plain or random.random() < 0.6:
            word = random.choice(random.choice(PLAIN))
        else:
            word = random.choice(random.choice(RARE))
        if not is_plain and random.random() < 0.06:
            word = random.choice(AROUND.split()).format(word)
        if random.random() < 0.1:
            word += random.choice(",;:!?" if is_plain else BEHIND.split())
        if random.random() < 0.03:
            word = random.choice([str.upper, str.capitalize])(word)
        text += (" " if is_plain else random.choice(BETWEEN)) * (i > 0) + word
    # Not "a." at the end: there the first word of Java's next caption decides.
    return text + (random.choice(LAST) if text[-2:-1].isalpha() else "")


def words_by_java(captions: list[str]) -> list[str]:
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    words = module.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
    return [words[i][0] for i in range(len(captions))]


def test_equal_to_frozen_results_of_the_java_program():
    for text, words in json.loads(FROZEN.read_text(encoding="utf-8")):
        assert " ".join(tokenize(text)) == words, text


def test_equal_to_java_on_99_of_100_captions_of_every_kind():
    random = Random(0)
    captions = [caption(random, plain=0.3) for _ in range(10_000)]
    different = [
        text for text, words in zip(captions, words_by_java(captions), strict=True) if " ".join(tokenize(text)) != words
    ]
    assert len(different) <= 100, different[:10]


def test_equal_to_java_on_all_plain_captions():
    random = Random(1)
    captions = [caption(random, plain=1) for _ in range(5_000)]
    assert [" ".join(tokenize(text)) for text in captions] == words_by_java(captions)


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_line_separator_is_a_blank(separator):
    assert tokenize(f"a dog{separator}runs.{separator}") == ["a", "dog", "runs"]


@pytest.mark.parametrize("text", ["", " ", "\n", "?", "...", "' \" `` -", "\u200b", "😀"])
def test_texts_without_words(text):
    assert tokenize(text) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from(sum(PLAIN, [])), max_size=12))
def test_plain_words_are_tokenised_apart(words):
    assert tokenize(" ".join(words)) == [token for word in words for token in tokenize(word)]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_tokens_are_lower_case_and_never_empty(text):
    for token in tokenize(text):
        assert token
        assert token == token.lower()
        assert " " not in token
