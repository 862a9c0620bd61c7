"""The page and the Markdown tables of `recipes/studies/reward_study.py`, from its study.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.data.rows import STRENGTHS
from rlhf.report.drawing.figures import BLUE, GREY, INK, ORANGE, RAMP, Panel, Series, histogram, lines
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.tables import Cell, Table, all_as_markdown
from rlhf.report.drawing.text import NBSP, NOTHING, interval, number, percent, signed
from rlhf.report.pages.rewards import gain_cell

Row = Mapping[str, Any]
COLOURS = (BLUE, ORANGE, INK, *RAMP[1::2])
ACCURACY = {
    "accuracy": ("Accuracy", "share of the test pairs whose chosen answer scores higher, ties half"),
    **{f"accuracy.{s}": (s.capitalize(), "pairs whose chosen answer was called that much better") for s in STRENGTHS},
}
LENGTH = {
    "accuracy.shorter_chosen": ("Shorter chosen", "the chosen answer is the shorter one, by more than 10 %"),
    "accuracy.matched": ("Matched", "the answers differ by at most 10 % in characters"),
    "accuracy.longer_chosen": ("Longer chosen", "the chosen answer is the longer one, by more than 10 %"),
    "prefers_longer": ("Prefers longer", "of the pairs of different length, the share where the longer answer wins"),
    "nll": ("NLL", "mean -log sigmoid(r_c - r_r); 0.693 knows nothing"),
    "ece": ("ECE", "mean distance of accuracy from confidence over bins of equal counts"),
}
UNSAFE = {
    "unsafe_recall": ("Unsafe recall", "answers labelled unsafe whose sigmoid(score) is below 0.5"),
    "safe_flagged": ("Safe flagged", "answers labelled safe whose sigmoid(score) is below 0.5"),
    "matched_recall": ("Recall, matched", "unsafe answers below the score that flags a tenth of the safe ones"),
    "head_unsafe_recall": ("Recall, safety head", "the same by the safety head's probability"),
    "head_safe_flagged": ("Safe flagged, safety head", "the same by the safety head's probability"),
    "head_matched_recall": ("Recall, matched, safety head", "the same by the safety head's probability"),
}
NOT_SHARES = ("nll", "ece")


def build_study_page(study: Row, page: Path, title: str) -> None:
    """Write the page of a study.json; `title` names it."""
    models = study["models"]
    seeds = len(models[0]["groups"]["all"]["figures"]["accuracy"]["values"])
    content = page_template("reward_study.html.j2").render(
        title=title,
        variants=list(dict.fromkeys(model["variant"] for model in models)),
        seeds=seeds,
        tables=[(name, table) for name, table in study_tables(study)],
        strength_panels=_bin_panels(study, ACCURACY, ["signif.", "better", "slightly", "negligibly"]),
        length_panels=_bin_panels(study, LENGTH, ["shorter", "matched", "longer"]),
        data_panels=_data_panels(study),
        histogram_panels=[
            histogram(
                f"{_label(model, models)}, {domain} pairs",
                group["histogram"]["edges"],
                [(which, colour, group["histogram"][which]) for which, colour in _SIDES.items()],
                x_label="σ(score)",
            )
            for domain in domains(study)
            for model in models
            if model["fraction"] == models[-1]["fraction"] and (group := model["groups"][domain])
        ],
    )
    write_page(page, content)


_SIDES = {"chosen": BLUE, "rejected": ORANGE}


def markdown_tables(study: Row) -> str:
    """The tables in Markdown: mean and 95 % interval over the seeds."""
    return all_as_markdown(study_tables(study))


def study_tables(study: Row) -> list[tuple[str, Table]]:
    """(name, table): the variants on both domains; on each domain accuracy and its gain over the first variant, length
    and calibration; and unsafe answers where rows are labelled.
    """
    first = study["models"][0]["variant"]
    found: list[tuple[str, Table | None]] = [("Own and other domain, all training pairs", _across(study))]
    for domain in domains(study):
        on = f"{domain.capitalize()} pairs"
        found += [
            (on, _table(study, domain, ACCURACY)),
            (f"{on}: gain over {first}, in points", _gains(study, domain, ACCURACY)),
            (f"{on}: length and calibration", _table(study, domain, LENGTH)),
        ]
    found.append(("Unsafe answers", _table(study, "all", UNSAFE)))
    found.append((f"Unsafe answers: gain over {first}, in points", _gains(study, "all", UNSAFE)))
    return [(name, table) for name, table in found if table is not None]


def _across(study: Row) -> Table:
    """A row a variant and a baseline: accuracy on each domain, and what a bag of words of the same pairs lacks."""
    whole = max(model["fraction"] for model in study["models"])
    rows: dict[str, tuple[Row, float | None]] = {
        model["variant"]: (model["groups"], model["training_pairs"])
        for model in study["models"]
        if model["fraction"] == whole
    }
    rows |= {name: (groups, None) for name, groups in study["baselines"].items()}
    heads = [("", ""), ("Pairs", "training pairs, mean over the seeds")]
    for domain in domains(study):
        heads.append((f"{domain.capitalize()} pairs", ACCURACY["accuracy"][1]))
        heads.append(
            ("over its words", "points over a bag of words of the same training pairs; interval over the pairs")
        )
    return Table(
        heads,
        [
            [
                Cell(name),
                Cell(number(pairs, 0)),
                *(
                    cell
                    for domain in domains(study)
                    for cell in (
                        _mean("accuracy", groups[domain]["figures"]["accuracy"]),
                        gain_cell(groups[domain].get("over_bag_of_words")),
                    )
                ),
            ]
            for name, (groups, pairs) in rows.items()
        ],
    )


def domains(study: Row) -> list[str]:
    """The domains that the test rows have."""
    return [group for group in study["models"][0]["groups"] if group != "all"]


def _table(study: Row, group: str, columns: Mapping[str, tuple[str, str]]) -> Table | None:
    """The models' figures, and the baselines' below them; None where no model has any of them."""
    models = study["models"]
    rows = {_label(model, models): (model["groups"][group]["figures"], model["training_pairs"]) for model in models}
    known = [name for name in columns if any(name in figures for figures, _ in rows.values())]
    if not known:
        return None
    below = {name: (groups[group]["figures"], None) for name, groups in study["baselines"].items() if group in groups}
    rows |= {name: found for name, found in below.items() if any(column in found[0] for column in known)}
    heads = [("", ""), ("Pairs", "training pairs, mean over the seeds"), *(columns[name] for name in known)]
    return Table(
        heads,
        [
            [Cell(label), Cell(number(pairs, 0)), *(_mean(name, figures.get(name)) for name in known)]
            for label, (figures, pairs) in rows.items()
        ],
    )


def _gains(study: Row, group: str, columns: Mapping[str, tuple[str, str]]) -> Table | None:
    """By how much the other variants lie above the first one on the same seeds; None where there is no other."""
    models = study["models"]
    rows = {
        _label(model, models): model["groups"][group]["figures"]
        for model in models
        if model["variant"] != models[0]["variant"]
    }
    known = [name for name in columns if any(figures.get(name, _NONE)["gain"] is not None for figures in rows.values())]
    if not known:
        return None
    return Table(
        [("", ""), *(columns[name] for name in known)],
        [[Cell(label), *(_gain(figures.get(name, _NONE)) for name in known)] for label, figures in rows.items()],
    )


_NONE: Row = {"mean": None, "ci": None, "gain": None, "gain_ci": None}


def _mean(name: str, figure: Row | None) -> Cell:
    found = figure or _NONE
    if name in NOT_SHARES:
        return Cell(number(found["mean"]), interval(found["ci"]))
    return Cell(percent(found["mean"]), interval(found["ci"], 1, share=True))


def _gain(figure: Row) -> Cell:
    if figure["gain"] is None:
        return Cell(NOTHING)
    return Cell(signed(100 * figure["gain"], 1), interval(figure["gain_ci"], 1, share=True))


def _label(model: Row, models: Sequence[Row]) -> str:
    fractions = {other["fraction"] for other in models}
    return model["variant"] if len(fractions) == 1 else f"{model['variant']}, {100 * model['fraction']:g}{NBSP}%"


def _bin_panels(study: Row, columns: Mapping[str, Any], names: Sequence[str]) -> list[Panel]:
    """A panel a domain: each variant's accuracy by bin, on all its data."""
    bins = [name for name in columns if name.startswith("accuracy.")]
    models = [model for model in study["models"] if model["fraction"] == study["models"][-1]["fraction"]]
    panels = []
    for domain in domains(study):
        series = []
        for number_, model in enumerate(models):
            figures = [model["groups"][domain]["figures"].get(name, _NONE) for name in bins]
            series.append(_series(model["variant"], number_, range(len(bins)), figures))
        if longer := study["baselines"]["longer wins"].get(domain):
            figures = [longer["figures"].get(name, _NONE) for name in bins]
            y = [figure["mean"] for figure in figures]
            series.append(Series("longer wins", GREY, range(len(bins)), y, dashed=True))
        panels.append(lines(f"{domain.capitalize()} pairs", series, names=names, percent=True, reference=0.5))
    return [panel for panel in panels if panel is not None]


def _data_panels(study: Row) -> list[Panel]:
    """A panel a domain: accuracy over training pairs, a line a variant; none where all models have all the data.

    Beside them the best bag of words of as many pairs, and the longer answer, which needs none.
    """
    if len({model["fraction"] for model in study["models"]}) == 1:
        return []
    panels = []
    for domain in domains(study):
        series = []
        for number_, variant in enumerate(dict.fromkeys(model["variant"] for model in study["models"])):
            models = sorted((m for m in study["models"] if m["variant"] == variant), key=lambda m: float(m["fraction"]))
            figures = [model["groups"][domain]["figures"]["accuracy"] for model in models]
            series.append(_series(variant, number_, [round(m["training_pairs"]) for m in models], figures))
        series += _baseline_series(study, domain)
        title = f"{domain.capitalize()} pairs"
        panels.append(lines(title, series, x_label="training pairs", y_label="accuracy", percent=True, log2=True))
    return [panel for panel in panels if panel is not None]


def _baseline_series(study: Row, domain: str) -> list[Series]:
    """Lines of the best bag of words of each number of training pairs, and of the longer answer."""
    bags: dict[int, Row] = {}
    for model in study["models"]:
        found, pairs = model["groups"][domain]["figures"].get("bag_of_words"), round(model["training_pairs"])
        if found and (pairs not in bags or found["mean"] > bags[pairs]["mean"]):
            bags[pairs] = found
    series = []
    if bags:
        figures = [bags[pairs] for pairs in sorted(bags)]
        y, ci = [figure["mean"] for figure in figures], [figure["ci"] for figure in figures]
        series.append(Series("bag of words", GREY, sorted(bags), y, ci))
    if longer := study["baselines"]["longer wins"].get(domain):
        ends = sorted({round(model["training_pairs"]) for model in study["models"]})
        mean = longer["figures"]["accuracy"]["mean"]
        x = [ends[0], ends[-1]]
        series.append(Series("longer wins", GREY, x, [mean, mean], dashed=True, markers=False))
    return series


def _series(label: str, place: int, x: Sequence[float], figures: Sequence[Row]) -> Series:
    y, ci = [figure["mean"] for figure in figures], [figure["ci"] for figure in figures]
    return Series(label, COLOURS[place % len(COLOURS)], x, y, ci)
