"""From a filled cache to token ids: greedy, beam and nucleus search with a static KV cache.

Letters: `B` pictures, `R` rows of a decode call (live hypotheses of all pictures), `N` vocabulary.
Everything here works on a `Step`, a function that makes one decode call; it knows no engine and no bundle.
"""

from pocketlens.runtime.decoding.beam import beam_search, beam_searches
from pocketlens.runtime.decoding.distribution import Distribution, log_softmax
from pocketlens.runtime.decoding.greedy import greedy
from pocketlens.runtime.decoding.nucleus import nucleus, uniforms
from pocketlens.runtime.decoding.options import GREEDY, RERANK_WEIGHT, Beam, Decoding, Greedy, Nucleus, Search
from pocketlens.runtime.decoding.partial_text import PartialText
from pocketlens.runtime.decoding.search import search, stream
from pocketlens.runtime.decoding.sequence import LENGTH_PENALTY, Hypothesis, Limits, Step, length_divisor

__all__ = [
    "GREEDY",
    "LENGTH_PENALTY",
    "RERANK_WEIGHT",
    "Beam",
    "Decoding",
    "Distribution",
    "Greedy",
    "Hypothesis",
    "Limits",
    "Nucleus",
    "PartialText",
    "Search",
    "Step",
    "beam_search",
    "beam_searches",
    "greedy",
    "length_divisor",
    "log_softmax",
    "nucleus",
    "search",
    "stream",
    "uniforms",
]
