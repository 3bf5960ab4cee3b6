"""Vocabulary of the synthetic scenes: shapes, typical looks, and base and novel categories.

The category of an object is its shape. A category has a typical colour and a typical texture, which
most of its objects show. Other categories share them, so only the shape is decisive. Backgrounds
have names too: a region without an object has a correct label in the concept pool, as "sky" and
"grass" do in real captions.
"""

# Shape: (typical colour, typical texture).
BASE_SHAPES = {
    "circle": ("red", "plain"),
    "square": ("blue", "checkered"),
    "triangle": ("yellow", "striped"),
    "star": ("yellow", "plain"),
    "cross": ("white", "dotted"),
    "ring": ("purple", "plain"),
    "house": ("red", "checkered"),
    "tree": ("green", "striped"),
    "arrow": ("blue", "striped"),
    "moon": ("white", "plain"),
    "bolt": ("yellow", "dotted"),
    "flower": ("purple", "dotted"),
}
# Novel names occur in captions and in the concept pool, but no training uses a ground-truth box of
# a novel category.
NOVEL_SHAPES = {
    "heart": ("red", "dotted"),
    "fish": ("blue", "dotted"),
    "key": ("green", "checkered"),
    "drop": ("white", "striped"),
}
TYPICAL_LOOKS = BASE_SHAPES | NOVEL_SHAPES
SHAPES = tuple(TYPICAL_LOOKS)

COLOURS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (41, 98, 214),
    "yellow": (241, 196, 15),
    "purple": (142, 68, 173),
    "white": (240, 240, 240),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("sand", "grass", "water", "brick", "night", "fog")

# The concept pool: every noun of the captions.
CONCEPTS = SHAPES + BACKGROUNDS
