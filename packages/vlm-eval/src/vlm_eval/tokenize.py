"""Words as the COCO caption tools see them: the tokens of Stanford's `PTBTokenizer -preserveLines -lowerCase`
(CoreNLP 3.4.1) without the punctuation that those tools drop. No Java is needed.

The rules, in `ptb_rules.py`, were found by asking the Java program. As there, at each place the rule that
matches most characters wins, and the first of them on a tie. Two things differ on purpose:

* A line separator inside a caption is a blank. The COCO tools take it for the end of the caption, and
  every later caption gets the words of another one.
* What follows a caption never matters. Java sees the captions as one text, so that the dot of "plan b." depends on the
  first word of the next caption.
"""

from functools import cache, lru_cache

from vlm_eval.ptb_rules import DROPPED, compiled_rules, spelled

# A word with one of these may be part of a longer token, or end differently before another word: 1 1/2, <a b>, No. 5.
NEEDS_CONTEXT = frozenset("0123456789.<>&")

LONGEST = 1000  # characters of a token with its context; bounds the time for texts without blanks


def tokenize(text: str) -> list[str]:
    """The words of a text: "A dog's ball, isn't it?" -> a dog 's ball is n't it.

    A token that spans a blank ("1 1/2") holds a no-break space in its place, as in Java.
    """
    *words, last = text.split() or [""]
    tokens = []
    for word in words:
        found = _tokens_of_word(word)
        if found is None:
            return _scan(text)
        tokens += found
    found = _tokens_of_last_word(last)
    return _scan(text) if found is None else tokens + found


@lru_cache(maxsize=2**16)  # captions repeat words: scanning is done once for each
def _tokens_of_word(word: str) -> list[str] | None:
    """Tokens of a word that has another one behind it; None if its neighbours may matter."""
    return _scan(word) if NEEDS_CONTEXT.isdisjoint(word) else None


@lru_cache(maxsize=2**16)
def _tokens_of_last_word(word: str) -> list[str] | None:
    """The same for a word with nothing behind it, where a final dot needs no context."""
    return _scan(word) if NEEDS_CONTEXT.isdisjoint(word.removesuffix(".")) else None


_rules = cache(compiled_rules)


def _scan(text: str) -> list[str]:
    of_words, of_others, alone, blank, outside = _rules()
    # Blanks of any kind become one, and what has no place in Java's 16 bits becomes a character that is no token.
    text = outside.sub("\0", " ".join(text.split())) + "\n"
    position, tokens = blank.match(text).end(), []
    while position < len(text) - 1:
        if plain := alone.match(text, position):
            tokens += _tokens_of_word(plain[1]) or [plain[1]]  # or: it is a number
            position = plain.end()
            continue
        longest = token_end = 0
        for rule in of_words if text[position].isalnum() else of_others:
            found = rule.match(text, position, position + LONGEST)
            if found and found.end() > longest:
                longest, token_end = found.end(), found.end(1)
        if longest:
            tokens.append(spelled(text[position:token_end]))
        position = blank.match(text, token_end or position + 1).end()
    return [token for token in tokens if token not in DROPPED]
