"""The study of certified accuracy: certificates that no attack breaks, findings from known numbers, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jaxact import activations
from train import results
from train.experiments import _certified_accuracy_programs as programs
from train.experiments.certified_accuracy import COORDINATES, RESULT_VARIABLES, CertifiedAccuracy


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
    worst = programs._attacked(activations.identity, 30, chain, x, labels, 0.3)
    np.testing.assert_allclose(worst, [2 - 5 * 0.3, 3 - 5 * 0.3], rtol=1e-5)


@pytest.mark.parametrize("approach", ["penalty", "orthogonal"])
def test_chains_compute_what_their_networks_do(approach):
    study = CertifiedAccuracy(width=6, num_hidden=2)
    build = (
        programs.nn.MLP(
            5, 6, 3, max_depth=1, activation=study.activation, sigma_b=1.0, rngs=programs.nnx.Rngs(0)
        )
        if approach == "penalty"
        else programs._Constrained(approach, (5, 6, 6, 3), study.activation, rngs=programs.nnx.Rngs(0))
    )
    x, labels = jax.random.normal(jax.random.key(0), (9, 5)), jnp.arange(9) % 3
    logits = np.asarray(build(x))
    expected = [row[y] - np.delete(row, y).max() for row, y in zip(logits, np.asarray(labels), strict=True)]
    margins = programs._margins(study.activation, programs._chain(build), x, labels)
    np.testing.assert_allclose(margins, expected, rtol=1e-4, atol=1e-5)


def stored():
    """Two approaches whose certified accuracy falls linearly: 0.9 - 0.2 r and, from 0.8, 0.8 - 0.1 r."""
    radius, attacks = np.linspace(0, 2, 9), [0.5, 1.0]
    coords = {
        "approach": ["unconstrained", "penalty"],
        "setting": [1, 2],
        "seed": [0, 1],
        "radius": radius,
        "attack_radius": attacks,
    }
    curve = np.stack(
        [np.stack([0.9 - 0.8 * radius, np.nan * radius]), np.stack([0.9 - 0.2 * radius, 0.8 - 0.1 * radius])]
    )
    there = np.array([[1.0, np.nan], [1.0, 1.0]])
    member = np.broadcast_to(there[..., None], (2, 2, 2))
    at = np.broadcast_to(there[..., None, None], (2, 2, 2, 2))
    data = {
        "strength": np.array([[0.0, np.nan], [0.1, 0.3]]),
        "train_accuracy": member,
        "test_accuracy": np.broadcast_to(curve[:, :, None, 0], (2, 2, 2)),
        "lipschitz": 4 * member,
        "median_radius": member,
        "certified_accuracy": np.broadcast_to(curve[:, :, None], (2, 2, 2, 9)),
        "attacked_accuracy": 0.75 * at,
        "certified_among_attacked": 0.5 * at,
        "broken_certificates": 0 * at,
    }
    dataset = xr.Dataset(
        {
            name: (("approach", *dims), data[name].copy(), {"units": units, "long_name": long_name})
            for name, (dims, units, long_name) in RESULT_VARIABLES.items()
        },
        coords,
    )
    for name, (units, long_name) in COORDINATES.items():
        dataset[name].attrs = {"units": units, "long_name": long_name}
    return dataset


def test_findings_choose_the_strength_with_the_best_certified_accuracy():
    said = CertifiedAccuracy.findings(stored())
    # At radius 1: 0.9 - 0.2 = 0.7 and 0.8 - 0.1 = 0.7 tie, the first is taken; at 0.5 the first is ahead.
    assert any(
        "radius 0.5: unconstrained 0.500 (clean 0.900); penalty on the certificate 0.800" in s for s in said
    )
    assert any("No certificate was broken" in sentence for sentence in said)
    assert any("unconstrained 0.25; penalty on the certificate 0.25" in sentence for sentence in said)
    broken = stored()
    broken["broken_certificates"][1, 0, 0, 0] = 2
    assert any("2 certificates were broken" in sentence for sentence in CertifiedAccuracy.findings(broken))


def test_figures_and_table_hold_every_strength():
    charts = CertifiedAccuracy.figures(stored())
    assert set(charts) == {"trade_off", "certified_accuracy", "attack"}
    (table,) = CertifiedAccuracy.tables(stored()).values()
    assert table["strength"].tolist() == [0.0, 0.1, 0.3]
    assert table["certified at 1"].tolist() == pytest.approx([0.1, 0.7, 0.7])


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
