from typing import Any

from numpy.typing import NDArray

def fit(
    pixels: Any,
    height: int,
    width: int,
    rows: int,
    columns: int,
    fit: int,
    filter: int,
    pad_colour: tuple[int, ...],
    out: NDArray[Any],
    /,
) -> None: ...
