"""What the composed set shows: things, colours of the background, styles.

Eighty things rather than the 1,700 with pictures, for a model of 10 M weights trained on a CPU is to learn what a
background, a style and a size are, which takes each thing in many surroundings: with eighty, each is seen about 180
times an epoch, alone and beside four fifths of the others. They were chosen by eye to be told apart at 40 pixels, to be
what people ask for, and to be the same thing in all three styles. Thirteen look to the left in all of these, and the
rocket, alone, to the right; those are shown mirrored too. Mirroring what looks ahead would teach nothing.
"""

from __future__ import annotations

STYLES = {"fluent": "3d", "twemoji": "flat", "noto": "shaded"}
"""The word for each style."""

COLOURS = {
    "white": (255, 255, 255),
    "grey": (150, 150, 150),
    "black": (20, 20, 20),
    "red": (214, 45, 45),
    "orange": (245, 145, 40),
    "yellow": (250, 215, 70),
    "green": (70, 165, 80),
    "teal": (30, 155, 160),
    "blue": (50, 105, 215),
    "purple": (130, 75, 190),
    "pink": (245, 150, 185),
    "brown": (125, 80, 50),
}
"""RGB of each background: any two are 75 or more apart in it, so that what is drawn can be told."""

LEFT = (
    "snail", "whale", "turtle", "elephant", "duck", "flamingo", "dolphin", "unicorn", "automobile", "bicycle",
    "fire engine", "locomotive", "helicopter",
)  # fmt: skip
RIGHT = ("rocket",)
AHEAD = (
    "tiger face", "panda", "fox", "frog", "lion", "koala", "pig face", "rabbit face", "owl", "octopus", "penguin",
    "butterfly", "crab", "honeybee",
    "sunflower", "rose", "cactus", "mushroom", "evergreen tree", "palm tree",
    "red apple", "banana", "strawberry", "pineapple", "watermelon", "cherries", "grapes", "lemon", "avocado", "carrot",
    "pizza", "hamburger", "doughnut", "cupcake", "birthday cake",
    "grinning face", "smiling face with sunglasses", "robot", "ghost", "alien", "skull", "jack-o-lantern", "snowman",
    "sailboat", "house", "castle", "Christmas tree",
    "guitar", "umbrella", "light bulb", "key", "camera", "alarm clock", "crown", "gem stone", "balloon",
    "wrapped gift", "trophy", "soccer ball", "teddy bear",
    "red heart", "green heart", "blue heart", "crescent moon", "rainbow", "fire",
)  # fmt: skip
THINGS = (*LEFT, *RIGHT, *AHEAD)
FACING = {**dict.fromkeys(LEFT, "left"), **dict.fromkeys(RIGHT, "right")}
"""Which way a thing looks in its picture, if it looks to a side."""
