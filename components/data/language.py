"""Which language a text is in: a cheap, fixed rule for the language mix of a data set; nothing is trained or downloaded.

1. Program text ("code"): many of its lines look like statements.
2. The script with most letters, by Unicode block; some scripts are one language here (Hangul, Kana, Greek, ...).
3. Within a script that many share, the language whose commonest words make up the largest share of the text.
4. "und" (undetermined, as in ISO 639) where no rule speaks: too short, names and numbers, a language without a list.
Codes are ISO 639-1. Absent on purpose: probabilities, dialects, and several languages in one text - the commonest wins.
Languages that share a script and have no list here (Marathi, Persian, Urdu, ...) get the code of the script's largest one.
"""

from __future__ import annotations

# ruff: noqa: RUF001 - the letters that look like others are the point
import re
from collections import Counter

CODE, UNDETERMINED = "code", "und"

_READ = 10_000  # characters from the beginning that are looked at
_LEAST = 0.06  # share of the words that must be common words of the language
_HITS = 2  # and how many of them there must be

#: script -> (its characters, how many letters one character of it is worth beside an alphabet's)
_SCRIPTS = {
    "latin": (r"A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ", 1.0),
    "cyrillic": (r"Ѐ-ӿ", 1.0),
    "greek": (r"Ͱ-Ͽἀ-῿", 1.0),
    "hebrew": (r"א-ת", 1.0),
    "arabic": (r"ء-ۿ", 1.0),
    "devanagari": (r"ऀ-ॿ", 1.0),
    "thai": (r"ก-๛", 1.0),
    "hangul": (r"ᄀ-ᇿ가-힣", 2.5),
    "kana": (r"ぁ-ヿ", 2.5),
    "han": (r"㐀-䶿一-鿿", 2.5),
}
_LETTERS = {name: (re.compile(f"[{letters}]+"), worth) for name, (letters, worth) in _SCRIPTS.items()}
_WORD = re.compile(r"[^\W\d_]+")
#: scripts that stand for one language here
_ALONE = {
    "greek": "el", "hebrew": "he", "arabic": "ar", "devanagari": "hi", "thai": "th", "hangul": "ko", "kana": "ja",
    "han": "zh",
}  # fmt: skip
_KANA_IN_JAPANESE = 0.1  # of Kana and Han together: Chinese texts have next to none

_WORDS = {
    "latin": {
        "cs": "a se na je že pro jako do za ale jsou není které který která nebo při pokud tak může podle ze od po ve "
        "jeho byl být aby tento tato toto",
        "da": "og i at det en den til er som på de med for af ikke der et har eller hvis fra kan vil være efter kun "
        "blev denne dette hvor også bliver",
        "de": "und der die das ist ein eine nicht mit zu den dem des von für auf im sich als auch wird werden oder bei "
        "aus nach wenn kann sind einer einem einen",
        "en": "the of and to in is that for it as with be on by this are or not from an at which was can if have you "
        "when will all has",
        "es": "el la de que y en los las un una por con para es se del al no su como más o si este esta son está pero "
        "cuando puede sus",
        "fi": "ja on ei se että joka tai kun ovat ole mutta jos voi myös kuin niin tämä sen ne sitä hän oli sekä jotka "
        "vain käyttää ovat tämän näin",
        "fr": "le la les de des et en un une du est que qui pour dans par sur pas ne au ce il avec sont ou plus cette "
        "se être si aux",
        "hr": "i u na je se da za od su koji koja koje ili kao ako biti nije ne što može te iz sa samo kako ovaj ova "
        "bilo prema jedan",
        "hu": "a az és hogy nem is egy ez meg ha van vagy de csak mint el már lehet ki még be azt ezt kell minden volt "
        "pedig illetve akkor majd",
        "id": "yang dan di untuk dengan dari ini pada tidak dalam adalah akan atau ke itu oleh dapat sebagai jika juga "
        "ada tersebut lebih karena bisa",
        "it": "il la di che e un una per in del della è non con si le i gli lo da dei nel sono come se al più questo "
        "viene essere alla",
        "nl": "de het een en van in is dat op te zijn voor met die niet aan er als of bij ook door worden wordt naar "
        "om deze dit uit kan",
        "no": "og i at det en den til er som på de med for av ikke et har eller hvis fra kan vil være etter bare ble "
        "denne dette hvor også blir noen",
        "pl": "i w na z się nie do jest że to jak o lub dla po od przez jeśli są może oraz który która które ten tego "
        "być tylko jego ze przy",
        "pt": "o a de que e do da em um uma para com não os as se no na por mais dos das é ou ser como ao pode quando "
        "são esta este",
        "ro": "și în de la cu pe care este nu un o sau din pentru că se fi să sunt ca mai dacă prin dar poate al ale "
        "acest această fost",
        "sk": "a sa na je že pre ako do za ale sú nie ktoré ktorý ktorá alebo pri ak tak môže podľa zo od po vo jeho bol "
        "byť aby tento táto",
        "sl": "in je na za da se ki so pri ali po ne če kot lahko bi tudi bo iz ter ni od ta to katere kateri uporabi "
        "samo vse bil biti",
        "sv": "och i att det en den till är som på de med för av inte ett har eller om från kan vid ska vara efter bara "
        "denna detta där också blir",
        "tr": "ve bir bu için ile da de olarak olan veya daha çok gibi değil ise kadar sonra her ama ne eğer olduğu "
        "tarafından var en ya göre tüm",
        "vi": "và của là có các được cho trong không một với này những để người khi đã từ đến như về theo tại cũng hay "
        "nếu thì sẽ bị",
    },
    "cyrillic": {
        "bg": "и на за да се от не по са е в с че като или ако който която което това може при до към след",
        "ru": "и в не на с что по для как это от из или если он но к же за при то а у было который будет может все",
        "sr": "и у на је се да за од су који која које или као ако бити није не што може те из са само како",
        "uk": "і в не на з що для як це від або якщо у та до за його по при але ви буде є він який може із ці",
    },
}  # fmt: skip
_COMMON = {
    script: {language: frozenset(words.split()) for language, words in lists.items()}
    for script, lists in _WORDS.items()
}

_STATEMENT = re.compile(
    r"""^\s*(?:
        (?:def|class|import|from|return|elif|else|except|raise|with|while|for|if|try|assert|yield|async)\b.*[:)\]\w]\s*$
        (?<![.!?,])                                             # a sentence may begin with these words
      | .*[;{}]\s*$                                             # C and its relatives
      | (?:\#\s*(?:include|define|ifdef|ifndef|endif|pragma)|//|/\*|\*/|@\w+|\#!|"{3}|'{3})
      | (?:const|let|var|func|fn|static|public|private|package|using|namespace|struct|void|int|char|print)\b.*[({=;]
      | [\w.\[\]"'*]+(?:\s*:\s*[\w.\[\], |]+)?\s*[-+*/|&]?=\s*\S    # an assignment
      | [\w.]+\(.*\)?\s*$                                       # a call
      | [)\]}]+[,;:]?\s*$
    )""",
    re.VERBOSE,
)
_CODE_LINES = 0.4  # share of the lines that must look like statements


def detect(text: str) -> str:
    """The language of a text: an ISO 639-1 code, "code", or "und".

    >>> detect("Der Hund ist nicht mit der Katze in dem Garten.")
    'de'
    >>> detect("import os\\n\\ndef size(path):\\n    return os.stat(path).st_size\\n")
    'code'
    """
    text = text[:_READ]
    if _is_code(text):
        return CODE
    script = _script(text)
    return _ALONE.get(script, UNDETERMINED) if script not in _COMMON else _by_words(text, script)


def _is_code(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and sum(bool(_STATEMENT.match(line)) for line in lines) >= _CODE_LINES * len(lines)


def _script(text: str) -> str:
    """The script with most letters; "" where there are none."""
    if text.isascii():
        return "latin"
    found = {name: worth * sum(map(len, letters.findall(text))) for name, (letters, worth) in _LETTERS.items()}
    cjk = found["kana"] + found["han"]
    kana = found["kana"] > _KANA_IN_JAPANESE * cjk
    found["kana"], found["han"] = (cjk, 0.0) if kana else (0.0, cjk)
    best = max(found, key=lambda name: found[name])
    return best if found[best] else ""


def _by_words(text: str, script: str) -> str:
    words = Counter(_WORD.findall(text.lower()))
    hits = {language: sum(words[word] for word in common) for language, common in _COMMON[script].items()}
    best = max(hits, key=lambda language: hits[language])
    return best if hits[best] >= max(_HITS, _LEAST * words.total()) else UNDETERMINED
