"""A folder with a Matrix Market file and its lists of genes and cells, as many tools write it.

10x and STARsolo (matrix.mtx, features.tsv or genes.tsv, barcodes.tsv), GEO (the same with a prefix, the parts of the
name in any order), kallisto|bustools (cells_x_genes.mtx), alevin-fry (quants_mat.mtx) and Parse (count_matrix.mtx).
"""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.rows.spool import RowSpool
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.gene_lists import CellList, ListFile, find_headers, open_list, read_genes
from atlasvi.loaders.sources.line_lists import Lines
from atlasvi.loaders.sources.matrix_market import find_mtx, read_entries, read_header
from atlasvi.loaders.sources.tenx import TenxSource

LIST_ENDS = (".tsv", ".txt", ".csv", ".tsv.gz", ".txt.gz", ".csv.gz")
# Words in the names of the files, the most certain first.
MATRIX_WORDS = ("matrix", "counts?")
CELL_WORDS = ("barcodes?", "quants_mat_rows", "cell_?metadata", "cell_?names", "cell_?ids", "cells")
GENE_WORDS = ("features?", "genes?", "quants_mat_cols")
CELLS_FIRST = ("cells_x_", "quants_mat", "count_matrix", "dge.")  # tools whose matrices have one row for each cell


def open_mtx_folder(spec: DataSpec, scratch: str | Path | None = None) -> TenxSource:
    """Open such a folder, or the .mtx in one; the matrix may have genes or cells as rows.

    Entries are sorted by cell in `scratch` at the first read. Raises SourceError where the folder can't be read.
    """
    path = spec.path
    if spec.layer is not None:
        raise SourceError(
            f"{path}: such a folder has one matrix and no layer {spec.layer!r}; leave --layer out; if other sources "
            "need it, name it for each of them: SOURCE::layer=NAME."
        )
    with reading(path):
        file, genes_file, cells_file = find_parts(path, spec.place)
        header = read_header(str(file), file)
        shape = (header.n_rows, header.n_cols)
        lines = Lines(cells_file)
        with closing(Lines(genes_file)) as gene_lines:
            genes = open_list(genes_file, gene_lines)
        genes, cells = find_headers(shape, genes, open_list(cells_file, lines))
        cells_first = has_cells_first(path, file, shape, genes, cells)
        features = read_genes(genes)
        check_modes(path, features.index.tolist())

        def entries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for row, column, count in read_entries(str(file), file, header):
                yield (row, column, count) if cells_first else (column, row, count)

        spooled = (cells.n_entries, genes.n_entries)
        matrix = RowSpool(entries, spooled, header.n_entries, header.value_dtype, scratch)
        return TenxSource(spec, matrix, features, CellList(cells, lines).read_obs, lines.close, [])


def find_parts(path: str, place: Place) -> tuple[Place, Place, Place]:
    """The files of matrix, genes and cells; `path` is their folder or the matrix itself.

    Raises SourceError where one is missing, or it is not clear which list belongs to the matrix.
    """
    if place.is_dir():
        found = find_mtx(place)
        if len(found) > 1:
            raise SourceError(
                f"{path}: the folder holds several matrices; pass one of: {', '.join(str(file) for file in found[:8])}."
            )
        place = found[0]
    beside: list[Place] = sorted(place.parent.iterdir())
    there = [
        file
        for file in beside
        if file.name.lower().endswith(LIST_ENDS) and not file.name.startswith(".") and file.is_file()
    ]
    key = strip_word(place, MATRIX_WORDS)
    cells = choose_list(path, place, key, there, CELL_WORDS, "barcodes.tsv")
    others = [file for file in there if file != cells]
    genes = choose_list(path, place, key, others, GENE_WORDS, "features.tsv or genes.tsv")
    return place, genes, cells


def choose_list(path: str, matrix: Place, key: str, files: list[Place], words: tuple[str, ...], usual: str) -> Place:
    """The list of genes or cells of a matrix: the file of the same name except for the word, or the only list there.

    key  the matrix's name without its word, as `strip_word` returns it
    """
    for word in words:
        named = [file for file in files if re.search(word, file.name.lower())]
        own = prefer_plain([file for file in named if strip_word(file, (word,)) == key])
        found = own or prefer_plain([file for file in named if not is_of_another(file, word, matrix)])
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found[:6])
            raise SourceError(
                f"{path}: several files could be the {usual} of {matrix.name}: {names}; put the three files of a "
                "matrix into a folder of their own."
            )
    raise SourceError(
        f"{path}: {usual} (or .gz) is not beside {matrix.name}, by that or a similar name; a matrix comes with a list "
        "of its genes and one of its cells, copy all three files into one folder."
    )


def is_of_another(file: Place, word: str, matrix: Place) -> bool:
    """Whether a list belongs to another matrix in the folder; a list without a name of its own belongs to all."""
    key = strip_word(file, (word,))
    others = [other for other in find_mtx(matrix.parent, named=False) if strip_end(other) != strip_end(matrix)]
    return bool(key) and key in {strip_word(other, MATRIX_WORDS) for other in others}


def strip_end(file: Place) -> str:
    """A file's name in lower case, without the endings of its format."""
    return re.sub(r"\.(tsv|txt|csv|mtx)(\.gz)?$", "", file.name.lower())


def strip_word(file: Place, words: tuple[str, ...]) -> str:
    """A file's name without its format and the last of `words` in it: the part that it shares with files beside it."""
    name = strip_end(file)
    for word in words:
        *_, last = [None, *re.finditer(word, name)]
        if last is not None:
            name = f"{name[: last.start()]}_{name[last.end() :]}"
            break
    return "_".join(re.findall(r"[^._\- ]+", name))


def prefer_plain(files: list[Place]) -> list[Place]:
    """The files without each .gz whose unpacked copy lies beside it."""
    return [file for file in files if not (file.suffix == ".gz" and file.with_suffix("") in files)]


def has_cells_first(path: str, file: Place, shape: tuple[int, int], genes: ListFile, cells: ListFile) -> bool:
    """Whether the rows of the matrix are cells: decided by the sizes, and by the tool's name if it is square.

    Raises SourceError where the sizes do not fit the lists.
    """
    listed = (genes.n_entries, cells.n_entries)
    if shape == listed:
        return shape == listed[::-1] and file.name.lower().startswith(CELLS_FIRST)
    if shape == listed[::-1]:
        return True
    words = "the files do not belong together, or one is cut short."
    for entry, other, rows in ((genes, cells, shape), (cells, genes, shape)):
        if entry.n_entries - 1 in rows and other.n_entries in rows:
            words = f"{entry.path.name} has one line too many, and its first is not a known header."
    raise SourceError(
        f"{path}: the matrix is {shape[0]} x {shape[1]}, but {genes.path.name} lists {listed[0]} features and "
        f"{cells.path.name} {listed[1]} cells: {words}"
    )


def check_modes(path: str, names: list[str]) -> None:
    """Raise SourceError for alevin-fry's matrices of spliced, unspliced and ambiguous counts side by side."""
    third = len(names) // 3
    if third and names[third : 2 * third] == [f"{name}-U" for name in names[:third]]:
        raise SourceError(
            f"{path}: alevin-fry wrote it in USA mode: each gene is there three times, as spliced, unspliced (-U) and "
            "ambiguous (-A); add them up first: pyroe.load_fry(...).write_h5ad('counts.h5ad')."
        )
