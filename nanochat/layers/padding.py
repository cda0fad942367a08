"""Right padding: sequences of different lengths as one rectangular tensor.

Letters in shape comments: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pad_right(
    rows: Sequence[Sequence[int] | np.ndarray | Tensor],
    fill: int,
    width: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return the rows as one int64 tensor (B, T), each filled on the right with `fill`.

    T is `width`, by default the length of the longest row. In a causal model no token sees later positions, so
    padding on the right does not change the results of the tokens before it.

    >>> pad_right([[5, 6, 7], [8]], fill=-1).tolist()
    [[5, 6, 7], [8, -1, -1]]
    """
    if width is None:
        width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), fill, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return padded.to(device=device)


def pad_rows(rows: Tensor, num_rows: int, fill: int) -> Tensor:
    """Append rows that consist of `fill`: (B, T) -> (num_rows, T).

    Batches of one shape keep a compiled model from being compiled again for the last, smaller batch.

    >>> pad_rows(torch.tensor([[1, 2]]), num_rows=3, fill=-1).tolist()
    [[1, 2], [-1, -1], [-1, -1]]
    """
    return torch.cat([rows, rows.new_full((num_rows - len(rows), rows.size(1)), fill)])
