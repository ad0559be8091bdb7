"""The options that say how the data of a command is opened."""

from dataclasses import asdict, dataclass

from atlasvi.engine.cli.arguments import EmptyCells, GeneColumn, Layer, Measurement
from atlasvi.loaders.sources.data_spec import DataSpec, parse_source


@dataclass(frozen=True)
class DataOptions:
    """How DATA is opened, where its path has no options of its own (PATH::layer=NAME)."""

    layer: Layer = None
    gene_column: GeneColumn = None
    measurement: Measurement = None
    empty_cells: EmptyCells = None

    def to_spec(self, data: str) -> DataSpec:
        """The data with these options. Raises SourceError if the path has others."""
        return parse_source(data, **asdict(self))
