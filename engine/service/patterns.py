"""Regular expressions that a question may look for: those that take a bounded time.

Python's `re` tries one way of matching after the other, and the ways can be exponentially many: (a+)+$ on 30 letters
takes hours, in which no other thread can run. Here the ways in which a pattern can match a text are counted, from
above, before it is used.
"""

import re
from typing import Any

_parser: Any = re._parser  # type: ignore[attr-defined]  # what `re` itself parses patterns with; there is no public one

TEXT_BITS = 6  # ways in which a part can be repeated in a text of 64 characters, as a power of two
MOST_BITS = 20  # three unbounded repeats, and some alternatives


def check_pattern(pattern: str, flags: int = 0) -> None:
    """Raise ValueError, with a sentence, for a pattern that might take long, or is none."""
    try:
        bits = _count_bits(_parser.parse(pattern, flags))
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"The pattern {pattern!r:.100} is no regular expression ({error}).") from None
    if bits > MOST_BITS:
        raise ValueError(
            f"The pattern {pattern!r:.100} can take very long: this service looks for patterns with at most three "
            "repeats, and without repeats inside of repeats, or of alternatives; [ab]+ does for (a|b)+."
        )


def _count_bits(parts: Any) -> float:
    """Logarithm to base 2 of the number of ways in which a parsed pattern can match a text, at most."""
    return sum(_count_part(str(kind), value) for kind, value in parts)


def _count_part(kind: str, value: Any) -> float:
    match kind:
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, body = value
            if int(least) > 1 and body.getwidth()[0] == 0:
                return MOST_BITS + 1  # an empty match is repeated as often as the pattern says
            inside, times = _count_bits(body), min(int(most), 2**TEXT_BITS)
            return times * inside + (max(times - min(int(least), times) + 1, 1)).bit_length() - 1
        case "BRANCH":
            return max(map(_count_bits, value[1])) + (len(value[1]) - 1).bit_length()
        case "SUBPATTERN":
            return _count_bits(value[-1])
        case "ATOMIC_GROUP":
            return _count_bits(value)
        case "ASSERT" | "ASSERT_NOT":
            return _count_bits(value[1])
        case "GROUPREF" | "GROUPREF_IGNORE" | "GROUPREF_EXISTS":
            return MOST_BITS + 1  # a group that is looked for again: its length can be anything
    return 0.0
