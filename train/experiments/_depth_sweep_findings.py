"""What a depth sweep found, in sentences and tables."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from train import figures as draw
from train.experiments import _depth_sweep_members as cells

_THRESHOLD = 0.9  # test accuracy from which a depth counts as trained
_MEMBER = ("learning_rate", "seed")


def findings(result: xr.Dataset) -> list[str]:
    """Say in sentences what a depth sweep found, each number computed from the Dataset.

    Args:
        result: the combined Dataset of a sweep, or any part of one.

    Returns:
        Sentences; those on the blocks first.
    """
    members = cells.prepare(result)
    best = cells.select(result)
    accuracy = draw.spread(best["final_test_accuracy"], "seed", centre="mean")["value"]
    if not bool(accuracy.notnull().any()):
        return ["Nothing to conclude: no member of this sweep has a test accuracy.", *_failures(members)]
    sentences = _verdict(accuracy)
    sentences += [_block_verdict(best, members, accuracy, str(block)) for block in best["block"].to_numpy()]
    sentences += [
        *_effect_of_blocks(accuracy),
        *_gradient_decay(best),
        *_conditioning(best),
        *_lipschitz_gap(best),
        *_theory_agreement(best),
        *_failures(members),
    ]
    if best.sizes["seed"] > 1:
        sentences.append(
            f"How to read the numbers: accuracies are means \N{PLUS-MINUS SIGN} standard deviations over "
            f"{cells.seeds(best)} at the learning rate with the best training accuracy; a diverged member "
            "counts as 0."
        )
    return [sentence for sentence in sentences if sentence]


def _verdict(accuracy: xr.DataArray) -> list[str]:
    """The answer in one sentence: who still generalises at the deepest depth, in which block."""
    measured = accuracy.notnull().any(["block", "activation"])
    depth = int(accuracy["depth"].to_numpy()[measured.to_numpy()].max())
    parts = []
    for block in cells.names(accuracy, "block"):
        row = accuracy.sel(block=block, depth=depth).dropna("activation")
        names = cells.names(row, "activation")
        good = [name for name, value in zip(names, row.to_numpy(), strict=True) if value >= _THRESHOLD]
        if not names:
            continue
        who = f"all {len(names)} activations" if len(good) == len(names) > 1 else _listed(good) or "none"
        count = f" ({len(good)} of {len(names)})" if 0 < len(good) < len(names) else ""
        parts.append(f"{cells.block_name(block)}: {who}{count}")
    return [f"{_THRESHOLD * 100:.0f} % test accuracy at depth {depth}, reached by: {'; '.join(parts)}."]


def _block_verdict(best: xr.Dataset, members: xr.Dataset, accuracy: xr.DataArray, block: str) -> str:
    here = accuracy.sel(block=block).transpose("depth", "activation")
    measured = here.dropna("depth", how="all")
    if measured.sizes["depth"] == 0:
        return f"{cells.block_name(block)}: nothing measured."
    depth = int(measured["depth"].max())
    row = measured.sel(depth=depth).dropna("activation")
    order = row.isel(activation=np.argsort(-row.to_numpy(), kind="stable"))
    names, values = cells.names(order, "activation"), order.to_numpy()
    top = f"the most accurate is {names[0]}, {_plus_minus(best, block, names[0], depth)} test accuracy"
    chance = (
        f"at depth {depth} {top}"
        if values[0] >= _THRESHOLD
        else f"nothing trains well at depth {depth}; {top}"
    )
    close = [name for name, value in zip(names[1:], values[1:], strict=True) if values[0] - value <= 0.01]
    if len(close) == len(names) - 1 > 0:
        chance += "; all others are within 0.01 of it"
    elif close:
        chance += f"; within 0.01 of it: {_listed(close)}"
    failing = _failing(members, block, depth, names, values)
    return f"{cells.block_name(block)}: {chance}. {_reach(measured)}{failing}"


def _plus_minus(best: xr.Dataset, block: str, activation: str, depth: int) -> str:
    sample = best["final_test_accuracy"].sel(block=block, activation=activation, depth=depth).to_numpy()
    return _mean_sd(sample)


def _mean_sd(sample: np.ndarray) -> str:
    sample = np.asarray(sample, dtype=float)
    sample = sample[~np.isnan(sample)]
    if len(sample) == 0:
        return ""
    if len(sample) == 1:
        return f"{sample[0]:.2f}"
    return f"{sample.mean():.2f} \N{PLUS-MINUS SIGN} {sample.std(ddof=1):.2f}"


def _reach(measured: xr.DataArray) -> str:
    """Group activations by the deepest depth at which they still pass the threshold."""
    groups: dict[int, list[str]] = {}
    for name in cells.names(measured, "activation"):
        passing = measured.sel(activation=name)
        depths = passing["depth"].to_numpy()[passing.to_numpy() >= _THRESHOLD]
        groups.setdefault(int(max(depths)) if len(depths) else 0, []).append(name)
    total = measured.sizes["activation"]
    if list(groups) == [0]:
        return f"{_THRESHOLD * 100:.0f} % is reached at no depth."

    def who(names: Sequence[str]) -> str:
        return f"all {total}" if len(names) == total > 1 else _listed(names)

    parts = [
        f"{who(groups[depth])} to depth {depth}" if depth else f"{who(groups[depth])} at no depth"
        for depth in sorted(groups, reverse=True)
    ]
    return f"At least {_THRESHOLD * 100:.0f} % is reached by {'; '.join(parts)}."


def _failing(members: xr.Dataset, block: str, depth: int, names: Sequence[str], values: np.ndarray) -> str:
    low = [(name, value) for name, value in zip(names, values, strict=True) if value < 0.5][::-1]
    if not low:
        return ""
    parts = []
    for name, value in low:
        cell = members.sel(block=block, activation=name, depth=depth)
        total, diverged, censored = (int(cell[key].sum()) for key in ("present", "diverged", "censored"))
        parts.append(f"{name} {value:.2f} (diverged {diverged}, censored {censored} of {total})")
    return f" Below 50 % at depth {depth}: {_listed(parts)}."


def _effect_of_blocks(accuracy: xr.DataArray) -> list[str]:
    if "plain" not in cells.names(accuracy, "block"):
        return []
    plain = accuracy.sel(block="plain")
    sentences = []
    for block in cells.names(accuracy, "block"):
        other = accuracy.sel(block=block)
        both = (plain.notnull() & other.notnull()).any("activation")
        depths = both["depth"].to_numpy()[both.to_numpy()]
        if block == "plain" or len(depths) == 0:
            continue
        depth = max(depths)
        before, after = plain.sel(depth=depth), other.sel(depth=depth)
        keep = (before.notnull() & after.notnull()).to_numpy()
        names = [name for name, kept in zip(cells.names(before, "activation"), keep, strict=True) if kept]
        was, now = before.to_numpy()[keep], after.to_numpy()[keep]
        text = (
            f"{cells.block_name(block)} against plain: mean test accuracy at depth {depth} goes from "
            f"{was.mean():.2f} to "
            f"{now.mean():.2f} over {_count(names, 'activation')}"
        )
        most = int(np.argmax(np.abs(now - was)))
        if len(names) > 1:
            text += f", most for {names[most]} ({was[most]:.2f} to {now[most]:.2f})"
        shallow = min(depths)
        if shallow != depth:
            was_shallow, now_shallow = _mean(plain.sel(depth=shallow)), _mean(other.sel(depth=shallow))
            text += f"; at depth {shallow} from {was_shallow:.2f} to {now_shallow:.2f}"
        sentences.append(text + ".")
    return sentences


def _mean(values: xr.DataArray) -> float:
    return float(cells.quiet(values.mean))


def _by_block(
    values: xr.DataArray, describe: Callable[[str, list[str], np.ndarray], str]
) -> tuple[list[str], int | None]:
    """Describe [block, activation] numbers at the deepest depth that has any, infinities included."""
    measured = values.notnull().any(["block", "activation"])
    depths = values["depth"].to_numpy()[measured.to_numpy()]
    if len(depths) == 0:
        return [], None
    deepest = values.sel(depth=max(depths))
    parts = []
    for block in cells.names(values, "block"):
        row = deepest.sel(block=block).dropna("activation")
        if row.sizes["activation"]:
            words = describe(block, cells.names(row, "activation"), row.to_numpy())
            parts.append(f"{_lower(cells.block_name(block))} {words}")
    return parts, int(max(depths))


def _range(names: Sequence[str], logs: np.ndarray, say: Callable[[float], str] | None = None) -> str:
    """From the smallest to the largest of some log10 numbers, with whose they are."""
    say = say or _power
    least, most = int(np.argmin(logs)), int(np.argmax(logs))
    if len(names) == 1 or logs[most] - logs[least] < 0.05 or say(logs[least]) == say(logs[most]):
        return say(float(np.median(logs)))
    return f"{say(logs[least])} ({names[least]}) to {say(logs[most])} ({names[most]})"


def _phase(values: xr.DataArray, phase: str) -> xr.DataArray:
    if phase not in cells.names(values, "phase"):
        return values.isel(phase=0, drop=True) * np.nan
    return values.sel(phase=phase, drop=True)


def _log10(values: xr.DataArray) -> xr.DataArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return xr.apply_ufunc(np.log10, values.astype(float))


def _gradient_decay(best: xr.Dataset) -> list[str]:
    norm = _phase(best["hidden_gradient_norm"].astype(float), "initial").sortby("layer")
    middle = cells.quiet(lambda: norm.median("seed"))
    first = middle.isel(layer=0, drop=True)
    last = middle.where(middle["layer"] == middle["depth"]).max("layer")
    parts, depth = _by_block(_log10(first) - _log10(last), lambda _, names, logs: _range(names, logs))
    if depth is None or depth < 2:
        return []
    return [
        f"Gradients at initialisation: ||dL/dh|| at layer 1 over that at layer {depth} is {'; '.join(parts)} "
        "(1 is neither vanishing nor exploding)."
    ]


def _conditioning(best: xr.Dataset) -> list[str]:
    limit = cells.resolution(best["jacobian_condition_number"])
    condition = cells.quiet(
        lambda: best["jacobian_condition_number"].astype(float).median(["seed", "example"])
    )

    def say(log10: float) -> str:
        return "singular" if log10 >= limit else _power(log10)

    sentences = []
    for phase, words in cells.PHASES.items():
        parts, depth = _by_block(
            _log10(_phase(condition, phase)),
            lambda _, names, logs: _range(names, np.minimum(logs, limit), say),
        )
        if parts:
            text = "; ".join(parts)
            seen = f" Singular: above {10**limit:.0e}, what rounding lets one see."
            note = seen if "singular" in text else ""
            sentences.append(f"Jacobian condition number {words}, depth {depth} (median): {text}.{note}")
    return sentences


def _lipschitz_gap(best: xr.Dataset) -> list[str]:
    lower = best["lipschitz_lower_log10"].astype(float)
    gaps = {"best": cells.lipschitz_upper(best) - lower, "product": best["lipschitz_upper_log10"] - lower}
    gaps = cells.quiet(
        lambda: {name: gap.where(np.isfinite(gap)).median("seed") for name, gap in gaps.items()}
    )

    def describe(_: str, names: list[str], orders: np.ndarray) -> str:
        least, most = int(np.argmin(orders)), int(np.argmax(orders))
        text = f"{np.median(orders):.1f}"
        if orders[most] - orders[least] >= 0.05:
            text += f" (from {orders[least]:.1f} for {names[least]} to {orders[most]:.1f} for {names[most]})"
        return text

    for phase in ("trained", "initial"):
        best_parts, depth = _by_block(_phase(gaps["best"], phase), describe)
        product_parts, _ = _by_block(_phase(gaps["product"], phase), describe)
        if best_parts:
            return [
                f"Lipschitz bounds {cells.PHASES[phase]}, depth {depth}: the best upper bound exceeds the lower bound "
                f"by this many orders of magnitude (median over activations): {'; '.join(best_parts)}; the "
                f"textbook's product by: {'; '.join(product_parts)}."
            ]
    return []


def _theory_agreement(best: xr.Dataset) -> list[str]:
    measured = _phase(best["second_moment"].astype(float), "initial")
    theory = best["second_moment_theory"].astype(float)
    ratio = cells.quiet(lambda: measured / theory.where(theory > 0))
    parts = []
    for block in cells.names(best, "block"):
        sample = ratio.sel(block=block).to_numpy().ravel()
        sample = sample[np.isfinite(sample)]
        if len(sample):
            low, middle, high = np.quantile(sample, [0.05, 0.5, 0.95])
            parts.append(
                f"{_lower(cells.block_name(block))} {middle:.3g} (90 % between {low:.3g} and {high:.3g})"
            )
    if not parts:
        return []
    return [
        "Second moments at initialisation, measured over theory, median over all layers and nets: "
        f"{'; '.join(parts)}."
    ]


def _failures(members: xr.Dataset) -> list[str]:
    total = int(members["present"].sum())
    if total == 0:
        return ["No member was measured."]

    def split(name: str) -> str:
        counts = {
            cells.block_name(b): int(members[name].sel(block=b).sum()) for b in cells.names(members, "block")
        }
        return ", ".join(f"{_lower(block)} {count}" for block, count in counts.items() if count)

    diverged, censored = int(members["diverged"].sum()), int(members["censored"].sum())
    parts = [
        f"{count} of {_count(total, 'member')} {what}" + (f" ({split(name)})" if count else "")
        for name, count, what in (
            ("diverged", diverged, "diverged"),
            (
                "censored",
                censored,
                f"did not reach {cells.threshold(members)} training accuracy within {cells.budget(members)} steps",
            ),
        )
    ]
    return [f"Failures, over all learning rates: {'; '.join(parts)}."]


def _listed(words: Sequence[str], most: int = 10) -> str:
    if len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def _count(things: Sequence[str] | int, noun: str) -> str:
    count = things if isinstance(things, int) else len(things)
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _power(log10: float) -> str:
    """A number given by its log10, in words short enough for a sentence."""
    if math.isnan(log10):
        return ""
    if math.isinf(log10):
        return "infinity" if log10 > 0 else "0"
    return f"1e{log10:.0f}" if abs(log10) >= 4 else f"{10**log10:.3g}"


def tables(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures.

    Args:
        result: the combined Dataset of a sweep, or any part of one.

    Returns:
        Frames by title, each with a caption in `attrs`: test accuracy at a glance, and every cell in full.
    """
    members, best = cells.prepare(result), cells.select(result)
    return {"Test accuracy by depth": _glance(best), "Every cell": _cells(best, members)}


def _glance(best: xr.Dataset) -> pd.DataFrame:
    rows = []
    for block in cells.names(best, "block"):
        for activation in cells.names(best, "activation"):
            sample = best["final_test_accuracy"].sel(block=block, activation=activation)
            texts = {
                f"depth {depth}": _mean_sd(sample.sel(depth=depth).to_numpy()) for depth in cells.depths(best)
            }
            if any(texts.values()):
                rows.append({"block": cells.block_name(block), "activation": activation, **texts})
    columns = ["block", "activation", *(f"depth {depth}" for depth in cells.depths(best))]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["caption"] = (
        f"Test accuracy at the end, mean \N{PLUS-MINUS SIGN} standard deviation over {cells.seeds(best)}, "
        "at the learning rate with the best training accuracy. A diverged member counts as 0; chance is one "
        "over the number of classes."
    )
    return frame


def _cells(best: xr.Dataset, members: xr.Dataset) -> pd.DataFrame:
    accuracy = best["final_test_accuracy"]
    condition = cells.quiet(
        lambda: best["jacobian_condition_number"].astype(float).median(["seed", "example"])
    )
    rank = cells.quiet(lambda: best["jacobian_effective_rank"].astype(float).median(["seed", "example"]))
    upper = cells.quiet(lambda: cells.lipschitz_upper(best).median("seed"))
    product = cells.quiet(lambda: best["lipschitz_upper_log10"].astype(float).median("seed"))
    lower = cells.quiet(lambda: best["lipschitz_lower_log10"].astype(float).median("seed"))
    columns: dict[str, xr.DataArray] = {
        "learning rate": best["learning_rate"].where(best["present"].any("seed")),
        "test accuracy": cells.quiet(lambda: accuracy.mean("seed")),
        "s.d.": cells.quiet(lambda: accuracy.std("seed", ddof=1)),
        f"steps to {cells.threshold(best)}": cells.quiet(
            lambda: best["steps_to_threshold"].astype(float).median("seed")
        ),
        "members": members["present"].sum(_MEMBER),
        "censored": members["censored"].sum(_MEMBER),
        "diverged": members["diverged"].sum(_MEMBER),
        "condition number, initial": _phase(condition, "initial"),
        "condition number, trained": _phase(condition, "trained"),
        "effective rank, trained": _phase(rank, "trained"),
        "log10 Lipschitz \N{GREATER-THAN OR EQUAL TO}, trained": _phase(lower, "trained"),
        "log10 Lipschitz \N{LESS-THAN OR EQUAL TO}, trained": _phase(upper, "trained"),
        "log10 textbook product, trained": _phase(product, "trained"),
    }
    plain = {name: column.drop_vars("learning_rate", errors="ignore") for name, column in columns.items()}
    frame = xr.Dataset(plain).to_dataframe(dim_order=list(cells.CELL)).reset_index()
    frame = frame[frame["members"] > 0].reset_index(drop=True)
    frame["block"] = frame["block"].map(cells.block_name)
    frame.attrs["caption"] = (
        "Accuracy, steps and the network's properties are those of the best learning rate: means or medians "
        "over "
        f"{cells.seeds(best)} (and over inputs). Censored and diverged members are counted over all "
        f"{_count(members.sizes['learning_rate'], 'learning rate')}; "
        "the steps of a censored member are the budget, so a median equal to it is a lower limit. Config and "
        "versions are below."
    )
    return frame
