"""The best copy of a matrix by two thin ones: the truncated singular value decomposition."""

import numpy as np

OVERSAMPLED = 16  # directions more than wanted, so that the wanted ones come out well
ITERATIONS = 2  # of the subspace; training mends what they leave


def truncated_svd(matrix: np.ndarray, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The best rank-R copy of a matrix, nearly: matrix ≈ up down, the rows of down orthonormal.

    Subspace iteration: random directions are multiplied by MᵀM and made orthonormal again, a few
    times; they turn towards the leading right singular vectors. (Finding structure with
    randomness, arXiv 0909.4061, algorithm 4.4.) For 16384 × 4096 seconds, not minutes.

    matrix : (F, D);  rank : R ≤ min(F, D)
    returns: down (R, D), up (F, R), float32

    >>> matrix = np.outer(np.arange(6), np.arange(4)).astype(np.float32)  # of rank one
    >>> down, up = truncated_svd(matrix, rank=1)
    >>> down.shape, up.shape, bool(np.allclose(up @ down, matrix, atol=1e-4))
    ((1, 4), (6, 1), True)
    """
    F, D = matrix.shape
    width = min(rank + OVERSAMPLED, F, D)
    directions = np.random.default_rng(seed).standard_normal((D, width), dtype=np.float32)
    for _ in range(ITERATIONS):
        directions, _ = np.linalg.qr(matrix.T @ (matrix @ directions))
    images = matrix @ directions  # (F, width)
    _, rotation = np.linalg.eigh(images.T @ images)  # ascending
    leading = rotation[:, ::-1][:, :rank]
    return np.ascontiguousarray((directions @ leading).T), images @ leading
