"""The Penn Treebank tokenisation of coco-caption, without Java.

coco-caption (Chen et al. 2015) runs Stanford's PTBTokenizer 3.4.1 over every caption, lowers the case and drops the
punctuation. The rules below were written from what that program answers, and give the same words. At each place the
rule that reaches farthest wins, and the earlier one of two equals. A rule with a group ends its token there: the rest
of what it matches has to follow, but is left for the next token.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from pathlib import Path

# coco-caption drops these. It lists the brackets in capitals, while the tokeniser writes them in small letters, so
# brackets stay in; scores are only equal if we keep them too.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'])
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "", "&mdash;": "--"}
_TABLES = json.loads((Path(__file__).parent.parent / "data" / "ptb.json").read_text(encoding="utf-8"))
# Words after which a full stop stays, and what begins a sentence after one letter and a full stop
TITLES, ENDINGS, NOT_IN_CAPITALS, NOT_IN_SMALL, BEFORE_A_NUMBER, STARTERS = (_TABLES[name] for name in (
    "titles", "endings", "not_in_capitals", "not_in_small", "before_a_number", "starters"))


def _any_case(words: list[str]) -> str:
    return f"(?i:{'|'.join(words)})"


# By the time the rules run, what is left outside ASCII are letters, digits, their marks, and the signs named here.
_L = r"[^\x00-@\[-`{-\x7f\s\d‐‑⁄‘’“”]"  # a letter
_W = r"[^\x00-/:-@\[-`{-\x7f\s‐‑⁄‘’“”]"  # a letter or a digit
_TWO = f"{_L}{_W}*(?:[.!?]{_L}{_W}*)*"  # words that a full stop without a space glues together
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_HYPHENED = rf"{_W}(?:{_W}|[.,_]){{0,60}}(?:[-‐‑](?:{_ACRONYM}\.|{_W}+(?:_{_W}+)*))+"
_A = r"(?:['’]|&apos;)"  # an apostrophe
_AA = r"(?:['’‘`]|&apos;)"  # what people type for one
_NOT = rf"[nN]{_AA}[tT]"
_VERB = rf"{_A}(?i:s|m|d|ll|re|ve)"
_LONE = rf"(?:{_NOT}|'(?i:s|m|d|ll|re|ve))(?![A-Za-z])|(?!'){_VERB}"  # a straight quote before a longer word opens it
_HOST = r"[^\s\"<>|.!?(){},]"
_PATH = r"[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
_EYE = r"[-^x=~<>']"
_RULES = [
    # a tag, with attributes
    r"<(?:[!?][A-Za-z-][^>\n]{0,300}|/?[A-Za-z][\w:.@-]*(?:\s+[A-Za-z][\w:.-]*(?:=(?:'[^'\n]*'|\"[^\"\n]*\"))?)*\s*/?)>",
    r"(?i:&(?:amp|lt|gt|quot|apos|nbsp);)|&eacute;|&mdash;|&#\d+;",
    # can|not, gon|na, do|n't, dog|'s; a double n before 't is no "not"
    rf"({_TWO}|{_W}+){_VERB}",
    r"((?i:can))(?i:not)",
    r"((?i:gon|wan))(?i:na)",
    r"((?i:got))(?i:ta)",
    r"((?i:gim|lem))(?i:me)",
    r"('[tT])(?i:was|is)",
    rf"({_L}*[A-MO-Za-mo-z]){_NOT}",
    _LONE,
    # words and their parts
    rf"{_W}+(?:_{_W}+)*",
    rf"((?:{_any_case(ENDINGS)}|{'|'.join(f'{low.title()}|{low.upper()}' for low in NOT_IN_SMALL)})\.)(?s:.)?",
    _TWO,
    rf"(?:{_any_case(TITLES)}|{'|'.join(f'{low}|{low.title()}' for low in NOT_IN_CAPITALS)})\.",
    rf"({_any_case(BEFORE_A_NUMBER)}\.)\s*\d",
    rf"([A-Za-z])\.\s+(?:{'|'.join(re.escape(word) for low in STARTERS for word in (low, low.upper()))})(?=\s|$)",
    r"(?:[Pp]h\.[Dd]|[A-Za-z](?:\.[A-Za-z])*)\.",
    rf"((?:{_TWO}|{_W}+|{_HYPHENED})\.)[,;:]",
    rf"[dDoOlL]{_AA}{_W}{{2,}}|[oO]{_AA}[oO]|[A-HJ-XZn]{_AA}{_L}{{2,}}|{_L}+[aeiouyAEIOUY]{_AA}[aeiouA-Z]{_L}*",
    rf"{_A}[nN]{_A}|(?!'){_A}[nN]|'[nN](?=\s|$)|([yY]{_A}){_L}|[dDlLjJ]{_A}|{_A}[2-9]0s|{_A}\d\d(?=\s|$)",
    rf"(?i:{_A}em|{_A}till?|{_A}cause|ol{_A}|c'mon|e{_A}er|s{_A}mores|li{_A}l|nor'easter)",
    _HYPHENED,
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+",
    r"[cC]\+\+|[cCfF]#|[A-Z]*\$",
    # numbers
    r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
    r"(?:\d{1,4}[- ])?\d{1,4}(?:\\?/|⁄)\d{1,4}|\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
    r"\(\d{2,3}\)[ ]?\d{3,4}[- ]?\d{4,5}",
    # addresses
    rf"(?i:https?)://{_PATH}",
    rf"www\.(?:{_HOST}+\.)+[a-zA-Z]{{2,4}}(?:/{_PATH})?|(?:{_L}+\.)+(?:com|net|org|edu)(?:/{_PATH})?",
    r"[a-zA-Z0-9][^\s\"<>|(){}]{0,100}@(?:[^\s\"<|(){}.]+\.)*[^\s\"<|(){}.]+",
    rf"@[A-Za-z_][A-Za-z_0-9]*|#{_L}+",
    # faces
    rf"[<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]](?!{_W})|{_EYE}_{_EYE}|\({_EYE}[_.]?{_EYE}\)",
    # signs
    r"\.\.\.+|--+|[!?]+|\\?\*+|_+|#+|@+|<<|>>|''|[`‘’“”]{1,2}",
    r"(?s:.)",
]
_QUOTED = re.compile(f"{_NOT}|{_VERB}|[`‘’“”]{{1,2}}")
_QUOTES = {"‘": "`", "’": "'", "“": "``", "”": "''"}
_COMPILED = [re.compile(rule) for rule in _RULES]
# Most words need no rule: letters, then a space, or one mark and a space. What splits or keeps its stop is left out.
_PLAIN = re.compile(r"([A-Za-z]+(?=[,!?;\"]?(?:\s|$))|[A-Za-z]{2,}(?=\.(?:\s|$)))|[.,!?;:](?=\s|$)")
_SPLIT = frozenset(["cannot", "gonna", "wanna", "gotta", "gimme", "lemme"])
_ABBREVIATED = frozenset([*TITLES, *ENDINGS, *NOT_IN_CAPITALS, *NOT_IN_SMALL, *BEFORE_A_NUMBER])
_SYMBOL = re.compile(
    "[¡¥-©¬®-´¶-¹¿×÷\u0e3f\u0e4f\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2070\u2074-\u207e"
    "\u2080-\u208e\u20a4\u2100-\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff65\uffe0-\uffe6]"
)


@functools.lru_cache(maxsize=4096)
def _sign(char: str) -> str:
    """Returns how a character outside ASCII is read: itself, other signs, a word alone, or NUL if it is dropped."""
    if char in _TABLES["signs"]:
        return _TABLES["signs"][char]
    if char in "‐‑⁄":
        return char
    code, category = ord(char), unicodedata.category(char)
    if char.isspace():
        return " "
    if code > 0xFFFF:  # the tokeniser reads 16 bits at a time, and drops the halves of an emoji
        return "\0"
    if category[0] == "L" or category == "Nd" or (category[0] in "MS" and 0x2C2 <= code <= 0xECD):
        return char
    return f" {char} " if _SYMBOL.match(char) else "\0"


@functools.lru_cache(maxsize=200_000)
def ptb_tokenize(caption: str) -> tuple[str, ...]:
    """Returns the words of one caption, lower case, without punctuation, as coco-caption's PTBTokenizer gives them.

    Notebook 08, section 1.
    """
    text = caption if caption.isascii() else "".join(char if char.isascii() else _sign(char) for char in caption)
    words: list[str] = []
    start = 0
    while start < len(text):
        plain = _PLAIN.match(text, start)
        low = plain[0].lower() if plain else ""
        if plain and low not in _SPLIT and not (low in _ABBREVIATED and text.startswith(".", plain.end())):
            words.append(low)
            start = plain.end()
        elif text[start].isspace() or text[start] == "\0":
            start += 1
        else:
            best = max((match for rule in _COMPILED if (match := rule.match(text, start))), key=re.Match.end)
            token = best[best.lastindex or 0]
            start += len(token)
            words += _written(token).split()  # a tag or a fraction may hold a space; the scores split there
    return tuple(word for word in words if word not in PUNCTUATION)


def _written(token: str) -> str:
    """Returns a token as the tokeniser writes it."""
    low = token.lower().replace("\0", "")
    if low in ENTITIES:
        return ENTITIES[low]
    if low[0] == "<" and low[-1] == ">" or low.startswith("http"):
        return low
    if _QUOTED.fullmatch(token):
        return "".join(_QUOTES.get(char, char) for char in low.replace("&apos;", "'"))
    if low[:2] == "--":
        return "--"
    if low[:3] == "...":
        return "..."
    if low in BRACKETS:
        return BRACKETS[low]
    return low.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&")
