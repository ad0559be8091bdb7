"""A model's card as plain values: all its figures, what they are of, and what a page needs to draw them without counts.

`metrics.json` of a card's folder holds exactly this (see `plain_values` for how); the texts, the hub's front matter and
the page are made from it. Every figure is an `Estimate`: a value and its standard error over draws. A figure that is
undefined is NaN (null in JSON); one that could not be computed at all is missing, and a `Note` says why.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.plain_values import from_plain, to_plain
from atlasvi.loaders.errors import SourceError

CARD_FORMAT = 1
METRICS = "metrics.json"
PARTS = ("training", "validation", "test", "all")
"""Names of the parts of the cells, in the order in which a card has them; 'all' are the cells of all the others."""

Figures = dict[str, Estimate]
"""Figures by name. Of an agreement: mae, pearson, spearman, r2. Of a label: gene_f1, lfc_mae, lfc_pearson,
lfc_spearman, roc_auc, pr_auc (see `MarkerAgreement`)."""


@dataclass(frozen=True)
class Note:
    """Something that could not be computed, or holds only in part.

    subject  what it is about, such as 'differential expression'
    reason   why, as a whole sentence
    """

    subject: str
    reason: str


@dataclass(frozen=True)
class Density:
    """A scatter of drawn against real values, as numbers of points in boxes of a grid whose edges grow geometrically.

    what            what a point is and what is compared, such as 'coefficient of variation of a cell'
    x_edges, y_edges  ascending edges of the boxes: real values on x, means over draws on y; both axes are logarithmic
    counts          numbers of points, [x][y], one fewer than there are edges on each axis
    n_left_out      points that have no place on logarithmic axes, because one of their values is 0
    """

    what: str
    x_edges: tuple[float, ...]
    y_edges: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]
    n_left_out: int = 0


@dataclass(frozen=True)
class LabelFigures:
    """How well differential expression of one label against the rest agrees between drawn and real counts.

    label     its name
    n_cells   cells that have it, in this part
    welch     the figures by Welch's t-test on all cells (what the hub computes); {} if it has no test
    wilcoxon  the figures by Wilcoxon's rank-sum test on the stratified sample (what the hub's text says)
    n_sampled cells of this label in that sample
    """

    label: str
    n_cells: int
    welch: Figures = field(default_factory=dict)
    wilcoxon: Figures = field(default_factory=dict)
    n_sampled: int = 0


@dataclass(frozen=True)
class CalibrationPoint:
    """A credible interval between two order statistics of the draws, and how often it holds the real count.

    expected  the fraction of counts inside, if the model's distributions are right
    observed  the fraction that is inside; its error is that over cells
    """

    expected: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """How often credible intervals hold the real counts, over the cells and genes where any count, real or drawn, is
    not 0 (where all are 0, each interval holds the count, which says nothing).

    points         by ascending `expected`
    rank_histogram fraction of counts by the number of draws below them, 0 to all draws, ties divided evenly: all equal
                   to 1 / (draws + 1) if the distributions are right
    error          mean absolute difference of expected and observed
    n_counts       counts compared
    """

    points: tuple[CalibrationPoint, ...]
    rank_histogram: tuple[float, ...]
    error: Estimate
    n_counts: int


@dataclass(frozen=True)
class PartFigures:
    """All figures of one part of the cells.

    cells      agreement over cells of 'variation' (coefficient of variation over genes), 'library' (counts per cell)
               and 'expressed' (genes expressed per cell)
    genes      agreement over genes of 'variation' (coefficient of variation over cells) and 'zero_fraction'
    labels     differential expression by label, most cells first; () without labels
    n_sampled  cells in the stratified sample of Wilcoxon's test
    calibration  None if not computed
    losses     'elbo' (negative), 'reconstruction_loss', 'kl': means over cells, nats per cell
    densities  by the names 'cell variation', 'cell library', 'cell expressed', 'gene variation', 'gene zero_fraction'
    n_genes_without_counts, n_genes_never_drawn  genes whose variation counts as 0
    attainable  by 'cells' and 'genes': the squared Pearson correlation of 'variation' that one draw has with the mean
                of the others, about what real counts would have if they were the model's; {} with fewer than 3 draws
    """

    n_cells: int
    cells: dict[str, Figures] = field(default_factory=dict)
    genes: dict[str, Figures] = field(default_factory=dict)
    labels: tuple[LabelFigures, ...] = ()
    n_sampled: int = 0
    calibration: Calibration | None = None
    losses: Figures = field(default_factory=dict)
    densities: dict[str, Density] = field(default_factory=dict)
    n_genes_without_counts: int = 0
    n_genes_never_drawn: int = 0
    attainable: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the squared Pearson correlation of a coefficient of variation says about generated counts.

    part, block      which one: a part of `ModelCard.parts`, and 'cells' or 'genes'
    squared_pearson  with its error
    words            'good', 'doubtful' or 'do not use generated data'; 'unknown' where it is undefined
    """

    part: str
    block: str
    squared_pearson: Estimate
    words: str


@dataclass(frozen=True)
class Integration:
    """How well labels are kept apart and batches are mixed in the latent space, on a stratified sample of the cells.

    figures  by name; each is between 0 and 1, and higher is better, unless `meanings` says otherwise
    meanings one sentence for each figure
    n_cells  cells in the sample
    computed_by  'atlasvi', or the library and its version
    """

    figures: Figures
    meanings: dict[str, str]
    n_cells: int
    computed_by: str


@dataclass(frozen=True)
class Colouring:
    """A column of obs by which the points of a picture are coloured.

    column  its name
    names   its categories
    codes   the category of each point, -1 where it is missing
    """

    column: str
    names: tuple[str, ...]
    codes: tuple[int, ...]


@dataclass(frozen=True)
class LatentPicture:
    """Cells of a sample in two dimensions.

    method  how the dimensions were made: 'UMAP', 'PCA' or 'latent' (the model has at most two)
    x, y    the place of each cell
    label, batch  what to colour by; None where the model and the card have none
    n_cells cells in the data, of which the points are a sample
    """

    method: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    label: Colouring | None
    batch: Colouring | None
    n_cells: int


@dataclass(frozen=True)
class Provenance:
    """What the card is of, and how it was computed.

    model         'SCVI of atlasvi' or 'SCVI of scvi-tools VERSION'
    model_settings, setup  plain values: the model's settings; layer, keys and categories of its set-up
    weights_sha256  identifies the weights
    data          the data as it is opened again: PATH, or PATH::layer=counts
    data_spec     the same as a record (DataSpec.to_record)
    sources       the files that a cell store was made from, or the data's own; with the number of cells of each
    n_cells, n_genes  of the data, with the genes of the model
    counts_hash   of all counts, the same for any order of the cells; '' where there are no counts
    libraries_hash  of the library sizes, which minified data has too, the same for any order of the cells
    order_hash    of the library sizes in the order of the cells, which numbers the draws; both '' in older cards
    genes_sha256  of the names of the model's genes
    label_column, batch_column  columns of obs; None where there is none
    split         plain values: where the parts come from ('by': ...), and the number of cells of each
    seed, n_draws of the card's draws
    training      plain values: what the run says of its training (epochs, seconds, cells_per_s, device, seed ...)
    versions      of atlasvi, python and the libraries that compute
    hardware      the processor or the GPU, and its number of cores
    seconds, cells_per_s  of computing the figures
    peak_memory_bytes  the most that the process has held since it began
    command       that computes it again
    created       date and time, UTC, ISO 8601
    commit        of the git repository of the folder where it was computed; '' without one
    training_provenance  where the model comes from (see `engine.provenance`); {} if it does not say
    """

    model: str
    model_settings: dict[str, Any]
    setup: dict[str, Any]
    weights_sha256: str
    data: str
    data_spec: dict[str, str]
    sources: dict[str, int]
    n_cells: int
    n_genes: int
    counts_hash: str
    genes_sha256: str
    label_column: str | None
    batch_column: str | None
    split: dict[str, Any]
    seed: int
    n_draws: int
    training: dict[str, Any]
    versions: dict[str, str]
    hardware: str
    seconds: float
    cells_per_s: float
    peak_memory_bytes: int
    command: str
    created: str
    libraries_hash: str = ""
    order_hash: str = ""
    commit: str = ""
    training_provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def data_name(self) -> str:
        """The data without folders and options: 'atlas.h5ad' for '/data/atlas.h5ad::layer=counts'."""
        path = self.data.partition("::")[0]
        return path.rstrip("/").rpartition("/")[2] or path


@dataclass(frozen=True)
class ModelCard:
    """The card of a trained model.

    parts        figures by part of the cells, in the order of `PARTS`; a part without cells is missing
    verdicts     of each part, for cells and for genes
    integration  None without labels and batches
    training_curves  by name, one number per epoch each: 'epoch', and losses such as 'train_elbo', 'validation_elbo'
    picture      None if it could not be made
    notes        what could not be computed, and why
    """

    provenance: Provenance
    parts: dict[str, PartFigures]
    verdicts: tuple[Verdict, ...] = ()
    integration: Integration | None = None
    training_curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    picture: LatentPicture | None = None
    notes: tuple[Note, ...] = ()
    format: int = CARD_FORMAT

    def to_json(self) -> str:
        """The card as the text of metrics.json."""
        return json.dumps(to_plain(self), allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: str = METRICS) -> "ModelCard":
        """The card from that text. Raises SourceError, naming the path, if it is not a card or of a newer format."""
        try:
            values = json.loads(text)
            written = values["format"]
            if isinstance(written, int) and written <= CARD_FORMAT:
                return from_plain(cls, values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceError(f"{path} is damaged: it holds no model card ({error}): copy it again.") from error
        raise SourceError(
            f"{path}: the card has format {written}, and this atlasvi reads up to {CARD_FORMAT}: install a newer one."
        )
