"""The engine against closed forms, samples, Jacobians and the limits of floating point."""

import importlib
import math
from fractions import Fraction
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.lipschitz._program import Ball, Box
from jaxact.lipschitz.ellipsoid import bound
from jaxact.trace import Affine, Dense, Diagonal, Elementwise, Identity, Linear, Program, evaluate


def relu_slopes(source):
    def slopes(intervals):
        lower, upper = intervals[source]
        return np.where(lower > 0, 1.0, 0.0), np.where(upper < 0, 0.0, 1.0)

    return slopes


def tanh_slopes(source):
    def slopes(intervals):
        lower, upper = intervals[source]
        far = np.maximum(np.abs(lower), np.abs(upper))
        near = np.where((lower < 0) & (upper > 0), 0, np.minimum(np.abs(lower), np.abs(upper)))
        return (1 - np.tanh(far) ** 2) * (1 - 1e-15), np.minimum((1 - np.tanh(near) ** 2) * (1 + 1e-15), 1.0)

    return slopes


FUNCTIONS = {
    "relu": (relu_slopes, lambda x: np.maximum(x, 0)),
    "tanh": (tanh_slopes, np.tanh),
}


def elementwise(out, source, size, name):
    slopes, value = FUNCTIONS[name]
    return Elementwise(out, source, slopes(source), size, value=lambda v: value(v[source]), kind=name)


def chain(widths, name="relu", seed=0):
    rng = np.random.default_rng(seed)
    steps, v = [], 0
    for i, (n, k) in enumerate(pairwise(widths)):
        W = rng.normal(size=(k, n)) * np.sqrt(2 / n)
        steps.append(Affine(v + 1, ((v, Dense(W)),), k, offset=0.1 * rng.normal(size=k), kind=f"W{i}"))
        v += 1
        if i < len(widths) - 2:
            steps.append(elementwise(v + 1, v, k, name))
            v += 1
    return Program(widths[0], tuple(steps), v)


def residual(blocks, width, name="relu", seed=0):
    """h + W f(h), block by block."""
    rng = np.random.default_rng(seed)
    steps, h = [], 0
    for i in range(blocks):
        W = rng.normal(size=(width, width)) * np.sqrt(2 / (width * blocks))
        steps.append(elementwise(2 * i + 1, h, width, name))
        steps.append(Affine(2 * i + 2, ((h, Identity(width)), (2 * i + 1, Dense(W))), width))
        h = 2 * i + 2
    return Program(width, tuple(steps), h)


def jacobian(program, x, step=1e-6):
    columns = [
        (evaluate(program, x + step * e) - evaluate(program, x - step * e)) / (2 * step)
        for e in np.eye(x.size)
    ]
    return np.stack(columns, 1)


def stretches(program, draw, pairs=300, seed=0):
    rng = np.random.default_rng(seed)
    largest = 0.0
    for _ in range(pairs):
        x, y = draw(rng)
        largest = max(
            largest,
            np.linalg.norm(evaluate(program, x) - evaluate(program, y)) / np.linalg.norm(x - y),
        )
    return largest


def test_affine_programs_give_the_norm_of_their_matrix():
    rng = np.random.default_rng(0)
    A, B, d = rng.normal(size=(4, 3)), rng.normal(size=(4, 4)), rng.normal(size=4)
    steps = (
        Affine(1, ((0, Dense(A)),), 4),
        Affine(2, ((1, Diagonal(d)),), 4),
        Affine(3, ((1, Identity(4)), (2, Dense(B)), (0, Dense(A))), 4),
    )
    expected = np.linalg.norm(A + B @ np.diag(d) @ A + A, 2)
    value = bound(Program(3, steps, 3)).value
    assert expected <= value <= expected * (1 + 1e-9)


def test_a_map_known_by_its_products_is_its_matrix():
    rng = np.random.default_rng(1)
    A = rng.normal(size=(4, 3))
    given = Linear(lambda v: jnp.asarray(A) @ v, lambda u: jnp.asarray(A).T @ u, (4, 3), np.linalg.norm(A))
    steps = (Affine(1, ((0, given),), 4), elementwise(2, 1, 4, "relu"))
    dense = (Affine(1, ((0, Dense(A)),), 4), elementwise(2, 1, 4, "relu"))
    np.testing.assert_allclose(
        bound(Program(3, steps, 2)).value, bound(Program(3, dense, 2)).value, rtol=1e-12
    )


def test_closed_form_of_a_residual_net_is_below_the_product_and_refinement_below_it():
    program = residual(6, 8)
    norms = [np.linalg.norm(step.terms[1][1].matrix, 2) for step in program.steps[1::2]]
    closed = bound(program)
    assert closed.value < np.prod(1 + np.array(norms))
    refined = bound(program, num_steps=60)
    assert refined.value < 0.95 * closed.value
    assert (
        stretches(program, lambda rng: rng.normal(size=(2, 8)) * rng.choice([0.01, 1, 100])) < refined.value
    )


def test_refinement_of_a_residual_net_reaches_the_semidefinite_program():
    cp = pytest.importorskip("cvxpy")
    blocks, n = 2, 8
    program = residual(blocks, n, seed=2)
    matrices = [step.terms[1][1].matrix for step in program.steps[1::2]]
    eye = np.eye(n * (blocks + 1))
    E = [eye[n * i : n * (i + 1)] for i in range(blocks + 1)]
    rho, T = cp.Variable(), [cp.Variable(n, nonneg=True) for _ in range(blocks)]
    h, M = E[0], rho * E[0].T @ E[0]
    for i, W in enumerate(matrices):
        cross = h.T @ cp.diag(T[i]) @ E[i + 1]
        M = M - (cross + cross.T) + 2 * E[i + 1].T @ cp.diag(T[i]) @ E[i + 1]
        h = h + W @ E[i + 1]
    M = M - h.T @ h
    cp.Problem(cp.Minimize(rho), [(M + M.T) / 2 >> 0]).solve(solver="CLARABEL")
    least = math.sqrt(float(rho.value))
    refined = bound(program, num_steps=150).value
    assert least * (1 - 1e-6) <= refined <= least * 1.01


def test_local_bounds_tend_to_the_jacobian_and_hold_for_samples():
    x = np.array([0.3, -0.2, 0.5, 0.1])
    for name, radius in (("relu", 1e-6), ("tanh", 1e-6)):
        program = chain((4, 8, 8, 3), name, seed=3)
        expected = np.linalg.norm(jacobian(program, x, 1e-7), 2)
        value = bound(program, region=Ball(x, radius)).value
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    for program in (
        chain((4, 8, 8, 3), "tanh", 4),
        residual(3, 4, "tanh", 4),
        chain((4, 8, 8, 3), "relu", 4),
    ):
        everywhere = bound(program).value
        last = 0.0
        for radius in (0.01, 0.3, 3.0, 1e6):
            found = bound(program, region=Ball(x, radius))

            def draw(rng, radius=radius):
                u = rng.normal(size=(2, 4))
                return (
                    x
                    + radius * u / np.linalg.norm(u, axis=1, keepdims=True) * rng.uniform(size=(2, 1)) ** 0.25
                )

            assert stretches(program, draw, 100) <= found.value <= everywhere * (1 + 1e-9)
            assert found.value >= last * (1 - 1e-9) or found.value == pytest.approx(last, rel=0.05)
            last = found.value


def test_refining_a_local_bound_lowers_it_and_it_still_holds():
    program, x = chain((4, 8, 8, 3), "tanh", 4), np.array([0.3, -0.2, 0.5, 0.1])
    closed = bound(program, region=Ball(x, 0.2))
    refined = bound(program, region=Ball(x, 0.2), num_steps=60)
    largest = 0.0
    rng = np.random.default_rng(0)
    for _ in range(50):
        u = rng.normal(size=4)
        largest = max(largest, np.linalg.norm(jacobian(program, x + 0.2 * u / np.linalg.norm(u)), 2))
    assert largest * (1 - 1e-6) <= refined.value < closed.value


def test_boxes_hold_for_their_corners_and_a_long_one_beats_its_ball():
    program, x = chain((4, 8, 8, 3), "tanh", 5), np.array([0.3, -0.2, 0.5, 0.1])
    half = np.array([1.0, 1e-3, 1e-3, 1e-3])
    box = bound(program, region=Box(x - half, x + half)).value
    corners = stretches(program, lambda rng: x + half * rng.uniform(-1, 1, size=(2, 4)))
    assert corners <= box <= bound(program, region=Ball(x, np.linalg.norm(half))).value * (1 + 1e-9)
    point = bound(program, region=Box(x, x)).value
    np.testing.assert_allclose(point, np.linalg.norm(jacobian(program, x), 2), rtol=1e-6)


def random_graph(seed, n=4):
    """Steps that read any earlier variables: skips, branches that meet or end, repeated and diagonal terms."""
    rng = np.random.default_rng(seed)
    steps = []
    for v in range(1, rng.integers(4, 9)):
        if rng.uniform() < 0.5:
            operators = [Identity(n), Diagonal(rng.normal(size=n)), Dense(rng.normal(size=(n, n)) / 2)]
            terms = tuple(
                (int(s), operators[rng.integers(3)]) for s in rng.integers(0, v, rng.integers(1, 4))
            )
            steps.append(Affine(v, terms, n, offset=0.3 * rng.normal(size=n)))
        else:
            steps.append(elementwise(v, int(rng.integers(max(0, v - 3), v)), n, rng.choice(["relu", "tanh"])))
    return Program(n, tuple(steps), len(steps))


def test_no_sampled_jacobian_of_a_random_graph_exceeds_its_bounds():
    for seed in range(20):
        program = random_graph(seed)
        rng = np.random.default_rng(seed)
        x, half = rng.normal(size=4), np.array([0.2, 0.2, 0.2, 0.01])
        for memory_limit in (6, 9, 100):
            found = {
                region: bound(program, region=region, memory_limit=memory_limit).value
                for region in (None, Ball(x, 0.3), Box(x - half, x + half))
            }
            for region, value in found.items():
                for _ in range(8):
                    if region is None:
                        y = rng.normal(size=4) * rng.choice([0.1, 1, 5])
                    elif isinstance(region, Ball):
                        u = rng.normal(size=4)
                        y = x + 0.299 * u / np.linalg.norm(u)
                    else:
                        y = x + half * rng.choice([-0.999, 0, 0.999], size=4)
                    # Finite differences err by about 1e-7.
                    assert np.linalg.norm(jacobian(program, y, 1e-7), 2) <= value * (1 + 1e-6) + 1e-6, (
                        seed,
                        region,
                    )


def product_program():
    """x0 * x1, as two steps whose slopes lie in the other factor's interval."""
    first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    steps = (
        Affine(1, ((0, Dense(first)),), 1),
        Affine(2, ((0, Dense(second)),), 1),
        Elementwise(
            3,
            1,
            lambda i: i[2],
            1,
            value=lambda v: v[1] * v[2],
            range=lambda i: (
                np.min([a * b for a in i[1] for b in i[2]], 0),
                np.max([a * b for a in i[1] for b in i[2]], 0),
            ),
            is_function=False,
            reads=(2,),
            kind="mul",
        ),
        Elementwise(
            4,
            2,
            lambda i: i[1],
            1,
            value=lambda v: 0 * v[2],
            range=lambda i: (np.zeros(1), np.zeros(1)),
            is_function=False,
            reads=(1,),
        ),
        Affine(5, ((3, Identity(1)), (4, Identity(1))), 1),
    )
    return Program(2, steps, 5)


def test_a_product_is_bounded_in_a_region_only():
    program = product_program()
    with pytest.raises(ValueError, match=r"Step mul must have bounded slopes.*region="):
        bound(program)
    found = bound(program, region=Box([1.0, 2.0], [1.5, 2.5]), num_steps=50).value
    exact = math.hypot(1.5, 2.5)
    assert exact <= found <= 1.1 * exact
    np.testing.assert_allclose(bound(program, region=Ball([1.0, 2.0], 0.0)).value, math.sqrt(5), rtol=1e-6)


def test_norms_take_over_where_memory_ends():
    program = residual(4, 8)
    norms = [np.linalg.norm(step.terms[1][1].matrix, 2) for step in program.steps[1::2]]
    found = bound(program, memory_limit=7)
    np.testing.assert_allclose(found.value, np.prod(1 + np.array(norms)), rtol=1e-9)
    assert "norms" in found.method
    # A wide stem by norms, a narrow rest by the ellipsoid.
    program = chain((4, 24, 4, 4, 4), seed=6)
    mixed = bound(program, memory_limit=16)
    product = np.prod([step.norm() for s in program.steps if isinstance(s, Affine) for _, step in s.terms])
    assert bound(program).value <= mixed.value <= product * (1 + 1e-9)
    assert bound(program, memory_limit=16, num_steps=20).value < mixed.value


def test_depth_does_not_overflow():
    program = chain((6,) * 300)
    wide = Program(
        program.input_size,
        tuple(
            Affine(s.out, ((s.terms[0][0], Dense(1e3 * s.terms[0][1].matrix)),), s.size)
            if isinstance(s, Affine)
            else s
            for s in program.steps
        ),
        program.output,
    )
    base, scaled = bound(program), bound(wide)
    assert scaled.value == math.inf
    np.testing.assert_allclose(scaled.log10 - base.log10, 3 * 299, rtol=1e-9)
    np.testing.assert_allclose(
        sum(f for _, f in base.factors), base.log10 * math.log(10), rtol=1e-9, atol=1e-9
    )


def test_every_search_stops_as_told():
    program = chain((4, 8, 8, 3))
    assert len(bound(program, num_steps=5).history) == 6
    assert len(bound(program, num_steps=500, seconds=0.0).history) == 1
    assert len(bound(program, num_steps=500, tolerance=1.0).history) <= 30


def test_bad_input_is_refused_with_a_remedy():
    program = chain((4, 8, 3))
    with pytest.raises(ValueError, match="`region` must have the input's 4 entries, got 3"):
        bound(program, region=Ball(np.zeros(3), 1.0))
    with pytest.raises(ValueError, match="`radius` must be finite and >= 0, got -1"):
        Ball(np.zeros(4), -1)
    with pytest.raises(ValueError, match="lower <= upper"):
        Box(np.ones(4), np.zeros(4))
    with pytest.raises(ValueError, match="Step W0 must have finite weights"):
        bound(Program(1, (Affine(1, ((0, Dense(np.array([[np.nan]]))),), 1, kind="W0"),), 1))
    with pytest.raises(ValueError, match=r"Operators are \[out, in\]"):
        Program(4, (Affine(1, ((0, Dense(np.zeros((4, 3)))),), 3),), 1)
    with pytest.raises(ValueError, match="before any step defines it"):
        Program(4, (Affine(2, ((1, Identity(4)),), 4),), 2)
    unbounded = Elementwise(1, 0, lambda i: (0.0, np.inf), 4, kind="square")
    with pytest.raises(ValueError, match="Step square must have bounded slopes"):
        bound(Program(4, (unbounded,), 1))


def test_results_do_not_depend_on_the_default_precision():
    program = chain((4, 8, 8, 3))
    low = bound(program, num_steps=5).value
    with jax.enable_x64(True):
        assert bound(program, num_steps=5).value == low


def test_norms_alone_are_sound_on_residual_blocks_and_say_so():
    program = residual(5, 6, name="tanh")
    found = bound(program, memory_limit=5)
    matrices = [step.terms[1][1].matrix for step in program.steps[1::2]]
    jacobians = [np.eye(6)]
    for x in np.random.default_rng(1).normal(size=(200, 6)):
        total = np.eye(6)
        for W in matrices:
            total, x = (np.eye(6) + W * (1 - np.tanh(x) ** 2)) @ total, x + W @ np.tanh(x)
        jacobians.append(total)
    steepest = np.linalg.norm(jacobians, 2, axis=(1, 2)).max()
    assert steepest <= bound(program).value <= found.value
    np.testing.assert_allclose(found.value, np.prod([1 + np.linalg.norm(W, 2) for W in matrices]), rtol=1e-9)
    assert "by norms where more than 5 entries are in use" in found.method
    assert any("norms of operators" in assumption for assumption in found.assumptions)


def test_intervals_through_products_alone_keep_float64(monkeypatch):
    monkeypatch.setattr("jaxact.lipschitz.ellipsoid.maps._MATERIALIZE", 0)
    rng = np.random.default_rng(4)
    weights = [rng.normal(size=(4, 4)) for _ in range(2)]
    center = 1e3 * rng.normal(size=4)
    offset = -weights[0] @ center + 1e-3 * rng.normal(size=4)  # cancels: float32 would lose what is left

    def program(wrap):
        first = Affine(1, ((0, wrap(weights[0])),), 4, offset=offset)
        return Program(4, (first, elementwise(2, 1, 4, "tanh"), Affine(3, ((2, wrap(weights[1])),), 4)), 3)

    def by_products(W):
        return Linear(
            lambda v: jnp.asarray(W) @ v,
            lambda u: u @ W,
            W.shape,
            np.inf,
            lambda v: jnp.asarray(np.abs(W)) @ v,
        )

    region = Ball(center, 0.2)
    expected = bound(program(Dense), region=region).value
    np.testing.assert_allclose(bound(program(by_products), region=region).value, expected, rtol=1e-9)
    searched = [bound(program(wrap), region=region, num_steps=5).value for wrap in (Dense, by_products)]
    np.testing.assert_allclose(*searched, rtol=1e-9)


def test_the_search_descends_along_its_gradient():
    from jaxact.lipschitz.ellipsoid.layout import prepare
    from jaxact.lipschitz.ellipsoid.proof import prove
    from jaxact.lipschitz.ellipsoid.search import Search

    rng = np.random.default_rng(7)
    # What a step reads stays in use beside what it makes; and norms alone in between.
    steps = (
        elementwise(1, 0, 4, "tanh"),
        Affine(2, ((0, Identity(4)), (1, Dense(rng.normal(size=(4, 4))))), 4),
        elementwise(3, 2, 4, "relu"),
        Affine(4, ((2, Diagonal(rng.normal(size=4))), (3, Dense(rng.normal(size=(4, 4))))), 4),
        elementwise(5, 4, 4, "tanh"),
        Affine(6, ((5, Dense(rng.normal(size=(9, 4)))),), 9),
        elementwise(7, 6, 9, "relu"),
        Affine(8, ((7, Dense(rng.normal(size=(3, 9)))),), 3),
    )
    for limit, first_to_last in ((100, 8), (9, 8), (9, 5)):
        program = Program(4, steps[:first_to_last], first_to_last)
        prepared = prepare(program, limit)
        search = Search(prepared, None, prove(prepared, None).multipliers)
        start = search.parameters
        search.forward(start, 2.0)
        point = start + 0.1 * rng.normal(size=start.size)
        gradient = search.backward(search.forward(point, 1e5)[1])
        for along in rng.normal(size=(3, start.size)):
            ends = [search.forward(point + step * along, 1e5)[0] for step in (1e-5, -1e-5)]
            np.testing.assert_allclose(gradient @ along, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_one_budget_of_time_covers_the_region_and_all_inputs(monkeypatch):
    module = importlib.import_module("jaxact.lipschitz.ellipsoid.bound")
    program, center = chain((4, 8, 8, 8, 3), name="tanh"), np.full(4, 0.3)
    searches = []
    refine = module.refine

    def noted(prepared, local, *others):
        searches.append((local is not None, others[2]))
        return refine(prepared, local, *others)

    monkeypatch.setattr(module, "refine", noted)
    near = bound(program, region=Ball(center, 0.1), num_steps=20, seconds=60)
    assert [here for here, _ in searches] == [True]  # all inputs are not searched in vain
    searches.clear()
    # Intervals of these tell nothing, and a box has a worse start: all inputs may be searched as well.
    far = bound(program, region=Ball(center, 1e6), num_steps=20, seconds=60)
    assert len({deadline for _, deadline in searches}) == 1
    everywhere = bound(program, num_steps=20)
    assert near.value < everywhere.value
    assert far.value <= everywhere.value * (1 + 1e-3)


def test_a_region_that_tells_nothing_costs_no_quality():
    for name, seed in (("tanh", 0), ("relu", 1)):
        program = chain((6,) * 7, name=name, seed=seed)
        everywhere = bound(program, num_steps=60).value
        for radius in (1.0, 10.0, 1e3):
            found = bound(program, region=Ball(np.full(6, 0.3), radius), num_steps=60)
            assert found.value <= everywhere * (1 + 1e-2)


@pytest.mark.parametrize("seed", range(5))
def test_the_rounding_of_what_an_affine_step_cancels_is_added(seed):
    rng = np.random.default_rng(seed)
    large = 1e8 * rng.normal(size=(1, 3))
    A, B = large + rng.normal(size=(2, 3)), np.array([[1.0, -1.0]])  # exactly: the difference of two rows
    steepest = math.sqrt(sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(*A, strict=True)))
    program = Program(3, (Affine(1, ((0, Dense(A)),), 2), Affine(2, ((1, Dense(B)),), 1)), 2)
    assert bound(program).value >= steepest
