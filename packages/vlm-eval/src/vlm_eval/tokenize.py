"""Words as the caption metrics see them: Penn-Treebank-like, lower case, without punctuation (`ptb-lite`).

* lower case; curly quotes are straightened
* clitics split: "don't" -> do n't, "dog's" -> dog 's, also 're 've 'll 'd 'm, and "cannot" -> can not
* kept whole: words joined by - or / (t-shirt, and/or), o'clock, abbreviations (u.s.), numbers (1,000 3.5 10:30 1/2)
* brackets become -lrb- -rrb- -lsb- -rsb- -lcb- -rcb-, as the COCO tools leave them; any other symbol is its own token
* dropped: . ? ! , : ; - ` ' " in any number and the characters … – —

Equal to Stanford's tokenizer on plain captions, not on every text.
"""

import re

_CLITIC = r"'(?:s|re|ve|ll|d|m)\b"
_TOKEN = re.compile(
    rf"""
      can(?=not\b) | \w+?(?=n't\b) | n't\b | {_CLITIC}
    | [^\W\d_]\.(?:[^\W\d_]\.)+
    | \d+(?:[.,:/]\d+)+
    | \w+ (?: [-/]\w+ | (?!{_CLITIC})'\w+ )*
    | [^\w\s]
    """,
    re.VERBOSE,
)
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
_DROPPED = set(".?!,:;-`'\"…–—")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def tokenize(text: str) -> list[str]:
    """The words of a text, e.g. "A dog's ball, isn't it?" -> a dog 's ball is n't it."""
    tokens = _TOKEN.findall(text.lower().translate(_STRAIGHT))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED]
