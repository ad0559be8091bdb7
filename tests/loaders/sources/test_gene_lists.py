"""Lists of genes and cells as tools, R and spreadsheets write them."""

from dataclasses import replace
from pathlib import Path

import pytest

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.sources.gene_lists import CellList, open_list, read_genes
from atlasvi.loaders.sources.line_lists import Lines


def genes_of(path: Path, content: bytes, header: bool = False):
    path.write_bytes(content)
    return read_genes(replace(open_list(path, Lines(path)), has_header=header))


def test_quotes_around_fields_are_taken_off(tmp_path):
    var = genes_of(tmp_path / "genes.tsv", b'"G1"\t"A"\n"G2"\t"B ""b"""\nG3\tC 5"\n')
    assert var.index.tolist() == ["G1", "G2", "G3"]
    assert var["gene_symbols"].tolist() == ["A", 'B "b"', 'C 5"']


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_taken_off(tmp_path, encoding):
    assert genes_of(tmp_path / "genes.tsv", "G1\tA\nG2\tB\nG3\tC\n".encode(encoding)).index.tolist() == [
        "G1",
        "G2",
        "G3",
    ]
    (tmp_path / "barcodes.tsv").write_bytes("c1\nc2\n".encode(encoding))
    lines = Lines(tmp_path / "barcodes.tsv")
    assert CellList(open_list(tmp_path / "barcodes.tsv", lines), lines).read_obs(0, 2).index.tolist() == [
        "c1",
        "c2",
    ]


def test_a_feature_without_its_type_is_named_by_its_line(tmp_path):
    content = b"G1\tA\tGene Expression\nAB\tB\tAntibody Capture\nGFP\tGFP\n"
    with pytest.raises(SourceError, match=r"features.tsv: line 3 \(GFP\) does not say the type .*as field 3"):
        genes_of(tmp_path / "features.tsv", content)


def test_a_chromosome_in_the_third_of_seven_columns_is_no_type(tmp_path):
    rows = [f"G{k}\tN{k}\tchr{k}\t1\t2\t+\tprotein_coding\n" for k in range(3)]
    var = genes_of(tmp_path / "genes.tsv", "".join(rows).encode())
    assert "feature_types" not in var
    assert var["column_3"].tolist() == ["chr0", "chr1", "chr2"]


def test_the_type_is_found_by_its_values_wherever_it_is(tmp_path):
    rows = ["G1\tA\tGene Expression\tchr1\t1\t2\n", "P\tP\tPeaks\tchr1\t1\t2\n", "G2\tB\tGene Expression\t\t\t\n"]
    var = genes_of(tmp_path / "features.tsv", "".join(rows).encode())
    assert var["feature_types"].tolist() == ["Gene Expression", "Peaks", "Gene Expression"]


def test_a_row_without_a_symbol_leaves_the_types_of_others(tmp_path):
    var = genes_of(tmp_path / "genes.tsv", b"G1\tA\nG2\nG3\tC\n")
    assert var["gene_symbols"].tolist() == ["A", None, "C"]


def test_a_header_names_the_further_columns(tmp_path):
    var = genes_of(tmp_path / "genes.tsv", b"ID\tSymbol\tCHR\nG1\tA\t1\nG2\tB\t2\nG3\tC\tX\n", header=True)
    assert var.index.tolist() == ["G1", "G2", "G3"]
    assert var["CHR"].tolist() == ["1", "2", "X"]
