"""The child's side of `tune`: tries every candidate on the golden inputs, then times those that are right.

It runs in a child process, because a graph may kill the process that loads it. Before each step the parent is
told the number of the candidate whose turn it is, so that it knows whom to leave out if the child dies.

Letters: `K` pictures, `L` the longest caption, `N` vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role, load_bundle
from pocketlens.core.errors import EngineError, PocketlensError
from pocketlens.core.golden import GoldenSet, read_golden
from pocketlens.runtime.engines import Engine, open_engine
from pocketlens.runtime.selection import needed_roles
from pocketlens.runtime.tuning.profile import Measurement

__all__ = ["Candidate", "Order", "measure"]

Arrays = Mapping[str, NDArray[Any]]

# What a graph may lose where its record has no parity; as `pocketlens.export.golden_cases.COSINE`, with its reasons.
_COSINES: Final = {"fp32": 0.9999, "fp16": 0.999}
_LEAST_COSINE: Final = 0.95
# Golden pictures are others than those of the parity figures: they may lie this much further off.
_SLACK: Final = 4.0
_RARE: Final = 0.001
# Logits of the decode step: no figure of them is in a bundle, so this only tells a wrong graph from a coarse one.
_LOGITS: Final = {"fp32": 0.999, "fp16": 0.99}
_LEAST_LOGITS: Final = 0.8

_WARM_UP: Final = 3
_TURNS: Final = 15
_CALLS: Final = 4
_LEAST_TURNS: Final = 2
_HOPELESS: Final = 2.0  # who is this much slower than the fastest after two turns is not timed further


class Candidate(msgspec.Struct, frozen=True):
    """One way to run one graph; see `Measurement`."""

    role: Role
    engine: str
    precision: str
    path: str
    threads: int

    def outcome(self, **fields: Any) -> Measurement:
        """Return what came of it."""
        return Measurement(**msgspec.structs.asdict(self), **fields)


class Order(msgspec.Struct, frozen=True):
    """What the child is to do: the bundle's folder, the candidates by number, and the time for all of it."""

    root: str
    candidates: dict[int, Candidate]
    limit_s: float


def measure(argument: bytes, note: Callable[[str], None]) -> bytes:
    """Carry out an `Order`; return the `Measurement` of each candidate by its number."""
    order = msgspec.json.decode(argument, type=Order)
    note("its golden files")
    bundle = load_bundle(order.root)  # hashed again: graphs are read by path from here on
    return msgspec.json.encode(_Measuring(bundle, _golden(bundle.root), order, note).outcomes())


def _golden(root: Path) -> GoldenSet:
    """Return the golden files, as far as the pictures' tensors are stored."""
    golden = read_golden(root)
    return golden.of(range(len(golden.pixels)), golden.pixels)


class _Right(msgspec.Struct, frozen=True):
    """A candidate that is right: its engine, the figure that says so, and a call to be timed."""

    engine: Engine
    figure: float
    limit: float
    feed: Arrays


class _Measuring:
    def __init__(self, bundle: Bundle, golden: GoldenSet, order: Order, note: Callable[[str], None]) -> None:
        self._bundle = bundle
        self._golden = golden
        self._order = order
        self._note = note
        self._records = {(graph.role, graph.path): graph for graph in bundle.manifest.graphs}
        self._done: dict[int, Measurement] = {}
        self._visual: NDArray[Any] | None = None
        self._cache: NDArray[Any] | None = None
        self._expected: NDArray[Any] | None = None

    def outcomes(self) -> dict[int, Measurement]:
        roles = needed_roles(self._bundle)
        began = monotonic()
        for index, role in enumerate(roles):
            # What a role leaves of its share is for those after it.
            left = self._order.limit_s - (monotonic() - began)
            self._measure_role(role, monotonic() + left / (len(roles) - index))
        return self._done

    def _measure_role(self, role: Role, deadline: float) -> None:
        right: dict[int, _Right] = {}
        # The plainest first: what the rest of a caption is checked with comes from the first one that is right.
        for number in sorted(self._of(role), key=self._plainness):
            candidate = self._order.candidates[number]
            if right and monotonic() > deadline:
                self._done[number] = candidate.outcome(status="not_tried", note="the time was over")
                continue
            self._say(number)
            try:
                right[number] = self._checked(candidate)
            except _WrongAnswer as wrong:
                self._done[number] = candidate.outcome(
                    status="wrong", figure=wrong.figure, limit=wrong.limit, note=wrong.note
                )
            except PocketlensError as error:
                self._done[number] = candidate.outcome(status="failed", note=error.found[:200])
        self._time(role, right, deadline)

    def _of(self, role: Role) -> list[int]:
        return [number for number, candidate in self._order.candidates.items() if candidate.role == role]

    def _plainness(self, number: int) -> tuple[bool, bool, int, int]:
        candidate = self._order.candidates[number]
        return candidate.precision != "fp32", candidate.engine != "onnxruntime", candidate.threads, number

    def _say(self, number: int) -> None:
        c = self._order.candidates[number]
        self._note(f"{c.role} on {c.engine}, {c.precision}, threads {c.threads} [{number}]")

    def _checked(self, candidate: Candidate) -> _Right:
        role, golden = candidate.role, self._golden
        record = self._records[role, candidate.path]
        engine = open_engine(candidate.engine, self._bundle, {role: record}, threads=candidate.threads)
        if role == "caption_decode":
            return self._checked_decode(engine, record)
        feed = self._feed(role)
        outputs = engine.run(role, feed)
        expected = golden.embeddings if role == "image_encoder" else golden.text_embeddings
        name = "embedding"
        if role == "caption_prefill":
            name = "cache"
            expected = self._first_cache(engine, record, outputs[name])
        figure, limit = _cosine(outputs[name], expected), _cosine_limit(record)
        if figure < limit:
            raise _WrongAnswer(figure, limit, f"the {name} lies too far from the golden one")
        if role == "image_encoder" and self._visual is None:
            self._visual = outputs.get("visual_tokens")
        return _Right(engine, figure, limit, {name: array[:1] for name, array in feed.items()})

    def _feed(self, role: Role) -> Arrays:
        if role == "image_encoder":
            return {"pixels": self._golden.pixels}
        if role == "text_encoder":
            return {"ids": self._golden.text_ids}
        if self._visual is None:
            raise EngineError(
                role,
                expected="visual tokens of the golden pictures",
                found="no image encoder here gives right ones",
                remedy="Export the bundle again.",
            )
        return {"visual_tokens": self._visual}

    def _first_cache(self, engine: Engine, record: GraphRecord, cache: NDArray[Any]) -> NDArray[Any]:
        """Return the cache to compare with: the first that leads some decode step to the golden captions.

        No cache is in a bundle. A prefill is right if a decode step goes on from it as it must.
        """
        if self._cache is not None:
            return self._cache
        reasons = []
        for number in sorted(self._of("caption_decode"), key=self._plainness):
            candidate = self._order.candidates[number]
            decode = self._records["caption_decode", candidate.path]
            # Of its own kind: two coarse graphs of different kinds would be blamed for each other.
            if (candidate.engine, decode.precision, decode.target) != (engine.name, record.precision, record.target):
                continue
            self._say(number)
            try:
                step = open_engine(
                    candidate.engine, self._bundle, {"caption_decode": decode}, threads=candidate.threads
                )
                agreement, logits = self._forced(step, cache)
            except PocketlensError as error:
                reasons.append(error.found[:100])
                continue
            if agreement >= _agreement_limit(decode, len(self._golden.golden.caption_ids)):
                self._cache, self._expected = cache, logits
                return cache
            reasons.append(f"{agreement:.2f} of the golden captions")
        raise EngineError(
            "caption_prefill",
            expected="a cache from which a decode step writes the golden captions",
            found="; ".join(reasons) or "no decode step of its kind",
            remedy="Export the bundle again.",
        )

    def _checked_decode(self, engine: Engine, record: GraphRecord) -> _Right:
        if self._cache is None or self._expected is None:
            raise EngineError(
                "caption_decode",
                expected="a right cache of the golden pictures",
                found="no prefill here gives one",
                remedy="Export the bundle again.",
            )
        agreement, logits = self._forced(engine, self._cache)
        limit = _agreement_limit(record, len(self._golden.golden.caption_ids))
        if agreement < limit:
            raise _WrongAnswer(agreement, limit, "too few captions are the golden ones")
        likeness, least = _cosine(logits, self._expected), _LOGITS.get(record.precision, _LEAST_LOGITS)
        if likeness < least:
            raise _WrongAnswer(likeness, least, "the logits lie too far from those of the plainest graph")
        return _Right(engine, agreement, limit, self._step(0, self._cache[:1]))

    def _forced(self, engine: Engine, cache: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """Return the share of golden captions that greedy decoding would write, and all logits `(K * L, N)`.

        Each step is fed the golden id, so a graph writes the golden caption exactly if at each of its
        places the most probable id is the golden one.
        """
        captions = self._golden.golden.caption_ids
        longest = max(map(len, captions))
        equal = np.ones(len(captions), dtype=bool)
        logits = []
        for place in range(longest):
            outputs = engine.run("caption_decode", self._step(place, cache))
            cache = outputs["cache"]
            for row, ids in enumerate(captions):
                if place < len(ids):
                    logits.append(outputs["logits"][row])
                    equal[row] &= bool(logits[-1].argmax() == ids[place])
        return float(equal.mean()), np.stack(logits)

    def _step(self, place: int, cache: NDArray[Any]) -> Arrays:
        """Return the inputs of the decode step at text position `place`, for each row of `cache`."""
        manifest = self._bundle.manifest
        ids = [(manifest.tokenizer.bos_id, *caption) for caption in self._golden.golden.caption_ids[: len(cache)]]
        token = np.array([i[min(place, len(i) - 1)] for i in ids], dtype=np.int32)
        start = manifest.caption.prefix_length if manifest.caption is not None else 0
        return {"token": token, "position": np.full(len(ids), start + place, np.int32), "cache": cache}

    def _time(self, role: Role, right: Mapping[int, _Right], deadline: float) -> None:
        def call(number: int) -> None:
            right[number].engine.run(role, right[number].feed)

        times = _in_turns(right, call, self._say, deadline)
        for number, found in right.items():
            self._done[number] = self._order.candidates[number].outcome(
                status="measured",
                figure=found.figure,
                limit=found.limit,
                p50_ms=float(np.quantile(times[number], 0.5)),
                p90_ms=float(np.quantile(times[number], 0.9)),
                runs=len(times[number]),
            )


class _WrongAnswer(Exception):
    """A candidate answers the golden inputs otherwise than it must; never leaves this module."""

    def __init__(self, figure: float, limit: float, note: str) -> None:
        super().__init__(figure, limit, note)
        self.figure, self.limit, self.note = figure, limit, note


def _in_turns(
    numbers: Iterable[int], call: Callable[[int], None], say: Callable[[int], None], deadline: float
) -> dict[int, list[float]]:
    """Return wall times in ms. Everyone has a turn before anyone has the next, so the machine's moods hit all alike.

    A turn is one call that is not timed (the others have emptied the caches) and a few that are.
    """
    times: dict[int, list[float]] = {number: [] for number in numbers}
    running = list(times)
    for number in running:
        say(number)
        for _ in range(_WARM_UP):
            call(number)
    for turn in range(_TURNS):
        if turn >= _LEAST_TURNS and monotonic() > deadline:
            break
        # Every other turn runs backwards, so that nobody always follows the same neighbour.
        for number in running if turn % 2 else reversed(running):
            say(number)
            call(number)
            for _ in range(_CALLS):
                started = perf_counter()
                call(number)
                times[number].append((perf_counter() - started) * 1000)
        if turn + 1 >= _LEAST_TURNS and running:
            fastest = min(float(np.median(times[number])) for number in running)
            running = [number for number in running if min(times[number]) <= _HOPELESS * fastest]
    return times


def _cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the smallest cosine of all pairs of rows; 0 where a row is not finite or a shape differs."""
    if len(found) != len(expected) or found.size != expected.size:
        return 0.0
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (found, expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.einsum("nd,nd->n", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.where(np.isfinite(values), values, 0.0).min(initial=1.0))


def _cosine_limit(record: GraphRecord) -> float:
    if record.precision != "fp32" and record.parity is not None and record.parity.metric == "cosine":
        return 1 - _SLACK * (1 - record.parity.minimum)
    return _COSINES.get(record.precision, _LEAST_COSINE)


def _agreement_limit(record: GraphRecord, count: int) -> float:
    """Return the share of equal captions below which a graph that keeps its parity falls once in a thousand times."""
    if record.precision == "fp32" or record.parity is None:
        return 1.0 if record.precision == "fp32" else 0.0
    share, tail = record.parity.mean, 0.0
    for equal in range(count + 1):
        tail += math.comb(count, equal) * share**equal * (1 - share) ** (count - equal)
        if tail > _RARE:
            return equal / count
    return 1.0
