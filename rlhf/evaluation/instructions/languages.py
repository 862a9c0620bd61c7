"""Which language a text is in, among those that instructions ask for: by its script and its commonest words. Light.

It tells the languages of IFEval apart where a text has a few sentences; it is no general detector.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SCRIPTS = {
    "LATIN": ("en", "es", "pt", "fr", "de", "it", "pl", "vi", "sw", "fi"),
    "CYRILLIC": ("ru", "bg", "uk"),
    "ARABIC": ("ar", "fa", "ur"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "BENGALI": ("bn",),
    "GURMUKHI": ("pa",),
    "GUJARATI": ("gu",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "KANNADA": ("kn",),
    "MALAYALAM": ("ml",),
    "THAI": ("th",),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "HEBREW": ("he",),
}
"""First word of the letters' Unicode names -> languages, by ISO 639-1."""
OF_HIRAGANA = ("KATAKANA", "CJK")
"""Further scripts of Japanese texts."""
COMMON = {
    "en": "the of and to in is that for it you with be on are this a",
    "es": "de la que el en los las por con una para del se su es",
    "pt": "de que não para uma com os dos mais você em é do da um",
    "fr": "de la le les des est et une dans que pour un du qui pas",
    "de": "der die und das ist nicht mit ein zu den von sich eine auf für",
    "it": "di che il la per non sono una del con è un della le si",
    "pl": "nie się jest na że do to jak z i w co dla od po",
    "vi": "là của và không có được một cho các những trong với người này để",
    "sw": "na ya wa kwa ni za katika la cha kuwa hii kama au yako",
    "fi": "ja on ei se että hän mutta ovat oli kun joka myös niin tai",
    "ru": "и в не на что это как по но для с из он мы",
    "bg": "и на да се за от са не е че в с по ще",
    "uk": "і в не на що це як та для є з до ми від",
    "ar": "في من على أن إلى هذا التي هو لا ما و عن مع",
    "fa": "و در به از که این را با است برای های می یک",
    "ur": "کے میں ہے کی اور سے کا کو یہ ہیں نے پر",
    "hi": "है के में की और का से को हैं यह पर ने",
    "mr": "आहे आणि च्या या ते तो की नाही मध्ये होते आहेत",
    "ne": "छ र को मा हो छन् गर्न पनि यो लागि गर्छ",
}
"""Language that shares its script -> words that stand in nearly every few sentences of it."""
LANGUAGES = tuple(language for languages in SCRIPTS.values() for language in languages)


def is_in(text: str, language: str) -> bool:
    """Whether most letters are of the language's script and no other language of that script has more common words.

    A text without a letter is in every language. Of a script that languages share a common word must be there, but for
    English: a few Latin words without one are not told to be anything else.
    """
    letters = Counter(_script(letter) for letter in text if letter.isalpha())
    if not letters:
        return True
    script = next(name for name, languages in SCRIPTS.items() if language in languages)
    if 2 * letters[script] < letters.total() or letters[script] == 0:
        return False
    if len(SCRIPTS[script]) == 1:
        return True
    words = Counter(re.findall(r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f\u0900-\u0963])*", text.lower()))
    found = {one: sum(words[word] for word in COMMON[one].split()) for one in SCRIPTS[script]}
    return found[language] == max(found.values()) and (found[language] > 0 or language == "en")


def _script(letter: str) -> str:
    first = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return "HIRAGANA" if first in OF_HIRAGANA else first
