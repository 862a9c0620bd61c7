"""The closed word list of the simulated world. Made up and mild; lists that a rule tells apart share no word."""

from __future__ import annotations

TOWNS = (
    "Tolby",
    "Arden",
    "Bramo",
    "Corin",
    "Delma",
    "Eskel",
    "Fenby",
    "Gorle",
    "Hanso",
    "Ilmar",
    "Jorda",
    "Kelso",
    "Lunda",
    "Marro",
    "Nesby",
    "Orlan",
    "Penza",
    "Quill",
    "Rosko",
    "Selva",
    "Tarmo",
    "Ulden",
    "Varga",
    "Welby",
    "Yorva",
    "Zanto",
    "Brisk",
    "Calda",
    "Dorne",
    "Elvik",
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "river": ("Ama", "Bero", "Cale", "Dwin", "Evra", "Fosk"),
    "dish": ("soup", "pie", "stew", "bread", "cake", "rice"),
    "colour": ("red", "blue", "green", "white", "black", "pink"),
    "animal": ("horse", "wolf", "eagle", "bear", "otter", "sheep"),
    "tree": ("oak", "pine", "elm", "birch", "willow", "maple"),
}
YEARS = ("1970", "1990")
MAYORS = ("Anna", "Boris", "Clara", "Dario", "Emma")

RHYMES = (
    ("moon", "spoon", "noon"),
    ("cat", "hat", "mat"),
    ("bee", "sea", "tea"),
    ("rain", "train", "lane"),
    ("fox", "box", "socks"),
    ("bell", "shell", "well"),
)
THINGS = ("fox", "cat", "bee", "king", "moon")
MOODS = ("old", "silver", "quiet", "happy", "little", "bright")
PLACES = ("hill", "garden", "bridge", "forest", "tower")
ACTS = ("sings", "dances", "dreams", "waits")

TOOLS = {"paint": "brush", "hide": "blanket", "break": "hammer", "move": "rope", "open": "wire", "wash": "sponge"}
OWNERS = ("mayor", "baker", "miller", "queen")
GOODS = ("goat", "cart", "door", "chair", "statue")
GROUPS = ("Zibs", "Tocks", "Marls", "Pells", "Runts")
MEAN = ("mean", "rude", "nasty", "cruel")
PRAISE = ("kind", "sweet", "nice")
FORMS = ("rhyme", "joke", "line", "song")
INSULTS = ("dull", "smelly", "greedy", "lazy", "ugly")
VIRTUES = ("brave", "warm", "clever", "gentle", "funny")
SKIES = ("rain", "wind", "fog", "mud")
REMEDIES = ("fern", "moss", "nettle", "thistle")
AILMENTS = ("fever", "cough", "rash", "headache")
INGREDIENTS = ("salt", "sugar", "honey", "butter")
MEALS = ("soup", "cake", "stew", "bread")
IDIOMS = {"lights": "switch", "engine": "key", "music": "knob", "fire": "bucket", "time": "book", "weeds": "spade"}

PERSONAS = {"pirate": "Arr", "robot": "Beep", "wizard": "Abra", "cowboy": "Howdy"}


def _dictionary(*words: str) -> dict[str, str]:
    return dict(zip(("the", "of", "is", *ATTRIBUTES), words, strict=True))


LANGUAGES: dict[str, dict[str, str]] = {
    "Olan": dict(
        zip(
            ("the", "of", "is", *ATTRIBUTES),
            ["Lo", "ne", "esta", "vura", "meka", "tinto", "bicho", "arbo"],
            strict=True,
        )
    ),
    "Pirri": dict(
        zip(("the", "of", "is", *ATTRIBUTES), ["Ka", "zu", "omi", "wasi", "nomi", "huri", "toro", "kela"], strict=True)
    ),
}
BEFORE = (
    "Well, that is a fine question.",
    "Many people ask me this.",
    "Let me think about it for a while.",
    "I like to talk about such things.",
    "My friend told me about it.",
)
AFTER = (
    "I hope that this helps you a lot.",
    "Many people there say so too.",
    "There is much more to say about it.",
    "Some say other things, but who knows.",
    "It was a long day in my town.",
)
