"""The exact Lipschitz constant of a piecewise-linear network on the plane, by cutting the plane into its pieces."""

import numpy as np


def exact_lipschitz(matrices, offsets, slopes, *, size=1e3):
    """The largest ||J||_2 over the linear pieces of x -> W_L phi(... phi(W_1 x + b_1) ...) within a square.

    Each piece is a convex polygon on which the layers so far are one affine map. A layer clips it by the line of each
    neuron in turn. Exact up to rounding for pieces that meet the square; the value is attained there, hence a lower
    bound on the constant in any case.

    Args:
        matrices: W_l [out, in], the first with in = 2.
        offsets: b_l [out] for all but the last.
        slopes: (slope for z < 0, slope for z > 0) of phi, which has its only kink at 0.
        size: half the side of the square.
    """
    return max(np.linalg.norm(J, 2) for J in jacobians(matrices, offsets, slopes, size=size))


def jacobians(matrices, offsets, slopes, *, size=1e3):
    """The Jacobians [out, 2] of all pieces that meet the square; the arguments are those of `exact_lipschitz`."""
    return [J for _, J, _ in pieces(matrices, offsets, slopes, size=size)]


def pieces(matrices, offsets, slopes, *, size=1e3):
    """(polygon [corner, 2], J [out, 2], c [out]) of all pieces: the network is J x + c within; arguments as above."""
    square = np.array([[-size, -size], [size, -size], [size, size], [-size, size]])
    found = [(square, np.eye(2), np.zeros(2))]
    for W, b in zip(matrices[:-1], offsets, strict=True):
        following = []
        for polygon, A, c in found:
            normals, shifts = W @ A, W @ c + b
            for part, signs in _cut(polygon, normals, shifts):
                slope = np.where(signs > 0, slopes[1], slopes[0])
                following.append((part, slope[:, None] * normals, slope * shifts))
        found = following
    return [(polygon, matrices[-1] @ A, matrices[-1] @ c) for polygon, A, c in found]


def _cut(polygon, normals, shifts):
    parts = [(polygon, [])]
    for normal, shift in zip(normals, shifts, strict=True):
        following = []
        for part, signs in parts:
            height = part @ normal + shift
            if (height <= 0).all() or (height >= 0).all():
                following.append((part, [*signs, 1 if height.max() > 0 else -1]))
                continue
            for sign in (-1, 1):
                side = _clip(part, sign * height)
                if len(side) >= 3:
                    following.append((side, [*signs, sign]))
        parts = following
    return [(part, np.array(signs)) for part, signs in parts]


def _clip(polygon, height):
    """The part of a convex polygon where the height, given at its corners, is positive."""
    corners = []
    for here, there, low, high in zip(
        polygon, np.roll(polygon, -1, 0), height, np.roll(height, -1), strict=True
    ):
        if low >= 0:
            corners.append(here)
        if low * high < 0:
            corners.append(here + low / (low - high) * (there - here))
    return np.array(corners)
