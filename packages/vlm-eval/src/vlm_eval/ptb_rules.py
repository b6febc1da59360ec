"""The token rules behind `tokenize.py`: what a word, a number, an abbreviation or a smiley looks like.

A rule is a regular expression whose first group is the token; the rest is context, which counts for the length by which
rules compete and stays in the text. The order only settles ties.
"""

# The tokens that the COCO tools drop, after lower case. Brackets are spelled in capitals on their list, so they stay.
DROPPED = frozenset(["", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Keep their dot whatever follows, in any case, or only with a capital ("in Wash." but "to wash.").
_ABBREVIATIONS = """
    al co ct ga jr ky md mo rd rt sq sr va vt ala apr aug bhd cos dak dec esq est etc ext feb fla fri inc ind jan jul
    jun kan ltd mar mon neb nev nov oct plc pte pty sep seq sys tel thu tue wed wis wyo cf dr ft lt mr ms mt ph st vs wm
    adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mfg mme mrs mtg pfc pvt rep rev sen sfc sgt spc ste
    alex ariz assn asst atty bldg blvd brig bros capt cmdr colo conn corp dept elec govs insp intl invt kans mich minn
    mlle mont msgr natl okla penn ppte ppty pres prof ptes ptys reps sens sept supt tenn tues univ wisc calif thurs
    messrs comdr lieut assoc treas profs
"""
_CAPITALISED = "Az La Pa Ark Del Ill Ore Tex Mass Miss Wash"
_BEFORE_NUMBERS = "ca no op pp art fig nos figs prop"
# After an initial's dot these begin a new sentence: "plan b. He" but "J. Smith".
_STARTERS = """
    A An As At He If In It So We But Her Now One Our She The Yet You Here Last Many More Once Some Such That Then They
    This What When About According Additionally After However Other Since Their There These While Mr\\. Ms\\.
"""
_EXTENSIONS = """
    bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql
    tar txt wav x xml zip
"""


def _any_of(words: str) -> str:
    return "|".join(words.split())


_L = r"\p{L}"  # letters
_M = r"[\p{L}\u00AD[\p{M}&&[\u0300-\u0ECD]]]"  # letters and the marks on them
_A = r"(?:['\u2019\x92]|&apos;)"  # apostrophe
_BLANK = r"[ \t\u00A0\u2000-\u200A\u3000]"
_NUMBER = r"(?:\d*(?:[.:,\u00AD\u066B\u066C]\d+)+|\d+)"
_PART = rf"(?:[dDoOlL]{_A}{_L})?[{_L}\d]+"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."  # U.S.
_URL, _URL_END = r"[^ \t\n\"<>|()]", r"[^ \t\n\"<>|.!?(){},\-]"

_WORDS = [
    r"(?i:(can)not)",
    r"(?i:(gon|wan)na)",
    r"(?i:(got)ta)",
    r"(?i:(lem|gim)me)",
    r"('(?i:t))(?i:is|was)",
    rf"([A-Za-z0-9]*[A-MO-Za-mo-z])(?i:n(?:{_A}|`)t)",
    rf"((?i:n(?:{_A}|`)t))",
    rf"([\d{_M}]++){_A}(?i:[smd]|re|ve|ll)[^A-Za-z]",
    rf"({_M}[\d{_M}]*(?:[.!?]{_M}[\d{_M}]*)*)",
    rf"({_PART}(?:[-_\u058A\u2010\u2011]{_PART})*)",
    rf"({_SLASHED}(?:/{_SLASHED}){{1,2}})",
    rf"([A-Za-z0-9][A-Za-z0-9.,\u00AD]*(?:-(?:{_INITIALS}|[A-Za-z0-9\u00AD]+))+)",
    r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",
    r"([Cc]\+\+|[CcF]\#|pro-|anti-|S&P-500|S&Ls|C\.D\.s)",
]
_APOSTROPHES = [
    rf"({_A}(?i:[smd]|re|ve|ll))[^A-Za-z]",
    rf"({_A}(?i:n{_A}|em|till?|cause|[2-9]0s))",
    rf"({_A}(?i:n))[^A-Za-z]",
    rf"({_A}\d\d)[ \n]",
    rf"([lLdDjJ]{_A}|(?i:dunkin|somethin|ol){_A}|[cC]{_A}mon|[cC]{_A}est|[cC]ap{_A}n|s{_A}mores|[eo]{_A}er|d{_A}ye)",
    rf"([yY]{_A}){_L}",
    rf"([A-HJ-XZn]{_A}{_L}{{2}}{_L}*|{_L}+[aeiouyAEIOUY]{_A}[aeiouA-Z]{_L}*)",
]
_ABBREVIATED = [
    rf"({_INITIALS}|(?i:Ph\.D)\.|(?i:{_any_of(_ABBREVIATIONS)})\.)",
    rf"((?:{_any_of(_CAPITALISED)}|{_any_of(_CAPITALISED.upper())})\.)",
    rf"((?i:{_any_of(_BEFORE_NUMBERS)})\.){_BLANK}?\d",
    rf"([A-Za-z]\.)(?!{_BLANK}+(?:{_any_of(_STARTERS)}|{_any_of(_STARTERS.upper())})[ \n])",
    rf"([\d\-_{_M}]++\.)[,;:]",
]
_NUMBERS = [
    r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
    rf"([-+]?{_NUMBER})",
    r"((?:\d{1,4}[- \u00A0])?\d{1,4}[/\u2044]\d{1,4})",
    r"([\u207A\u207B\u208A\u208B]?(?:[\u2070\u00B9\u00B2\u00B3\u2074-\u2079]+|[\u2080-\u2089]+))",
    r"((?:\(\d{2,3}\)[ \u00A0]?|(?:\+\+?)?(?:\d{2,4}[- \u00A0])?\d{2,4}[- \u00A0])\d{3,4}[- \u00A0]?\d{3,5})",
    r"((?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
    r"([A-Z]*\$)",
]
_NETWORK = [
    rf"((?i:https?)://{_URL}+{_URL_END})",
    rf"((?:www\.(?:[^ \t\n\"<>|.!?(){{}},]{{1,99}}\.){{1,9}}[a-zA-Z]{{2,4}}"
    rf"|(?:[^ \t\n\"`'|!(){{}}$,-_]{{1,99}}+\.){{1,9}}(?:com|net|org|edu))(?:/{_URL}+{_URL_END})?)",
    r"(<?[a-zA-Z0-9][^ \t\n\"<>|()@]{0,200}+@(?:[^ \t\n\"<>|(){}.]{1,99}\.){0,9}[^ \t\n\"<>|(){}.]+>?)",
    rf"(\#{_L}+|@[A-Za-z_][A-Za-z_0-9]*)",
    rf"([{_L}\d]+(?:\.[{_L}\d]+){{0,9}}\.(?i:{_any_of(_EXTENSIONS)}))[ \n.?!,]",
    r"(</?[A-Za-z][A-Za-z0-9_:.\-]*(?:[ ]+[A-Za-z][A-Za-z0-9_:.\-]*"
    r"(?:[ ]*=[ ]*(?:\"[^\"\n]{0,999}\"|'[^'\n]{0,999}'))?){0,99}[ ]*/?[ ]*>)",
    r"(<[!?][A-Za-z\-][^>\n]{0,999}>)",
]
_SYMBOLS = [
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z]",
    r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))",
    r"(\.{3,5}|<<|>>|@+|\#+|_+|\*+|-+|[?!]+|(?i:&amp;|&lt;|&gt;|&quot;)|&[mn]dash;|&\#\d+;|(?i:-[lr][rcs]b-))",
    r"([`\u2018-\u201F\x91-\x94\u2039\u203A\u00AB\u00BB]{1,2}|'')",
]
# Everything else that is a token of its own; what is not here (emoji, private use, ...) is deleted.
_ALONE = (
    r"([!-/:-@\[-`{-~\x80\x96\x97\u00A1-\u00AC\u00AE-\u00B4\u00B6-\u00B9\u00BB-\u00BF\u00D7\u00F7\u037E\u0387\u0589\u05BE"
    r"\u05C0\u05C3\u05C6\u05F3\u05F4\u0600-\u0603\u0606-\u060C\u0614\u061B\u061E\u061F\u066A\u066D\u06D4\u0700-\u070D"
    r"\u07F6-\u07F8\u0964\u0965\u0E3F\u0E4F\u1FBD\u2013-\u2023\u2026\u2030-\u203B\u203E-\u2042\u2044\u2070-\u208E\u20A0"
    r"\u20A4\u20AC\u2100-\u214F\u2153-\u215E\u2190-\u2BFF\u3001\u3002\u3012\u30FB\uFF01-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40"
    r"\uFF5B-\uFF65\uFFE0\uFFE1\uFFE5\uFFE6])"
)

# How Java writes a token that is one of these, and these characters anywhere in a token.
_TOKENS = {
    "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''", "&quot;": "''", "\u2026": "...", "\u00AD": "-",
    "\x80": "$", "\u00A2": "cents", "\u00A3": "#", "\u00A4": "$", "\u20A0": "$", "\u20AC": "$",
    "\u00BC": "1/4", "\u00BD": "1/2", "\u00BE": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    **dict.fromkeys(["....", "....."], "..."),
    **dict.fromkeys(["---", "----", "\x96", "\x97", "\u2013", "\u2014", "\u2015", "&mdash;", "&ndash;"], "--"),
}  # fmt: skip
_CHARACTERS = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0", "\u00ad": ""})
_QUOTES = str.maketrans(
    dict.fromkeys("\x91\u2018\u201b\u2039", "`")
    | dict.fromkeys("\x92\u2019\u203a", "'")
    | dict.fromkeys("\x93\u201c\u00ab", "``")
    | dict.fromkeys("\x94\u201d\u00bb", "''")
)
_CLITICS = frozenset(["n't", "'s", "'m", "'d", "'re", "'ve", "'ll"])  # written with a straight apostrophe
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&apos;": "'"}


def spelled(token: str) -> str:
    """A token as Java writes it."""
    if token in _TOKENS:
        return _TOKENS[token]
    if "&" in token:
        for entity, character in _ENTITIES.items():
            token = token.replace(entity, character).replace(entity.upper(), character)
    token = token.translate(_CHARACTERS).lower()
    straight = token.translate(_QUOTES)
    return straight if straight in _CLITICS or not straight.strip("`'") else token


def compiled_rules():
    """Rules for tokens that begin with a letter or digit, rules for all others, and regular expressions for a word that
    stands alone whatever is around it, for blanks, and for the characters outside of Java's 16 bits."""
    import regex  # takes 50 ms, which `import vlm_eval` need not pay

    def compiled(*kinds: list[str]):
        return [regex.compile(rule, regex.V1) for rules in kinds for rule in rules]

    return (
        compiled(_WORDS, _APOSTROPHES, _ABBREVIATED, _NUMBERS, _NETWORK, [_ALONE]),
        compiled(_WORDS, _APOSTROPHES, _NUMBERS, _NETWORK, _SYMBOLS, [_ALONE]),
        regex.compile(rf"({_L}++|\d++(?=[ ]+{_L}))[ ]+"),
        regex.compile(f"{_BLANK}*"),
        regex.compile("[\U00010000-\U0010ffff]"),
    )
