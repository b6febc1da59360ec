"""The answer normalisation of the VQA challenge, quirks included (GT-Vision-Lab/VQA, vqaEval.py).

Punctuation first: a mark is deleted if anywhere in the text it touches a blank, or if the text has a comma between
digits; else it becomes a blank. The first 32 periods not followed by a digit are deleted. Then, word by word
in lower case: number words become digits ("none" is 0), articles go, contractions get their apostrophe back.
"""

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_REMOVED = 32  # the original passes the flag re.UNICODE, 32, where `re.sub` takes the count

ARTICLES = {"a", "an", "the"}
_COUNTED = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(_COUNTED.split())}

# A word is restored from each spelling that lacks exactly one of its apostrophes: dont, couldnt've, couldn'tve.
# The original also lists two words mapped to themselves, and Im, Ive, Id've and I'dve, which no lower-case word equals.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTED.split() for mark in re.finditer("'", word)
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the one entry that the original has the wrong way round


def clean(text: str) -> str:
    """What the challenge does to every answer, even where it does not normalise."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**16)  # answers repeat: most of a data set's are among its few hundred most frequent
def normalize(text: str) -> str:
    """The normalised form of an answer, e.g. "The  Dog." -> "dog", "two" -> "2", "dont" -> "don't"."""
    text = spaced = clean(text)
    number_comma = DIGIT_COMMA.search(text)
    for mark in filter(text.__contains__, PUNCTUATION):
        deleted = number_comma or f"{mark} " in text or f" {mark}" in text
        spaced = spaced.replace(mark, "" if deleted else " ")
    words = PERIOD.sub("", spaced, count=PERIODS_REMOVED).lower().split()
    words = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
