"""Letters next to numbers: which are words of a sentence, which are units, and which are variables of a formula.

`2xy + 1` is a formula although `xy` are two letters side by side, `11 cm` is a number with its unit, and `5 apples` is a
sentence. Where a run of letters could be either, it is taken for variables: a sentence is searched for its number, and
what is left out of `3 xy` would be lost.
"""

import re
from itertools import pairwise

# Not the name of a command: `\sin`. Letters behind a caret or an underscore belong to what they raise or number.
_RUN = re.compile(r"(?<![\\A-Za-z^_])[A-Za-z]{2,}")
_COMMAND_WITH_TEXT = re.compile(
    r"\\(?:begin|end|text|mathrm|mbox|textbf|mathbf|operatorname)\s*\{[^{}]*\}"
)
_BRACED_SCRIPT = re.compile(r"[\^_]\s*\{[^{}]*\}")
_OPERATOR = re.compile(r"[√π^_\\=+*]")
_FUNCTIONS = (
    r"(?:arc)?(?:sinh?|cosh?|tanh?|cot|sec|csc)|log|ln|lg|exp|sqrt|max|min|gcd|lcm|det|dim|ker|mod|pi|degrees?"
    r"|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|rho|sigma|tau|omega"
)
_OF_FUNCTIONS = re.compile(rf"(?>(?:[abcknrtxyz]?(?:{_FUNCTIONS}))+)[abcnrtuvwxyz]?", re.IGNORECASE)
"""`sin`, `sinx`, `xsinx`, `Theta`, but not `using`, `tank` and `pies`."""
_VOWELS = frozenset("aeiouyAEIOUY")
_CONNECTIVES = frozenset({"and", "or"})
_SHORT_WORDS = frozenset("is it to of so we no tvs cds dvds".split())  # noqa: SIM905
_FREQUENT = "the and are not but for has was its any all get one two six ten yes let"
_WORDS_IN_FORMULAS = frozenset(_FREQUENT.split())

_LONG_UNITS = """
mm cm dm km nm um in ft yd mi kg mg lb lbs oz ml mL dl ms ns hr hrs min mins sec secs yr yrs wk wks pcs pts mph kph
Hz kHz MHz GHz kW MW kJ MJ eV keV MeV GeV erg ergs dyn dyne dynes cal kcal mol mols mmol Pa kPa MPa atm bar psi rad
kpc Mpc AU Angstrom angstroms sq cu
"""
_SHORT_UNITS = frozenset("m s g h K J W N V A C F T L".split())  # noqa: SIM905
UNITS = frozenset(_LONG_UNITS.split())
"""Units of two letters and more. One letter alone is a variable, but may be a unit in a quotient such as `m/s`."""
_NAME = "|".join(sorted(UNITS | _SHORT_UNITS, key=lambda unit: (-len(unit), unit)))
_POWER = r"(?>(?:\^\{?-?[1-4]\}?|[²³])?)"
_UNIT_BEHIND = re.compile(
    rf"(?<=[0-9}}])\s++(?P<first>{_NAME}){_POWER}(?P<more>(?:[/ ](?:{_NAME}){_POWER}){{0,3}})\s*+$"
)
_QUOTIENT = re.compile(r"/|\^\{?-")
_NUMERIC = re.compile(
    r"(?>(?:[-+0-9.,/{}^ ]|\\(?:times|cdot|[dt]?frac)(?![A-Za-z])|[eE](?=[-+]?[0-9]))+)"
)
_LETTERS_BEHIND = re.compile(r"\s*+([A-Za-z]++)")
_OTHER_ENDINGS = "a A I an at by on as am pm th st nd rd degree degrees"
_BESIDE_A_NUMBER = UNITS | _SHORT_UNITS | frozenset(_OTHER_ENDINGS.split())
"""Letters right behind a number that are no factor of it: "5 at", "5th", "5 pm"."""

_OPTION_LABEL = re.compile(
    r"(?:option\s+)?(?:\(?[A-H](?:\)[.:]?|[.:、])\s+(?=\S)|\([A-H]\)(?=[^\s\W]*[0-9\\]))",
    re.IGNORECASE,
)


def without_label(text: str) -> str:
    """The text without the letter of an option in front: `145°` of `(C) 145°`."""
    return _OPTION_LABEL.sub("", text, count=1) if _OPTION_LABEL.match(text) else text


def is_sentence(text: str) -> bool:
    """True if words are in the text that are no functions, connectives, variables or text in a formula."""
    if not any(character.isspace() for character in text):
        return False
    plain = _BRACED_SCRIPT.sub(" ", _COMMAND_WITH_TEXT.sub(" ", text))
    has_operators = _OPERATOR.search(plain) is not None
    return any(is_word(word, in_formula=has_operators) for word in _RUN.findall(plain))


def is_word(run: str, *, in_formula: bool = False) -> bool:
    """True for a run of letters that is a word, and no function or product of variables such as `xy`, `abc` and `mgh`.

    Products of three letters and more have no vowel or are written in the order of the alphabet, without a gap. Beside
    operators a run of three is a word only if it is a frequent one.
    """
    lowered = run.lower()
    if lowered in _CONNECTIVES:
        return False
    if lowered in _SHORT_WORDS:
        return True
    if (
        len(run) < 3
        or _VOWELS.isdisjoint(run)
        or is_run_of_alphabet(run)
        or _OF_FUNCTIONS.fullmatch(run)
    ):
        return False
    return lowered in _WORDS_IN_FORMULAS if in_formula and len(run) == 3 else True


def is_run_of_alphabet(run: str) -> bool:
    """True for `abc` and `wxyz`."""
    return all(ord(right) - ord(left) == 1 for left, right in pairwise(run))


def without_unit(text: str) -> str:
    """A number without the unit behind it: `7.0` of `7.0 kg` and of `7.0 m/s^2`. `4mg` without a blank is a product."""
    unit = _UNIT_BEHIND.search(text)
    if unit is None or (unit["first"] in _SHORT_UNITS and not _QUOTIENT.search(unit[0])):
        return text
    return text[: unit.start()] if _NUMERIC.fullmatch(text[: unit.start()]) else text


def is_factor(text: str, end: int) -> bool:
    """True if a number that ends at `end` multiplies the letters behind it, as in "we get 5x" and "it is 3 xy"."""
    behind = _LETTERS_BEHIND.match(text, end)
    if behind is None or behind[1] in _BESIDE_A_NUMBER:
        return False
    return len(behind[1]) == 1 or not (is_word(behind[1]) or behind[1].lower() in _CONNECTIVES)
