"""The words that answer questions about looks: which are known, which mean the same, which can both be true."""

KNOWN = {
    "color": "black white gray red green blue yellow orange purple pink brown beige silver gold turquoise ivory "
    "multicolor",
    "material": "wood metal steel aluminum brass iron leather cotton polyester plastic glass ceramic porcelain rubber "
    "silicone linen wool velvet nylon silk paper cardboard bamboo rattan wicker marble stone granite acrylic foam "
    "fabric canvas felt denim",
    "shape": "round square rectangular oval triangular hexagonal octagonal cylindrical spherical heart star cube",
    "pattern": "solid striped floral checkered plaid geometric dotted paisley abstract animal camouflage",
}
SAME = {
    "grey": "gray",
    "multi": "multicolor",
    "multicolored": "multicolor",
    "multicolour": "multicolor",
    "golden": "gold",
    "wooden": "wood",
    "aluminium": "aluminum",
    "circular": "round",
    "circle": "round",
    "rectangle": "rectangular",
    "triangle": "triangular",
    "hexagon": "hexagonal",
    "cylinder": "cylindrical",
    "sphere": "spherical",
    "stripes": "striped",
    "stripe": "striped",
    "flower": "floral",
    "flowers": "floral",
    "checked": "checkered",
    "dots": "dotted",
}
# "Is the steel lamp made of metal?" must not be answered with no.
_BOTH_TRUE = (
    "gray silver",
    "gold yellow",
    "white ivory beige",
    "blue green turquoise",
    "metal steel aluminum brass iron",
    "fabric cotton polyester linen wool velvet nylon silk canvas felt denim",
    "plastic polyester nylon acrylic silicone foam",
    "rubber silicone foam",
    "stone marble granite",
    "ceramic porcelain",
    "paper cardboard",
    "wood bamboo rattan wicker",
    "round oval cylindrical spherical",
    "square rectangular cube",
    "geometric striped checkered plaid dotted abstract",
)


def may_both_be_true(word: str) -> set[str]:
    """The words that may be true of something of which this one is true, itself included."""
    return {word}.union(*(group.split() for group in _BOTH_TRUE if word in group.split()))
