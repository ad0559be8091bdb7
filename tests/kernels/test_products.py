"""Matrix products around the sweep."""

import pytest
import torch

from atlasvi.kernels.products import multiply_into, without_tf32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("add", [False, True])
def test_a_product_replaces_what_was_there_or_is_added_to_it(dtype: torch.dtype, add: bool):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((5, 7), (7, 3)))
    to = torch.full((5, 3), 2.0)
    multiply_into(to, a, b, add)
    expected = a.double() @ b.double() + 2 * add
    assert to.dtype == torch.float32
    torch.testing.assert_close(to.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_torch_was_told_about_products_is_left_as_it_was():
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "tf32"
        with pytest.raises(KeyError), without_tf32():
            assert settings.fp32_precision == "ieee"
            raise KeyError
        assert settings.fp32_precision == "tf32"
    finally:
        settings.fp32_precision = before
