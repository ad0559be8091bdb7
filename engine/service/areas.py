"""Cells in a polygon of the picture, wherever a question over HTTP chooses cells."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from atlasvi.engine.queries.cell_choice import choose_cells
from atlasvi.engine.queries.question_cells import QueryError, QuestionCells
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.tiles import MOST_CORNERS, Tiles

Polygon = Annotated[list[tuple[float, float]], Field(min_length=3, max_length=MOST_CORNERS)]
"""Corners in the coordinates of the embedding; the last one joins the first."""


class Area(BaseModel):
    """The cells in a polygon of the embedding that meet all conditions."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    polygon: Polygon
    where: list[Annotated[str, Field(max_length=Limits.text_characters)]] = Field(
        [], description="COLUMN=VALUE, or expressions."
    )


def locate(
    tiles: Tiles | None,
    cells: QuestionCells,
    options: Mapping[str, Any],
    rows: np.ndarray | None,
    polygon: Any,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Options whose areas are ascending int64 indices of cells; and the rows that are also in a polygon (None: all).

    Raises QueryError if the store has no coordinates, or if no cell is in an area.
    """

    def find(corners: Any, where: Sequence[str]) -> np.ndarray:
        if tiles is None:
            raise QueryError(f"{cells.path}: its cells have no places in a picture: make them with atlasvi embed MINI.")
        inside = tiles.find_inside(corners)
        if not len(inside):
            raise QueryError(f"{cells.path}: no cell is in the polygon.")
        conditions: list[str | np.ndarray] = [*where, inside]
        return choose_cells(cells, where=conditions) if where else inside

    found = {
        name: find(value.polygon, value.where) if isinstance(value, Area) else value for name, value in options.items()
    }
    if polygon is None:
        return found, rows
    inside = find(polygon, [])
    return found, inside if rows is None else np.intersect1d(rows, inside)
