from __future__ import annotations

import pytest
import torch

from fastdistill_kernels import normalized_mse


def test_by_hand() -> None:
    """Equal, orthogonal and opposite directions of any length: squared distances 0, 2 and 4."""
    h_s = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    h_t = torch.tensor([[5.0, 0.0], [0.0, 7.0], [-9.0, 0.0]])
    torch.testing.assert_close(normalized_mse(h_s, h_t), torch.tensor((0.0 + 2.0 + 4.0) / 3))


def test_rows_are_all_but_the_last_dimension() -> None:
    h_s, h_t = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(normalized_mse(h_s, h_t), normalized_mse(h_s.view(12, 5), h_t.view(12, 5)))


def test_a_row_of_zeros_is_no_direction() -> None:
    h_s = torch.zeros(1, 4, requires_grad=True)
    loss = normalized_mse(h_s, torch.ones(1, 4))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(1.0))
    assert h_s.grad.isfinite().all()


def test_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\).*project the student"):
        normalized_mse(torch.zeros(2, 3), torch.zeros(2, 4))
