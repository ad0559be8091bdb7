import pytest
import torch
from scipy import stats

from atlasvi.kernels.counter_random import CHUNK, count_position, draw_normals, draw_words, philox, to_uniform

# the known answers that come with the reference implementation (Random123, kat_vectors): counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_it_is_philox_4x32_10(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]):
    words = philox(tuple(torch.tensor([word]) for word in counter), key[0] + (key[1] << 32))
    assert tuple(int(word) for word in words) == expected


def test_no_two_genes_of_a_cell_share_a_number():
    genes = torch.arange(3 * CHUNK + 17)
    position, word = count_position(genes)
    assert len(set(zip(position.tolist(), word.tolist()))) == len(genes)
    assert int(word.max()) == 3


def test_the_numbers_depend_on_each_of_seed_cell_draw_block_and_position():
    cell, position = torch.tensor([5]), torch.tensor([7])
    given = [(1, cell, 0, 0, position), (2, cell, 0, 0, position), (1 + 2**40, cell, 0, 0, position)]
    given += [(1, cell + 1, 0, 0, position), (1, cell + 2**40, 0, 0, position), (1, cell, 1, 0, position)]
    given += [(1, cell, 0, 3, position), (1, cell, 0, 0, position + 1)]
    drawn = {tuple(int(word) for word in draw_words(*arguments)) for arguments in given}
    assert len(drawn) == len(given)


def test_uniform_numbers_are_above_0_and_at_most_1_and_uniform():
    ends = torch.tensor([0, 2**32 - 1])
    low, high = to_uniform(ends, ends).tolist()
    assert (low, high) == (2.0**-65, 1.0)
    words = draw_words(3, torch.arange(100)[:, None], 0, 0, torch.arange(1000)[None, :])
    for first, second in ((0, 1), (2, 3)):
        uniform = to_uniform(words[first], words[second]).flatten()
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3


def test_normals_are_normal_and_each_cell_has_its_own_whatever_cells_are_beside_it():
    cells = torch.arange(2000) + 2**35
    drawn = draw_normals(9, cells, 4, 11)
    assert drawn.shape == (2000, 11)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(drawn.T) - torch.eye(11)
    assert correlation.abs().max() < 5 / 2000**0.5
    assert torch.equal(draw_normals(9, cells[[70, 3]], 4, 11), drawn[[70, 3]])
    assert torch.equal(draw_normals(9, cells[:5], 4, 6), drawn[:5, :6])
    for other in (
        draw_normals(8, cells, 4, 11),
        draw_normals(9, cells, 5, 11),
        draw_normals(9, cells, 4, 11, stream=1),
    ):
        assert abs(float(torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1])) < 5 / 22_000**0.5
