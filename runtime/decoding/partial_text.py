"""Partial text out of growing token ids, correct where a character spans several tokens."""

from collections.abc import Callable, Sequence

__all__ = ["PartialText"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class PartialText:
    """Turns growing ids into pieces of text that add up to the text of all of them.

    In a byte-level vocabulary a character may be spread over several tokens, and bytes that make no character yet
    decode to U+FFFD. Such an end is held back until the next tokens complete it, and so are blanks at the end, which
    the text as a whole does not have.

    Args:
        decode: gives the text of ids, without blanks around it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._given = ""

    def grown(self, ids: Sequence[int], *, ended: bool) -> str:
        """Return what is new in the text of `ids`, which begin with the ids of the call before; may be empty.

        Args:
            ids: all ids of the caption so far.
            ended: nothing follows, so nothing is held back.
        """
        text = self._decode(ids)
        if not ended:
            text = text.rstrip(_REPLACEMENT).rstrip()
        if not text.startswith(self._given):
            return ""  # only a decoder that takes back what it said; the caption itself has the last word
        piece = text[len(self._given) :]
        self._given = text
        return piece
