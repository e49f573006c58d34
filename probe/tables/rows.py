"""The results that the verbs left in a directory, as rows of one form: pretrained, random, difference, what else.

    results = collect("OUT")
    results.rows[0].pretrained, results.rows[0].difference          {"value", "low", "high"} or None

What must hold: a number is taken as its verb wrote it; a file that is not what its verb writes (its shape stands above
the rows that are made of it) is one clear line; a directory has results of one model.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from probe.names import ARMS, PRETRAINED, RANDOM
from probe.tables.published import PUBLISHED
from proteinlm.errors import InputError
from proteinlm.untrusted.json_files import read_json
from proteinlm.untrusted.shapes import NUMBER, Shape
from tape.metrics import BANDS, DIVISORS, precision_name

SECTIONS = {
    "secondary_structure": "Secondary structure",
    "deeploc": "Location and membrane (DeepLoc)",
    "maps": "Neighbours and clusters",
    "contacts": "Contacts from attention",
    "variants": "Mutations without training",
}
STEPS = {"secondary_structure": "secondary_structure", "deeploc": "deeploc", "scope_map": "maps", "deeploc_map": "maps"}
STEPS |= {"contacts": "contacts", "heads": "contacts", "variants": "variants", "gfp": "variants"}  # -> its section
TITLES = {"balanced_accuracy": "balanced accuracy, %", "mcc": "MCC"}
FLOORS = {"one_hot": "one-hot", "blosum62": "BLOSUM62", "fewer_mutations": "fewer mutations"}
FLOORS |= {"site_independent": "site-independent", "residue_pairs": "residue pairs"}
FLOORS |= {"composition": "composition", "separation": "separation"}
RANKINGS = {"spearman": "Spearman's rho", "ndcg": "NDCG", "top_recall": "top-decile recall, %"}
BEST_HEADS = 5

Interval = dict[str, float | None]
INTERVAL: Shape = {"value": NUMBER | None, "low?": NUMBER, "high?": NUMBER}  # null: not defined
METRICS: Shape = {"*": INTERVAL}


@dataclass(frozen=True)
class Row:
    """One measure on one set. beside: what needs no pretraining, by name; main: drawn in the overview."""

    section: str
    of: str
    measure: str  # ends in "%" where it is printed in percent
    count: int  # proteins, points, chains or mutants
    pretrained: Interval
    random: Interval | None = None
    difference: Interval | None = None
    beside: dict[str, Interval] = field(default_factory=dict)
    main: bool = False


@dataclass(frozen=True)
class Results:
    """Everything of a page. notes: section -> what it was measured on; heads: of contacts.heads.json."""

    model: str
    rows: list[Row]
    heads: dict
    notes: dict[str, list[str]]
    not_run: dict[str, str]
    commands: list[str]

    def report(self) -> dict:
        """For JSON, with the published numbers of every section."""
        return asdict(self) | {"published": [asdict(table) for table in PUBLISHED]}


def interval(own: Mapping | None) -> Interval | None:
    """value, low, high as floats or None; None of None. A number has both ends."""
    if own is None:
        return None
    values = {name: own.get(name) if own["value"] is None else own[name] for name in ("value", "low", "high")}
    return {name: None if value is None else float(value) for name, value in values.items()}


def beside(arms: Mapping[str, Mapping], metric: str, *encoders: str) -> dict[str, Interval]:
    """The metric of every arm but the encoders."""
    return {FLOORS[arm]: interval(own[metric]) for arm, own in arms.items() if arm not in encoders}


def require_known(names: Collection[str], known: Collection[str], where: str) -> None:
    """ValueError for a name that the verb does not write: one that was misspelt would be passed over."""
    for name in names:
        if name not in known:
            raise ValueError(f"{where} holds {name!r}, which is none of {', '.join(known)}")


# ---- proteinlm probe

OPTIONS = {"seeds": [int], "random_seed": int}
PROBE = {
    "settings": {"model": str | None, "classes": {"*": list}, "splits": {"*": int}, "options": OPTIONS},
    "rows": [
        {
            **dict.fromkeys(("target", "split", "head", "arm"), str),
            **{"pooling?": str, "layer?": int, "proteins": int, "metrics": METRICS, "minus_random?": METRICS},
        }
    ],
}


def _measures(target: str, classes: int) -> dict[str, str]:
    """metric -> its name on the page, the main one first."""
    if target == "disorder":  # nearly all residues are ordered, so accuracy says little
        return {"mcc": "disorder, MCC"}
    first = {"accuracy": f"Q{classes}, %"}
    return first if target.startswith("ss") else {key: f"{target} {name}" for key, name in (first | TITLES).items()}


def probe_rows(content: Mapping, section: str) -> Iterator[Row]:
    """A row a split, head and measure. The sequence's arm has no layer, and belongs to all of its head's."""
    arms: dict[tuple, dict[str, Mapping]] = {}
    floors: dict[tuple, dict[str, Mapping]] = {}
    require_known([row["arm"] for row in content["rows"]], ARMS, "arm")
    require_known([row["split"] for row in content["rows"]], content["settings"]["splits"], "split")
    for row in content["rows"]:
        key = row["target"], row["split"], row["head"]
        if row["arm"] in (PRETRAINED, RANDOM):
            arms.setdefault((*key, row["pooling"], row["layer"]), {})[row["arm"]] = row
        else:
            floors.setdefault(key, {})[row["arm"]] = row["metrics"]
    for (target, split, head, *_), own in arms.items():
        if PRETRAINED not in own:
            continue
        pretrained, twin = own[PRETRAINED], own.get(RANDOM, {}).get("metrics")
        for metric, title in _measures(target, len(content["settings"]["classes"][target])).items():
            yield Row(
                section, f"{split}, {head}", title, pretrained["proteins"], interval(pretrained["metrics"][metric]),
                twin and interval(twin[metric]), twin and interval(pretrained["minus_random"][metric]),
                beside(floors.get((target, split, head), {}), metric), metric == "accuracy",
            )  # fmt: skip


def _probe_note(content: Mapping) -> list[str]:
    settings = content["settings"]
    splits = ", ".join(f"{name} {count:,}" for name, count in settings["splits"].items())
    seeds = " ".join(map(str, settings["options"]["seeds"]))
    text = f"proteins: {splits}; means over seeds {seeds} of the head; random weights of seed"
    return [f"{text} {settings['options']['random_seed']}"]


# ---- proteinlm project

MEASURE = INTERVAL | {"points": int, "chance?": dict.fromkeys(("mean", "low", "high"), NUMBER | None)}
COLUMN = {"points": int, "missing?": int, "classes?": dict, "purity_minus_random?": INTERVAL}
COLUMN |= {f"{arm}?": {"purity": MEASURE, "silhouette": MEASURE} for arm in ARMS}
MAP = {**dict.fromkeys(("model", "data", "metric"), str), **dict.fromkeys(("points", "neighbors"), int)}
MAP |= {"random_seed": int | None, "relatives_excluded": bool, "columns": {"*": COLUMN}}


def map_rows(content: Mapping, section: str, name: str) -> Iterator[Row]:
    """Purity and silhouette of each column of classes."""
    for column, numbers in content["columns"].items():
        require_known(numbers, [name.removesuffix("?") for name in COLUMN], f"column {column!r}")
        if PRETRAINED not in numbers:
            continue
        arms = {arm: numbers[arm] for arm in ARMS if arm in numbers}
        for measure, title in (("purity", f"{content['neighbors']}-NN purity, %"), ("silhouette", "silhouette")):
            own = numbers[PRETRAINED][measure]
            others = beside(arms, measure, PRETRAINED, RANDOM)
            if own["value"] is not None:
                chance = own["chance"]
                others["chance"] = interval({"value": chance["mean"], "low": chance["low"], "high": chance["high"]})
            twin = arms.get(RANDOM, {measure: None})[measure]
            gap = numbers.get("purity_minus_random") if measure == "purity" else None
            yield Row(
                section, f"{name}, {column}", title, own["points"], interval(own), interval(twin), interval(gap),
                others, measure == "purity",
            )  # fmt: skip


def _map_note(content: Mapping) -> list[str]:
    relatives = "; relatives are no neighbours" if content["relatives_excluded"] else ""
    text = f"{content['data']}: {content['points']:,} proteins, mean-pooled vectors, {content['metric']} distances"
    return [f"{text}{relatives}; random weights of seed {content['random_seed']}"]


# ---- proteinlm contacts

PRECISIONS = {"*": METRICS}
CONTACTS = {"model": str, "contact": str, "test": list, "test_chains": int, "seeds?": [int], "proteins": int}
CONTACTS |= {"random_seed": int | None, "arms": PRECISIONS, "differences": PRECISIONS}
SHARES: Shape = {"share": [[NUMBER | None]], "weighted_share": [[NUMBER | None]]}
PICTURED = SHARES | {"background": NUMBER, "threshold": NUMBER, "chains": int}
HEADS = {"model": str, "data": str, "arms": {PRETRAINED: PICTURED, f"{RANDOM}?": SHARES}}


def contact_rows(content: Mapping, section: str) -> Iterator[Row]:
    """Precisions, long range first."""
    arms, gaps = content["arms"], content["differences"]
    twin = arms.get(RANDOM)
    require_known(arms, (PRETRAINED, RANDOM, *FLOORS), "arms")
    for band in ("long", "medium", "short", ""):
        low, high = BANDS[band]
        reach = f"{band or 'all'}, {low}-{high} apart" if high else f"{band or 'all'}, {low} and more apart"
        for divisor, number in DIVISORS.items():
            name, title = precision_name(divisor, band), f"P@L/{number}, %" if number > 1 else "P@L, %"
            yield Row(
                section, reach, title, content["test_chains"], interval(arms[PRETRAINED][name]),
                twin and interval(twin[name]), twin and interval(gaps["minus_random"][name]),
                beside(arms, name, PRETRAINED, RANDOM), divisor == "l" and band != "",
            )  # fmt: skip


def _contact_note(content: Mapping) -> list[str]:
    name = content["test"][0]
    if not isinstance(name, str):
        raise TypeError(f"test begins with {name!r}, which is no file's name")
    lines = [f"{name}, {content['test_chains']:,} chains; contact: {content['contact']}"]
    if content["seeds"] is None:
        return lines
    text = f"regressions on {content['proteins']} chains each, drawn by seeds {' '.join(map(str, content['seeds']))}"
    return [*lines, f"{text}; random weights of seed {content['random_seed']}, fitted on the same chains"]


def head_shares(content: Mapping) -> dict:
    """The heads whose attention lands on contacts most, and the best one of random weights."""

    def ranked(report: Mapping) -> list[dict]:
        layers = zip(report["weighted_share"], report["share"], strict=True)
        cells = [
            {"layer": layer, "head": head, "attention": own, "above": above}
            for layer, rows in enumerate(layers, 1)
            for head, (own, above) in enumerate(zip(*rows, strict=True), 1)
            if own is not None
        ]
        return sorted(cells, key=lambda cell: -cell["attention"])

    require_known(content["arms"], (PRETRAINED, RANDOM), "arms")
    names = ("background", "threshold", "chains")
    twin = content["arms"].get(RANDOM)
    best = {"pretrained": ranked(content["arms"][PRETRAINED])[:BEST_HEADS], "random": ranked(twin)[:1] if twin else []}
    own = {name: content["arms"][PRETRAINED][name] for name in names}
    return best | own | {"data": content["data"]}


# ---- proteinlm variants

VARIANTS = {**dict.fromkeys(("data", "wild_type", "score"), str), "mutants": int, "random_seed": int | None}
VARIANTS |= {"models": {"*": str}, "metrics": {"*": METRICS}, "minus_random": {"*": METRICS}}


def variant_rows(content: Mapping, section: str) -> Iterator[Row]:
    """The three metrics of one assay."""
    metrics, (model,) = content["metrics"], content["models"]
    require_known(metrics, (model, RANDOM, *FLOORS), "metrics")
    for metric, title in RANKINGS.items() if metrics else ():
        twin = metrics.get(RANDOM)
        yield Row(
            section, Path(content["data"]).stem, title, content["mutants"], interval(metrics[model][metric]),
            twin and interval(twin[metric]), twin and interval(content["minus_random"][model][metric]),
            beside(metrics, metric, model, RANDOM), metric == "spearman",
        )  # fmt: skip


def _variant_note(content: Mapping) -> list[str]:
    text = f"{Path(content['data']).stem}: {content['mutants']:,} mutants of {content['wild_type']}, {content['score']}"
    return [f"{text}; random weights of seed {content['random_seed']}"]


# ---- all of it


def _sources(output: Path) -> Iterator[tuple[Path, str, Shape, str, Callable, Callable]]:
    """(file, its verb, its shape, section, rows of it, a note on it) of everything that a page can have."""
    for section in ("secondary_structure", "deeploc"):
        yield output / section / "results.json", "probe", PROBE, section, probe_rows, _probe_note
    for name in ("scope", "deeploc"):
        yield output / f"{name}_map.json", "project", MAP, "maps", partial(map_rows, name=name), _map_note
    yield output / "contacts.json", "contacts", CONTACTS, "contacts", contact_rows, _contact_note
    for path in sorted((output / "variants").glob("*.json")):
        yield path, "variants", VARIANTS, "variants", variant_rows, _variant_note


def _read(path: Path, verb: str, shape: Shape, *uses: Callable[[dict], object]) -> list:
    """use(the file's JSON) of each; InputError where that is not what the verb writes."""
    own = f"what proteinlm {verb} wrote"
    should, content = f"should be {own}", read_json(path, own, shape)
    try:
        return [use(content) for use in uses]
    except KeyError as error:
        raise InputError(f"{path}: {error} is missing; {should}") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: {str(error)[:100]}; {should}") from None


def _rows_of(rows_of: Callable, section: str, content: Mapping) -> list:
    return list(rows_of(content, section))


def _model_of(content: Mapping) -> str:
    if "models" in content:
        return next(iter(content["models"].values()))
    return content["settings"]["model"] if "settings" in content else content["model"]


def collect(output: str | Path) -> Results:
    """Every result below OUT, in the order of SECTIONS. InputError where there is none, or one that is damaged."""
    output, rows, heads = Path(output), [], {}
    notes: dict[str, list[str]] = {}
    models: dict[Path, str] = {}
    for path, verb, shape, section, rows_of, note in _sources(output):
        if os.path.lexists(path):
            made = partial(_rows_of, rows_of, section)
            own, told, models[path] = _read(path, verb, shape, made, note, _model_of)
            rows += own
            notes.setdefault(section, []).extend(told)
    path, verb = output / "contacts.heads.json", "contacts --heads"
    if os.path.lexists(path):
        heads, models[path] = _read(path, verb, HEADS, head_shares, _model_of)
    if not rows:
        raise InputError(f"{output}: no results; should be OUT of scripts/reproduce_prottrans.sh")
    first, model = next(iter(models.items()))
    for path, other in models.items():
        if other != model:
            raise InputError(f"{path}: is of model {other}, {first} of {model}; a page is of one model")
    return Results(model, rows, heads, notes, _not_run(output), _commands(output))


def _lines(path: Path) -> Sequence[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if os.path.lexists(path) else ()


def _not_run(output: Path) -> dict[str, str]:
    """step -> why, of not_run.txt."""
    parts = [line.partition(": ") for line in _lines(output / "not_run.txt")]
    return {step: reason for step, _, reason in parts}


def _commands(output: Path) -> list[str]:
    """The commands of the steps, as the script kept them."""
    return [line for path in sorted((output / "steps").glob("*.txt")) for line in _lines(path)[:1]]
