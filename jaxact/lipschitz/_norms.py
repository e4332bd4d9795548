"""Upper bounds on the spectral norm of layers."""

import numpy as np


def dense_norm(matrix) -> float:
    """An upper bound on ||A||_2 for a matrix [out, in]."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.size == 0:
        return 0.0
    return float(np.linalg.norm(matrix, 2) * (1 + 1e-13 * max(matrix.shape)))
