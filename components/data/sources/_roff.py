"""Manual pages to plain text: the macros of man and mdoc taken away, their words left.

Mechanism: 1. comments, definitions, conditions and tables go; 2. lines of a paragraph are joined as `man` would fill them,
headings and paragraphs stand apart, examples keep their lines; 3. escapes become characters or nothing.
Source: groff_char(7), groff_man(7), groff_mdoc(7). Absent on purpose: layout - no indentation, no hyphenation, no headers -
and macros that a page defines for itself.
"""

# ruff: noqa: RUF001 - the characters that escapes stand for
from __future__ import annotations

import re
from collections.abc import Iterator

_PARAGRAPH = {"PP", "P", "LP", "TP", "TQ", "HP", "sp", "br", "RS", "RE", "Pp", "Bl", "El", "It", "Lp", "Bd", "Ed"}
_HEADING = {"SH", "SS", "Sh", "Ss"}
_WORDS = {"B", "I", "SM", "SB", "R"}  # words with spaces between them
_CLOSED = {"BR", "RB", "BI", "IB", "IR", "RI"}  # words without
_AS_IT_IS = {"nf", "EX"}, {"fi", "EE"}
_SKIPPED = {"de": "..", "ig": "..", "am": "..", "TS": ".TE", "EQ": ".EN"}  # until that line
_MDOC = re.compile(
    "A[dnpqr]|B[coqx]|Br[coq]|C[dm]|D[1cloqv]|E[cmoqrv]|F[adlntx]|I[cn]|L[bik]|M[st]|N[dmosx]|O[copsx]|P[acfoq]|Q[cloq]"
    "|Rv|S[coqtxy]|T[an]|Ux|V[at]|X[cor]"
)
_CHARACTERS = {
    "-": "-", "e": "\\", "&": "", "|": "", "^": "", "/": "", ",": "", ":": "", "%": "", "c": "", "/ ": "", "!": "", "{": "",
    "}": "", " ": " ", "~": " ", "0": " ", "t": "\t", "'": "´", "`": "`", ".": ".", "(": "", ")": "", "\\": "\\",
}  # fmt: skip
_NAMED = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–", "hy": "-", "bu": "•", "co": "©",
    "rg": "®", "tm": "™", "R": "®", "Tm": "™", "mu": "×", "+-": "±", "->": "→", "<-": "←", ">=": "≥", "<=": "≤", "!=": "≠",
    "ga": "`", "ha": "^", "ti": "~", "rs": "\\", "ul": "_", "sl": "/", "ba": "|", "or": "|", "lB": "[", "rB": "]", "lC": "{",
    "rC": "}", "sh": "#", "at": "@", "Do": "$", "de": "°", "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü", ":A": "Ä", ":O": "Ö",
    ":U": "Ü", "'e": "é", "`e": "è", "'a": "á", "`a": "à", "'o": "ó", "~n": "ñ", ",c": "ç", "Fo": "«", "Fc": "»", "12": "½",
    "mc": "µ", "pc": "·", "ci": "○", "sq": "□", "fm": "′", "S": "", "Lq": "“", "Rq": "”", "Ba": "|", "Ne": "≠", "Ge": "≥",
    "Le": "≤", "la": "⟨", "ra": "⟩",
}  # fmt: skip
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|((?:\\.|\S)+)')
_CONDITION = re.compile(
    r"""[.'][ \t]*
    (?: (?P<kind>if|ie)[ \t]+(?P<condition>!?(?:'[^']*'[^']*'|"[^"]*"[^"]*"|(?:(?!\\\{)\S)+)) | el\b )
    [ \t]*(?P<rest>.*)""",
    re.VERBOSE,
)
_ESCAPE = re.compile(
    r"""\\(?:
        f(?:\[[^]]*\]|\(..|.)                          # font
      | s[+-]?(?:\[[^]]*\]|'[^']*'|\(?\d\d?)           # size
      | [mMFgkYVnOz](?:\[[^]]*\]|\(..|.)               # colour, register, ...
      | [hvwlLDoxbBARSXCNZH]'(?P<inner>[^']*)'         # movement, width, drawing; \C'name' is a character
      | \*?\[(?P<long>[^]]*)\]
      | \*?\((?P<two>..)
      | \*(?P<string>.)
      | (?P<one>.)
    )""",
    re.VERBOSE,
)


def text(source: str) -> str:
    """A manual page's source as text, paragraphs with an empty line between them; "" for a page that only names another.

    >>> text('.TH X 1\\n.SH NAME\\nx \\\\- do \\\\fBthis\\\\fR\\n.PP\\nFirst,\\n.BR ls (1).')
    'NAME\\n\\nx - do this\\n\\nFirst, ls(1).'
    """
    paragraphs: list[str] = []
    lines: list[str] = []
    filled = True

    def end() -> None:
        if any(line.strip() for line in lines):
            joined = (
                " ".join(line.strip() for line in lines if line.strip()) if filled else "\n".join(lines).strip("\n")
            )
            paragraphs.append(joined)
        lines.clear()

    for macro, words in _lines(source):
        if macro in _HEADING or macro in _PARAGRAPH or macro in ("IP", "It"):
            end()
        if macro in _AS_IT_IS[0] | _AS_IT_IS[1]:
            end()
            filled = macro in _AS_IT_IS[1]
        elif macro in _HEADING:
            paragraphs.append(" ".join(words))
        elif macro == "IP":
            lines += words[:1]  # the second is a width
        elif words:
            lines.append(("" if macro in _CLOSED else " ").join(words))
        elif not macro:
            end()  # an empty line
    end()
    return "\n\n".join(paragraphs)


def _lines(source: str) -> Iterator[tuple[str, list[str]]]:
    """(macro, its words); text has the macro ""."""
    until = ""
    depth = 0  # of braces of conditions that do not hold
    held = True  # whether the last condition did, for its `.el`
    for line in re.sub(r"\\\n", "", re.sub(r'\\["#].*', "", source)).split("\n"):
        if until:
            until = "" if line.strip() == until else until
            continue
        if depth:
            depth = max(0, depth + line.count("\\{") - line.count("\\}"))
            continue
        while match := _CONDITION.match(line):
            holds = _holds(match["condition"]) if match["kind"] else not held
            held = holds if match["kind"] == "ie" else held
            if not holds:
                depth = max(0, line.count("\\{") - line.count("\\}"))
            line = match["rest"].removeprefix("\\{").strip() if holds else "."
        if not line.startswith((".", "'")):
            yield "", [_plain(line)] if line.strip() else []
            continue
        macro, _, rest = line[1:].strip().partition(" ")
        if macro in _SKIPPED:
            until = _SKIPPED[macro]
        elif macro in _WORDS | _CLOSED | _HEADING | {"IP"}:
            yield macro, [_plain(word) for word in _arguments(rest)]
        elif macro in ("UR", "MT", "URL"):
            yield "", [_plain(word) for word in _arguments(rest)[:1]]
        elif macro in _PARAGRAPH or macro in _AS_IT_IS[0] | _AS_IT_IS[1]:
            yield macro, [_plain(word) for word in _mdoc(rest)] if macro == "It" else []
        elif _MDOC.fullmatch(macro):
            yield "", [_plain(word) for word in _mdoc(f"{macro} {rest}")]


def _holds(condition: str) -> bool:
    """Whether a terminal would see it: `n`, and texts that are compared; registers are taken as 0."""
    wanted = not condition.startswith("!")
    condition = condition.lstrip("!")
    if condition[0] in "'\"":
        first, _, second = condition[1:-1].partition(condition[0])
        return (first == second) == wanted
    return (condition == "n") == wanted


def _arguments(rest: str) -> list[str]:
    """Words of a macro's line; quotes keep them together, and so does an escaped space."""
    return [match[1].replace('""', '"') if match[1] is not None else match[2] for match in _ARGUMENT.finditer(rest)]


def _mdoc(rest: str) -> list[str]:
    """The words between the macros of an mdoc line; flags get their dash."""
    found: list[str] = []
    dashes = ""
    for word in _arguments(rest):
        if _MDOC.fullmatch(word):
            dashes = dashes + "-" if word == "Fl" else ""
            continue
        found.append(word if word in (",", "|", ")", "]") else dashes + word)
        dashes = ""
    return found


def _plain(line: str) -> str:
    return _ESCAPE.sub(_character, line)


def _character(escape: re.Match[str]) -> str:
    if escape["one"] is not None:
        return _CHARACTERS.get(escape["one"], escape["one"])
    name = escape["long"] or escape["two"] or escape["string"]
    if name is None:
        return _NAMED.get(escape["inner"] or "", "") if escape[0].startswith("\\C") else ""
    if code := re.fullmatch(r"u([0-9A-Fa-f]{4,6})", name):
        return chr(int(code[1], 16)) if int(code[1], 16) <= 0x10FFFF else ""
    return _NAMED.get(name, "")
