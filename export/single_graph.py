"""One graph of a variant among the eager model's others: what it alone costs in recall, CIDEr and hallucination.

Such a figure costs a whole evaluation, so it is taken for those graphs alone that have a limit of their own:
`[gates.limits."onnx-int8/image_encoder"]`. `pocketlens.export.gates` compares it with the eager model's.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from numpy.typing import NDArray

from pocketlens.core.bundle import Bundle, GraphRecord, Role
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.evaluation.judged import JudgedLens
from pocketlens.export.graphs import Graph
from pocketlens.export.latency import THREADS
from pocketlens.export.recipe import Gates
from pocketlens.export.stand_in import Patched, eager_answers
from pocketlens.runtime.engines import ENGINES, open_engine
from pocketlens.runtime.lens import Lens

__all__ = ["SingleGraph", "single_graphs"]


class SingleGraph(NamedTuple):
    """What is judged: `judged.name` is `onnx-int8/image_encoder`.

    Attributes:
        role: which of the graphs is the exported one.
        judged: all tasks of the bundle; what the other graphs do, the eager model does.
    """

    role: Role
    judged: JudgedLens


class _AmongEager:
    """An engine with one exported graph."""

    def __init__(self, bundle: Bundle, record: GraphRecord, graphs: Mapping[Role, Graph]) -> None:
        engine = open_engine(record.engine, bundle, {record.role: record}, threads=THREADS)
        self.name = engine.name
        self._patched = Patched(engine, frozenset({record.role}), eager_answers(graphs))

    def run(self, role: Role, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the exported graph, or the eager module of another role."""
        return self._patched.run(role, inputs)


def single_graphs(bundle: Bundle, graphs: Mapping[Role, Graph], gates: Gates) -> Iterator[SingleGraph]:
    """Yield each graph of `bundle` that runs here and has a limit of its own for a task metric.

    Args:
        bundle: the exported graphs.
        graphs: the eager model's, all of them; in eval mode.
        gates: their `limits` say which graphs.

    Raises:
        EngineError: the package of an engine does not load.
    """
    for record in bundle.manifest.graphs:
        name = f"{record.target}-{record.precision}/{record.role}"
        if not _judged_alone(name, gates) or record.engine not in ENGINES or find_spec(record.engine) is None:
            continue
        tokenizer = Tokenizer.from_file(bundle.tokenizer_path, text_length=bundle.manifest.tokenizer.text_length)
        lens = Lens(bundle, _AmongEager(bundle, record, graphs), tokenizer, precision=record.precision, threads=THREADS)
        yield SingleGraph(record.role, JudgedLens(lens, name=name))


def _judged_alone(name: str, gates: Gates) -> bool:
    limits = gates.limits.get(name)
    return limits is not None and any(
        limit is not None for limit in (limits.recall_loss, limits.cider_loss, limits.hallucination_rise)
    )
