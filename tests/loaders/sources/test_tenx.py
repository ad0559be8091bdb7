"""10x output of all ages gives what scanpy reads from it, or says what is wrong."""

import gzip
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import scanpy as sc
import scipy.io
import scipy.sparse as sp

from atlasvi.loaders.errors import ColumnError, GeneError, SourceError
from atlasvi.loaders.sources import matrix_market
from atlasvi.loaders.sources.line_lists import Lines
from atlasvi.loaders.sources.open_source import open_source

MATRIX = sp.csr_matrix(np.array([[0, 3, 0, 1], [2, 0, 0, 0], [0, 0, 5, 700]]))  # cells x genes
HEADER = "%%MatrixMarket matrix coordinate integer general\n%comment\n4 3 5\n"
ENTRIES = "4 3 700\n1 2 2\n2 1 3\n3 3 5\n4 1 1\n"


def write_folder(
    folder: Path, matrix: str = HEADER + ENTRIES, prefix: str = "", gz: bool = False, **files: str
) -> Path:
    folder.mkdir(exist_ok=True)
    contents = {
        "matrix.mtx": matrix,
        "features.tsv": "".join(f"ENSG{i}\tname{i}\tGene Expression\n" for i in range(4)),
        "barcodes.tsv": "AAA-1\nCCC-1\nGGG-1\n",
    } | {name.replace("_", "."): content for name, content in files.items()}
    for name, content in contents.items():
        if gz:
            (folder / f"{prefix}{name}.gz").write_bytes(gzip.compress(content.encode()))
        else:
            (folder / f"{prefix}{name}").write_text(content)
    return folder


def assert_reads_like(source, adata, key: str = "gene_ids") -> None:
    assert (source.read_counts(0, source.n_cells) != adata.X).nnz == 0
    assert (source.read_counts(2, 9) != adata.X[2:9]).nnz == 0
    assert list(source.var.index) == list(adata.var[key])
    assert list(source.read_obs(0, source.n_cells).index) == list(adata.obs_names)
    assert list(source.read_obs(2, 9).index) == list(adata.obs_names[2:9])
    source.close()


@pytest.fixture
def readers(shared):
    return shared / "data" / "readers" / "scanpy"


def read_with_scanpy(read, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(path, **options)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("10x_1.2.0/filtered_gene_bc_matrices_h5.h5", "gene_ids"),
        ("10x_3.0.0/filtered_feature_bc_matrix.h5", "gene_ids"),
        ("raw_probe_bc_matrix.h5", "probe_ids"),
    ],
)
def test_h5_files_read_as_scanpy_reads_them(readers, name, key):
    assert_reads_like(open_source(readers / name), read_with_scanpy(sc.read_10x_h5, readers / name), key)


@pytest.mark.parametrize("genome", ["another_genome", "hg19_chr21"])
def test_of_several_genomes_one_is_read_by_name(readers, genome):
    path = readers / "10x_1.2.0/multiple_genomes.h5"
    assert_reads_like(open_source(path, layer=genome), read_with_scanpy(sc.read_10x_h5, path, genome=genome))


def test_several_genomes_without_a_choice_are_named(readers):
    with pytest.raises(SourceError, match=r"genomes another_genome, hg19_chr21, .* choose one with --layer GENOME"):
        open_source(readers / "10x_1.2.0/multiple_genomes.h5")


def test_a_genome_that_is_not_there_is_answered_with_those_that_are(readers):
    with pytest.raises(SourceError, match=r"no genome 'mm10' \(this file has: GRCh38_chr21\)"):
        open_source(readers / "10x_3.0.0/filtered_feature_bc_matrix.h5", layer="mm10")


@pytest.mark.parametrize(
    "name", ["10x_1.2.0/filtered_gene_bc_matrices/hg19_chr21", "10x_3.0.0/filtered_feature_bc_matrix"]
)
def test_folders_read_as_scanpy_reads_them(readers, tmp_path, name):
    adata = read_with_scanpy(sc.read_10x_mtx, readers / name)
    assert_reads_like(open_source(readers / name, scratch=tmp_path), adata)
    matrix = next((readers / name).glob("matrix.mtx*"))
    assert_reads_like(open_source(matrix, scratch=tmp_path), adata)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_genome_folders_points_to_them(readers):
    with pytest.raises(SourceError, match=r"pass what lies in it: .*hg19_chr21"):
        open_source(readers / "10x_1.2.0/filtered_gene_bc_matrices")


def test_probe_and_gene_symbol_columns_can_name_genes_where_they_do_not_repeat(readers):
    source = open_source(readers / "10x_3.0.0/filtered_feature_bc_matrix.h5", gene_column="gene_symbols")
    assert source.var.index[0] == "CH507-9B2.2"
    assert source.var["gene_ids"].iloc[0] == "ENSG00000279493"
    with pytest.raises(GeneError, match=r"11 gene names occur more than once .* probe_ids\)"):
        open_source(readers / "raw_probe_bc_matrix.h5", gene_column="gene_ids")
    with pytest.raises(ColumnError, match=r"no column 'symbol' .*there are: feature_types, genome, gene_symbols"):
        open_source(readers / "10x_3.0.0/filtered_feature_bc_matrix.h5", gene_column="symbol")


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("prefix", ["", "GSM1_sample_"])
@pytest.mark.parametrize("piece", [1, 20, 2**20])
def test_entries_in_any_order_and_pieces_of_any_size_give_the_rows(tmp_path, monkeypatch, gz, prefix, piece):
    monkeypatch.setattr(matrix_market, "PIECE_BYTES", piece)
    source = open_source(write_folder(tmp_path / "in", gz=gz, prefix=prefix))
    assert (source.n_cells, source.nnz) == (3, 5)
    assert source.read_counts(0, 3).toarray().tolist() == MATRIX.toarray().tolist()
    assert source.read_counts(1, 2).toarray().tolist() == MATRIX.toarray()[1:2].tolist()
    assert list(source.read_obs(1, 3).index) == ["CCC-1", "GGG-1"]
    assert list(source.var.columns) == ["gene_symbols", "feature_types"]


def test_real_values_spaces_tabs_and_windows_line_ends_are_understood(tmp_path):
    text = HEADER.replace("integer", "real") + ENTRIES.replace(" ", "\t").replace("\t2\n", "  2.5e0 \n")
    folder = write_folder(tmp_path / "in", text.replace("\n", "\r\n") + "\r\n", barcodes_tsv="A\r\nC\r\nG\r\n\r\n")
    source = open_source(folder)
    assert source.read_counts(1, 2).toarray().tolist() == [[2.5, 0, 0, 0]]
    assert list(source.read_obs(0, 3).index) == ["A", "C", "G"]


def test_what_scipy_writes_is_read(tmp_path):
    folder = write_folder(tmp_path / "in")
    scipy.io.mmwrite(folder / "matrix.mtx", MATRIX.T.tocoo())
    assert (open_source(folder).read_counts(0, 3) != MATRIX).nnz == 0


def test_antibodies_are_left_out(tmp_path):
    features = "".join(
        f"ID{i}\tname{i}\t{kind}\n" for i, kind in enumerate(["Gene Expression", "Antibody Capture"] * 2)
    )
    source = open_source(write_folder(tmp_path / "in", features_tsv=features))
    assert list(source.var.index) == ["ID0", "ID2"]
    assert source.read_counts(0, 3).toarray().tolist() == MATRIX.toarray()[:, [0, 2]].tolist()


def test_a_file_without_genes_names_the_types_it_has(tmp_path):
    features = "".join(f"ID{i}\tname{i}\tPeaks\n" for i in range(4))
    with pytest.raises(SourceError, match=r"no feature is of type 'Gene Expression' \(types there: Peaks\)"):
        open_source(write_folder(tmp_path / "in", features_tsv=features))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%%MatrixMarket matrix coordinate pattern general\n4 3 1\n1 1\n", "kind 'coordinate pattern general'"),
        ("%%MatrixMarket matrix array real general\n4 3\n1\n", "kind 'array real general'"),
        ("4 3 5\n" + ENTRIES, "not a Matrix Market header"),
        ("%%MatrixMarket matrix coordinate integer general\n%", "the line with rows, columns and entries is missing"),
        (HEADER.replace("4 3", "5 3") + ENTRIES, r"the matrix is 5 x 3, but features.tsv lists 4 features .* 3 cells"),
    ],
)
def test_a_header_that_can_not_be_is_refused_at_opening(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        open_source(write_folder(tmp_path / "in", text))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (ENTRIES[:-6], "4 entries where its header says 5: it is cut short"),
        (ENTRIES + "1 1 1\n", "6 entries where its header says 5: it is damaged"),
        (ENTRIES.replace("4 3 700", "5 3 700"), "entries outside the 4 x 3"),
        (ENTRIES.replace("4 3 700", "0 3 700"), "entries outside the 4 x 3"),
        (ENTRIES.replace("700", "7OO"), "not 'row column count'"),
        (ENTRIES.replace("700", "7.5"), "not 'row column count'"),
        (ENTRIES.replace("700", ""), "not 'row column count'"),
        (ENTRIES.replace("\n", " 1\n"), "entries have 4 fields"),
    ],
)
def test_entries_that_can_not_be_are_refused_when_they_are_read(tmp_path, entries, message):
    source = open_source(write_folder(tmp_path / "in", HEADER + entries), scratch=tmp_path)
    with pytest.raises(SourceError, match=message):
        source.read_counts(0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_gzip_cut_short_is_refused(tmp_path):
    folder = write_folder(tmp_path / "in", gz=True)
    content = (folder / "matrix.mtx.gz").read_bytes()
    (folder / "matrix.mtx.gz").write_bytes(content[:-12])
    with pytest.raises(SourceError, match="damaged or cut short"):
        open_source(folder).read_counts(0, 1)


def test_a_missing_part_is_named(tmp_path):
    folder = write_folder(tmp_path / "in")
    (folder / "barcodes.tsv").unlink()
    with pytest.raises(SourceError, match=r"barcodes.tsv \(or .gz\) is not beside matrix.mtx"):
        open_source(folder)


def test_several_matrices_in_a_folder_are_named(tmp_path):
    folder = write_folder(tmp_path / "in", prefix="a_")
    write_folder(folder, prefix="b_")
    with pytest.raises(SourceError, match=r"several matrices; pass one of: .*a_matrix.mtx, .*b_matrix.mtx"):
        open_source(folder)
    assert open_source(folder / "b_matrix.mtx").n_cells == 3


def test_a_layer_of_a_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match="leave --layer out"):
        open_source(write_folder(tmp_path / "in"), layer="counts")


def test_an_h5_whose_lists_do_not_fit_its_shape_is_refused(readers, tmp_path):
    shutil.copyfile(readers / "10x_3.0.0/filtered_feature_bc_matrix.h5", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["matrix/shape"][:] = [507, 1100]
    with pytest.raises(SourceError, match=r"507 features x 1100 barcodes, but it lists 507 and 1107"):
        open_source(tmp_path / "a.h5")


def test_lines_are_read_in_any_order(tmp_path):
    names = [f"cell{i}" for i in range(50)]
    (tmp_path / "names").write_bytes(gzip.compress(("\n".join(names) + "\n\n").encode()))
    lines = Lines(tmp_path / "names")
    assert len(lines) == 50
    for start, stop in [(0, 50), (10, 20), (20, 21), (5, 5), (49, 50), (0, 1)]:
        assert lines.read(start, stop) == names[start:stop]
    lines.close()
