"""Folders of a matrix and its lists are read by whatever names tools, archives and people give them."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.sources.open_source import open_source

COUNTS = np.array([[0, 3, 0, 1], [2, 0, 0, 0], [0, 0, 5, 700]])  # cells x genes
GENES, CELLS = [f"ENSG{k}" for k in range(4)], ["AAA-1", "CCC-1", "GGG-1"]


def matrix_text(rows: np.ndarray = COUNTS.T) -> str:
    entries = "".join(f"{i + 1} {j + 1} {rows[i, j]}\n" for i, j in zip(*np.nonzero(rows)))
    return f"%%MatrixMarket matrix coordinate integer general\n{rows.shape[0]} {rows.shape[1]} 5\n{entries}"


def write(folder: Path, **files: str) -> Path:
    """Files whose names have `__` for a dot, gzipped where they end so."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        file = folder / name.replace("__", ".")
        file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return folder


def lines(names: list[str], *more: str) -> str:
    return "".join("\t".join([name, *more]) + "\n" for name in names)


def assert_is_counts(path: Path | str) -> None:
    source = open_source(path)
    assert source.read_counts(0, 3).toarray().tolist() == COUNTS.tolist()
    assert source.var.index.tolist() == GENES
    assert source.read_obs(0, 3).index.tolist() == CELLS
    assert source.read_obs(1, 2).index.tolist() == CELLS[1:2]
    source.close()


@pytest.mark.parametrize(
    ("matrix", "genes", "cells"),
    [
        ("matrix__mtx", "features__tsv", "barcodes__tsv"),
        ("GSM1_S1_matrix__mtx__gz", "GSM1_S1_features__tsv__gz", "GSM1_S1_barcodes__tsv__gz"),
        ("GSM1_S1__counts__mtx__gz", "GSM1_S1__genes__tsv__gz", "GSM1_S1__barcodes__tsv__gz"),
        ("GSM1_matrix_S1__mtx__gz", "GSM1_genes_S1__tsv__gz", "GSM1_barcodes_S1__tsv__gz"),
        ("GSE_x__mtx__gz", "GSE_x_genes__tsv__gz", "GSE_x_barcodes__tsv__gz"),
        ("GSE_x_raw_counts__mtx", "GSE_x_gene_names__txt", "GSE_x_cell_names__txt"),
        ("samplematrix__mtx", "samplegenes__tsv", "samplebarcodes__tsv"),
    ],
)
def test_names_may_have_prefixes_and_other_words(tmp_path, matrix, genes, cells):
    assert_is_counts(write(tmp_path / "in", **{matrix: matrix_text(), genes: lines(GENES), cells: lines(CELLS)}))


def test_what_kallisto_bustools_writes_is_read(tmp_path):
    folder = write(
        tmp_path / "in",
        cells_x_genes__mtx=matrix_text(COUNTS),
        cells_x_genes__barcodes__txt=lines(CELLS),
        cells_x_genes__genes__txt=lines(GENES),
        cells_x_genes__genes__names__txt=lines(["A", "B", "C", "D"]),
    )
    assert_is_counts(folder)


def test_what_alevin_fry_writes_is_read(tmp_path):
    files = {"quants_mat__mtx": matrix_text(COUNTS), "quants_mat_rows__txt": lines(CELLS)}
    assert_is_counts(write(tmp_path / "in", **files, quants_mat_cols__txt=lines(GENES)))
    three = [f"g1{mode}" for mode in ("", "-U", "-A")]
    rows = np.array([[1, 2, 3], [4, 5, 0], [0, 0, 0]])
    folder = write(tmp_path / "usa", quants_mat__mtx=matrix_text(rows), quants_mat_rows__txt=lines(CELLS))
    with pytest.raises(SourceError, match=r"USA mode: each gene is there three times"):
        open_source(write(folder, quants_mat_cols__txt=lines(three)))


def test_what_parse_writes_is_read_with_its_columns(tmp_path):
    folder = write(
        tmp_path / "in",
        count_matrix__mtx=matrix_text(COUNTS),
        all_genes__csv="gene_id,gene_name,genome\n" + "".join(f'{name},"n,{name}",hg38\n' for name in GENES),
        cell_metadata__csv="bc_wells,sample\n" + "".join(f"{name},s{k}\n" for k, name in enumerate(CELLS)),
    )
    assert_is_counts(folder)
    source = open_source(folder)
    assert source.read_obs(1, 3)["sample"].tolist() == ["s1", "s2"]
    assert source.var["gene_symbols"].tolist() == [f"n,{name}" for name in GENES]
    assert source.var["genome"].tolist() == ["hg38"] * 4


def test_starsolos_matrices_share_the_lists_of_their_folder(tmp_path):
    folder = write(tmp_path / "in", matrix__mtx=matrix_text(), features__tsv=lines(GENES), barcodes__tsv=lines(CELLS))
    (folder / "UniqueAndMult-EM.mtx").write_text(matrix_text())
    assert_is_counts(folder)
    assert_is_counts(folder / "UniqueAndMult-EM.mtx")


def test_the_lists_of_another_matrix_in_the_folder_are_not_taken(tmp_path):
    folder = write(tmp_path / "in", a_matrix__mtx=matrix_text(), b_matrix__mtx=matrix_text())
    write(folder, a_genes__tsv=lines(GENES), a_barcodes__tsv=lines(CELLS), b_barcodes__tsv=lines(CELLS))
    assert_is_counts(folder / "a_matrix.mtx")
    with pytest.raises(SourceError, match=r"features.tsv or genes.tsv \(or .gz\) is not beside b_matrix.mtx"):
        open_source(folder / "b_matrix.mtx")


def test_several_lists_that_could_be_meant_are_named(tmp_path):
    folder = write(tmp_path / "in", x__mtx=matrix_text(), barcodes__tsv=lines(CELLS))
    with pytest.raises(SourceError, match=r"several files could be the .* of x.mtx: a_genes.tsv, b_genes.tsv"):
        open_source(write(folder, a_genes__tsv=lines(GENES), b_genes__tsv=lines(GENES)))


def test_twins_of_macos_and_unpacked_copies_are_no_second_matrix(tmp_path):
    files = {"matrix__mtx__gz": matrix_text(), "features__tsv__gz": lines(GENES), "barcodes__tsv__gz": lines(CELLS)}
    folder = write(tmp_path / "in", **files)
    for name in files:
        (folder / f"._{name.replace('__', '.')}").write_bytes(b"\x00\x05\x16\x07")
        write(folder, **{name.removesuffix("__gz"): files[name]})
    assert_is_counts(folder)


def test_a_square_matrix_has_cells_as_rows_where_its_tool_writes_it_so(tmp_path):
    square = np.array([[0, 1, 2], [3, 0, 0], [0, 4, 5]])
    lists = {"genes": lines(GENES[:3]), "cells": lines(CELLS)}
    tenx = write(
        tmp_path / "a", matrix__mtx=matrix_text(square), genes__tsv=lists["genes"], barcodes__tsv=lists["cells"]
    )
    assert open_source(tenx).read_counts(0, 3).toarray().tolist() == square.T.tolist()
    kb = write(tmp_path / "b", cells_x_genes__mtx=matrix_text(square), cells_x_genes__genes__txt=lists["genes"])
    write(kb, cells_x_genes__barcodes__txt=lists["cells"])
    assert open_source(kb).read_counts(0, 3).toarray().tolist() == square.tolist()


@pytest.mark.parametrize(("word", "message"), [("ENSG9", "genes.tsv has one line too many"), ("gene", None)])
def test_one_line_more_is_a_header_if_it_looks_like_one(tmp_path, word, message):
    folder = write(
        tmp_path / "in", matrix__mtx=matrix_text(), genes__tsv=lines([word, *GENES]), barcodes__tsv=lines(["x", *CELLS])
    )
    if message is None:
        assert_is_counts(folder)
    else:
        with pytest.raises(SourceError, match=message):
            open_source(folder)


@pytest.mark.parametrize(
    ("genes", "cells"), [(["gene_id", *GENES], ["bc_wells", *CELLS[:2]]), (["ID", *GENES[1:]], CELLS)]
)
def test_a_list_that_has_lost_a_line_does_not_get_its_header_for_a_name(tmp_path, genes, cells):
    folder = write(tmp_path / "in", matrix__mtx=matrix_text(), genes__tsv=lines(genes), barcodes__tsv=lines(cells))
    with pytest.raises(SourceError, match=r"lists \d features and .* cells: the files do not belong together, or one"):
        open_source(folder)


def test_the_first_gene_may_be_called_x_and_the_first_cell_0(tmp_path):
    genes, cells = ["X", *GENES[1:]], ["0", "1", "2"]
    folder = write(tmp_path / "in", matrix__mtx=matrix_text(), genes__tsv=lines(genes), barcodes__tsv=lines(cells))
    source = open_source(folder)
    assert (source.var.index.tolist(), source.read_obs(0, 3).index.tolist()) == (genes, cells)
    source.close()
