"""The study of certified accuracy: certificates that no attack breaks, findings from known numbers, what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn
from train import chains, results
from train.experiments import certified_accuracy as programs
from train.experiments.certified_accuracy import CertifiedAccuracy


def silent(fraction, note=""):
    assert 0 <= fraction <= 1


def test_a_constrained_network_keeps_its_constant_and_its_certificates():
    study = CertifiedAccuracy(
        approaches=("spectral",),
        spectral_constants=(3.0, 1.0),
        seeds=(0,),
        width=8,
        num_hidden=2,
        num_steps=60,
        learning_rate=1e-2,
        attack_radii=(0.2, 1.0),
        attack_steps=5,
        num_attacked=50,
        refine_steps=0,
    )
    whole = study.run(study.cells()[0], progress=silent)
    results.check_structure(whole)
    part = whole.squeeze()
    assert (part.lipschitz <= part.strength * (1 + 1e-5)).all()
    assert (part.broken_certificates == 0).all()
    assert (part.attacked_accuracy >= part.certified_among_attacked).all()
    assert (part.certified_accuracy.diff("radius") <= 0).all()
    assert (part.certified_accuracy <= part.test_accuracy).all()
    assert part.test_accuracy.sel(setting=1) > 0.5


def test_the_attack_on_a_linear_network_finds_the_distance_to_the_boundary():
    # z_0 - z_1 = 5 x_0 - 3: the margin falls by 5 a unit, and no direction but x_0 matters.
    chain = ([jnp.eye(2), jnp.array([[5.0, 0.0], [0.0, 0.0]])], [jnp.zeros(2), jnp.array([-3.0, 0.0])])
    x, labels = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([0, 1])
    worst = chains.attacked(activations.identity, 30, chain, x, labels, 0.3)
    np.testing.assert_allclose(worst, [2 - 5 * 0.3, 3 - 5 * 0.3], rtol=1e-5)


def test_the_attack_in_the_largest_entry_uses_every_coordinate():
    # z_0 - z_1 = 5 x_0 - 2 x_1: within a cube of half the side r the margin falls by 7 r, within a ball by sqrt(29) r.
    chain = ([jnp.eye(2), jnp.array([[5.0, 0.0], [-2.0, 0.0]])], [jnp.zeros(2), jnp.zeros(2)])
    x, labels = jnp.array([[1.0, 0.5]]), jnp.array([0])
    for ball, fall in (("linf", 7.0), ("l2", 29**0.5)):
        worst = chains.attacked(activations.identity, 30, chain, x, labels, 0.3, ball)
        np.testing.assert_allclose(worst, [4 - 0.3 * fall], rtol=1e-4)
    *logs, clean, certified, within_ball, within_cube = chains.robustness(
        activations.identity, activations.identity, chain, x, labels, 0.5, [(0.5, "l2"), (0.6, "linf")]
    )
    np.testing.assert_allclose(logs, np.full(3, np.log10(29) / 2), rtol=1e-5)
    assert [clean, certified, within_ball, within_cube] == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("approach", ["penalty", "orthogonal"])
def test_chains_compute_what_their_networks_do(approach):
    study = CertifiedAccuracy(width=6, num_hidden=2)
    build = (
        nn.MLP(5, 6, 3, max_depth=1, activation=study.activation, sigma_b=1.0, rngs=nnx.Rngs(0))
        if approach == "penalty"
        else chains.Constrained(approach, (5, 6, 6, 3), study.activation, rngs=nnx.Rngs(0))
    )
    x, labels = jax.random.normal(jax.random.key(0), (9, 5)), jnp.arange(9) % 3
    logits = np.asarray(build(x))
    expected = [row[y] - np.delete(row, y).max() for row, y in zip(logits, np.asarray(labels), strict=True)]
    margins = chains.margins(study.activation, chains.chain(build), x, labels)
    np.testing.assert_allclose(margins, expected, rtol=1e-4, atol=1e-5)


STORED = CertifiedAccuracy(
    approaches=("unconstrained", "penalty"),
    penalty_weights=(0.1, 0.3),
    max_radius=2.0,
    num_radii=9,
    attack_radii=(0.5, 1.0),
)
ISSUED = replace(STORED, max_radius=10.0, num_radii=61, attack_radii=(0.25, 0.5, 1.0))


def certified(approach, radius):
    """Certified accuracies of the strengths of an approach: lines in the radius, cut off at 0."""
    lines = {
        "unconstrained": [0.875 - 0.75 * radius],
        "penalty": [0.875 - 0.25 * radius, 0.75 - 0.125 * radius],
    }
    return np.maximum(np.stack(lines[approach]), 0.0)


def stored(study=STORED, certified=certified, radii=None):
    """A result with known curves of certified accuracy: two seeds alike."""
    radii, parts = study.radii() if radii is None else radii, []
    for cell in study.cells():
        approach = cell.coords["approach"]
        curve, count = certified(approach, radii), len(study.strengths(approach))
        member = np.ones((count, 2))
        at = np.ones((count, 2, len(study.attack_radii)))
        measured = {
            "strength": study.strengths(approach),
            "train_accuracy": member,
            "test_accuracy": np.broadcast_to(curve[:, None, 0], (count, 2)),
            "lipschitz": 4 * member,
            "median_radius": member,
            "certified_accuracy": np.broadcast_to(curve[:, None], (count, 2, len(radii))),
            "attacked_accuracy": 0.75 * at,
            "certified_among_attacked": 0.5 * at,
            "broken_certificates": 0 * at,
            "radius": radii,
            "setting": np.arange(1, count + 1),
        }
        parts.append(study.labelled(cell, measured | {"compile_seconds": 0.0, "run_seconds": 1.0}))
    return results.combine(parts)


def test_findings_choose_the_strength_with_the_best_certified_accuracy():
    said = CertifiedAccuracy.findings(stored())
    # The verdict is at the attack's middle radius; there both strengths have 0.625, and the first counts.
    assert said[0] == (
        "Best certified accuracy at radius 1: penalty on the certificate 0.625 (clean 0.875); unconstrained 0.125 "
        "(clean 0.875)."
    )
    assert said[0].topic == ""
    assert said[1] == (
        "Best certified accuracy at radius 0.5: penalty on the certificate 0.750 (clean 0.875); unconstrained 0.500 "
        "(clean 0.875)."
    )
    assert all(sentence.topic for sentence in said[1:])
    assert any("at 0.3: 0.750 (K 4, median radius 1.00)" in sentence for sentence in said)
    # 3 networks of 2 seeds, each attacked at 2 radii.
    assert any("No certificate was broken: in 12 attacks" in sentence for sentence in said)
    assert any("unconstrained 0.25; penalty on the certificate 0.25" in sentence for sentence in said)
    broken = stored()
    broken["broken_certificates"].loc[
        {"approach": "penalty", "setting": 1, "seed": 0, "attack_radius": 0.5}
    ] = 2
    assert any(
        "The attack broke 2 certificates" in sentence for sentence in CertifiedAccuracy.findings(broken)
    )


def steep(approach, radius):
    """Certified accuracy 0.5 up to radius 0.24, nothing beyond."""
    return np.repeat(np.where(radius < 0.24, 0.5, 0.0)[None], 1 if approach == "unconstrained" else 2, axis=0)


def quotes(result):
    """Radius and number of every quoted certified accuracy, by the findings, and the table's columns of them."""
    said = [each for each in CertifiedAccuracy.findings(result) if each.startswith("Best certified")]
    table = CertifiedAccuracy.tables(result)["Every approach and strength"]
    return said, {name: set(table[name]) for name in table if name.startswith("certified at")}


def test_a_quoted_certified_accuracy_is_that_at_the_radius_named():
    said, columns = quotes(stored(ISSUED, steep))
    assert len(said) == 3
    for radius in ("0.25", "0.5", "1"):
        assert any(f"at radius {radius}: unconstrained 0.000 (clean 0.500)" in sentence for sentence in said)
    assert columns == {"certified at 0.25": {0.0}, "certified at 0.5": {0.0}, "certified at 1": {0.0}}


@pytest.mark.parametrize(
    ("num_radii", "expected"),
    # Of 0, 1/6, 1/3 ... 10, and of 0, 2.5 ... 10: the next larger radii.
    [(61, ["0.333333", "0.5", "1"]), (5, ["2.5"])],
)
def test_a_stored_grid_without_the_radius_is_quoted_at_the_next_larger_one_by_name(num_radii, expected):
    said, columns = quotes(stored(ISSUED, steep, radii=np.linspace(0.0, 10.0, num_radii)))
    assert list(columns) == [f"certified at {radius}" for radius in expected]
    assert all(values == {0.0} for values in columns.values())
    assert len(said) == len(expected)
    assert all("unconstrained 0.000 (clean 0.500)" in sentence for sentence in said)


def test_no_quote_goes_beyond_what_is_certified_at_its_radius():
    rng = np.random.default_rng(0)
    for _ in range(20):
        grid = np.unique(np.round(np.concatenate([[0.0], rng.uniform(0, 3, 6)]), 3))
        quoted = programs._quoted(stored(ISSUED, certified, radii=grid))
        assert set(quoted) <= set(grid)
        for radius in ISSUED.attack_radii:
            nearest = programs._on_grid(stored(ISSUED, certified, radii=grid), radius)
            assert nearest >= radius or nearest == grid[-1]
            assert not ((grid >= radius) & (grid < nearest)).any()


def test_figures_and_table_hold_every_strength():
    charts = CertifiedAccuracy.figures(stored())
    assert list(charts) == ["trade_off", "certified_accuracy", "attack"]
    (table,) = CertifiedAccuracy.tables(stored()).values()
    assert table["strength"].tolist() == [0.0, 0.1, 0.3]
    assert table["certified at 1"].tolist() == pytest.approx([0.125, 0.625, 0.625])
    text = charts["certified_accuracy"].to_json()
    assert "1, loosest" in text
    assert "2, tightest" in text


def test_what_was_not_certified_is_left_out():
    part = stored()
    part["certified_accuracy"].loc[{"approach": "unconstrained"}] = np.nan
    assert CertifiedAccuracy.findings(part)[0].startswith(
        "Best certified accuracy at radius 1: penalty on the certificate"
    )
    nothing = stored().map(lambda values: values * np.nan)
    assert CertifiedAccuracy.findings(nothing) == [
        "Nothing to conclude: no network of this study was certified."
    ]
    assert CertifiedAccuracy.figures(nothing) == {}


def test_bad_fields_are_refused_with_field_value_and_remedy():
    for fields, message in (
        ({"approaches": ("penalti",)}, "`approaches` must be among unconstrained, .* got 'penalti'"),
        ({"penalty_weights": (-1.0,)}, "`penalty_weights` must be positive and finite, got -1.0"),
        ({"spectral_constants": (1.0, 1.0)}, "`spectral_constants` must not repeat a value, got 1.0 twice"),
        ({"num_hidden": 1}, "`num_hidden` must be at least 2, got 1"),
        ({"num_steps": 0}, "`num_steps` must be a positive integer, got 0"),
        ({"seeds": ()}, "`seeds` must hold at least one value, got none"),
        ({"refine_steps": -1}, "`refine_steps` must be finite and not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            CertifiedAccuracy(**fields)
