"""The words of the drawn world: what things are called, how they look, and which names are novel.

The category of a thing is its shape. As in the real world a category has a typical colour and a
typical texture, which a thing shows most of the time and which other categories share: looks help,
shape decides. Backgrounds have names too, so that a region without a thing on it has a right label
in the concept pool, as "sky" and "grass" do in real captions.
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
# Novel names occur in captions and in the concept pool like all others, but no ground-truth box of
# a novel category is used in any training.
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

# What the concept pool holds: every noun of the captions.
CONCEPTS = SHAPES + BACKGROUNDS
