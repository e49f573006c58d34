"""The card of a model in models/: README.md there, whose numbers are all from files.

    python -m scripts.model_card NAME RESULTS

begins a card, with what people have to write, or replaces what stands between its two marks. RESULTS holds, as far as
it was measured:

    perplexity_*.json   of benchmarks/heldout_families.py     layers_*.json   results.json of proteinlm probe
    prottrans.json      of scripts/reproduce_prottrans.sh     table.json      results.json of scripts/reproduce_table.sh
    commands.txt        a line each of the first two: the file's name, a space, the command that made it

What must hold: beside every number stands what is published of ESM-2 8M, or that nothing is; under it the command.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import proteinlm
from probe.tables.published import PUBLISHED
from probe.tables.rows import SECTIONS as SECTIONS_MEASURED
from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import write_text
from proteinlm.model_dir.find import SAFE_NAME, find_model
from proteinlm.untrusted.json_files import read_json
from tape.reporting.tables import markdown_table

BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"
UNWRITTEN = "(to be written)"
SECTIONS = {  # of a card, what each has to say
    "What it is not": "what should not be concluded from it or done with it; a test fixture, where its probes do not "
    "clear random weights",
    "Data": "sources with their licences (Pfam CC0, UniProt CC BY 4.0) and dates; balancing; what was held out and how "
    "proteins near a judged set were taken out, with the identity; licence of these weights",
    "Training": "recipe and seed with their commands, hardware, hours; training.json has every option",
    "Where it fails": "null results, long proteins, rare letters, families it never saw",
}
NONE_PUBLISHED = "not published"

Interval = Mapping[str, float | None]


def cell(interval: Interval | None, digits: int = 3, sign: str = "") -> str:
    """'0.644 [0.640, 0.647]', or a dash."""
    if interval is None or interval["value"] is None:
        return "-"
    value, low, high = (
        "-" if interval[k] is None else f"{interval[k]:{sign}.{digits}f}" for k in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def published_of_8m(section: str, of: str) -> str:
    """What is published of ESM-2 8M for a row of prottrans.json, with the names of its sets."""
    for table in (table for table in PUBLISHED if table.section == section):
        for _, *cells in (row for row in table.rows if row[0] == "ESM-2 8M"):
            columns = dict(zip(table.header[1:], cells, strict=True))
            if section == "variants":
                columns = {name: value for name, value in columns.items() if name.lower().startswith(of.lower())}
            if section == "contacts" and not of.startswith("long"):
                columns = {}
            if columns:
                return "; ".join(f"{value} ({name})" for name, value in columns.items())
    return NONE_PUBLISHED


def prottrans_lines(content: Mapping) -> Iterator[str]:
    """The main measures of reproduce_prottrans.sh."""
    rows = [("measure", "set", "number", "this model", "random weights", "difference", "beside", "ESM-2 8M, published")]
    for row in (row for row in content["rows"] if row["main"]):
        scale = 100 if row["measure"].endswith("%") else 1
        digits = 1 if scale == 100 else 3
        pretrained, random, gap = (
            own and {key: None if value is None else scale * value for key, value in own.items()}
            for own in (row["pretrained"], row["random"], row["difference"])
        )
        floors = [(name, own["value"]) for name, own in row["beside"].items() if own and own["value"] is not None]
        beside = ", ".join(f"{name} {scale * value:.{digits}f}" for name, value in floors) or "-"
        esm = published_of_8m(row["section"], row["of"])
        values = cell(pretrained, digits), cell(random, digits), cell(gap, digits, "+")
        rows.append((row["measure"], row["of"], f"{row['count']:,}", *values, beside, esm))
    yield from markdown(rows)
    yield ""
    for section, title in SECTIONS_MEASURED.items():
        yield from (f"- {title}: {note}" for note in content["notes"].get(section, ()))
    for table in (table for table in PUBLISHED if any(row[0] == "ESM-2 8M" for row in table.rows)):
        yield f"- ESM-2 8M, {SECTIONS_MEASURED[table.section].lower()}: {table.source}; {'; '.join(table.why)}"


def layer_lines(content: Mapping) -> Iterator[str]:
    """A probe at every layer."""
    rows = [("target", "split", "head", "layer", "this model", "random weights, same layer", "difference")]
    own = [row for row in content["rows"] if row["layer"] is not None]
    keys = ("target", "split", "head", "pooling", "layer")
    twins = {tuple(row[k] for k in keys): row["metrics"]["accuracy"] for row in own if row["arm"] == "random"}
    for row in (row for row in own if row["arm"] == "pretrained"):
        gap = row.get("minus_random", {}).get("accuracy")
        values = cell(row["metrics"]["accuracy"]), cell(twins.get(tuple(row[k] for k in keys))), cell(gap, sign="+")
        rows.append((row["target"], row["split"], row["head"], row["layer"], *values))
    floors = [f"{row['arm']} {cell(row['metrics']['accuracy'])}" for row in content["rows"] if row["layer"] is None]
    alone = f" The sequence alone: {', '.join(floors)}." if floors else ""
    yield f"Accuracy of a head on each layer (0: the embedding).{alone} ESM-2 8M: {NONE_PUBLISHED}."
    yield from ("", *markdown(rows))


def perplexity_lines(content: Mapping) -> Iterator[str]:
    """Held-out families, or another FASTA."""
    value, (low, high) = content["perplexity"], content["interval_95"]
    parts = {"families": content["families"], "proteins of no family": content.get("proteins_of_none", 0)}
    judged = " and ".join(f"{number:,} {name}" for name, number in parts.items() if number)
    yield f"- **{value:.2f} [{low:.2f}, {high:.2f}]** over {judged}, whose letters alone give"
    yield f"  {content['unigram_of_these_residues']:.2f} ({content['masked_residues']:,} masked residues). A tenth of"
    yield "  them stays visible, as BERT has it, which lowers the perplexity by itself; the letters' has no such help."
    yield "- ESM-2 8M, published, each on a set of its own and not to be compared: 13.13 (README of Synthyra's"
    yield "  SpeedrunningPLMs), 10.26 (its shape trained anew: documentation of NVIDIA/bionemo-framework)."


def task_lines(content: Mapping) -> Iterator[str]:
    """The five TAPE tasks, finetuned."""
    arms = list(dict.fromkeys(row["arm"] for row in content["rows"]))
    rows = [("task", "split", "metric", *arms, "pretrained - random", "ESM-2 8M")]
    gaps = {(d["task"], d["split"], d["metric"]): d for d in content["differences"] if d.get("minus") == "random"}
    values = {(row["task"], row["split"], row["metric"], row["arm"]): row for row in content["rows"]}
    for key in dict.fromkeys(key[:3] for key in values):
        own = [values.get((*key, arm)) for arm in arms]
        cells = [cell(row and {"value": row["value"], **row["interval"]}) for row in own]
        rows.append((*key, *cells, cell(gaps.get(key), sign="+"), NONE_PUBLISHED))
    yield from markdown(rows)


def markdown(rows: Sequence[Sequence[object]]) -> list[str]:
    return markdown_table([list(map(str, row)) for row in rows]).splitlines()


def commands_of(path: Path, content: Mapping) -> list[str]:
    """The commands that made a file, as it says itself, or else commands.txt beside it; InputError without one."""
    beside = path.with_name("commands.txt")
    lines = beside.read_text(encoding="utf-8").splitlines() if beside.is_file() else []
    own = [command for name, _, command in (line.partition(" ") for line in lines) if name == path.name]
    commands = content.get("commands") or ([content["command"]] if "command" in content else own)
    if not commands:
        raise InputError(f"{beside}: no line of {path.name}; should be its name, a space, the command that made it")
    return commands


KINDS = {  # file -> its heading and its lines
    "perplexity_*.json": ("Perplexity of hidden residues", perplexity_lines),
    "prottrans.json": ("Without finetuning", prottrans_lines),
    "layers_*.json": ("Layer by layer", layer_lines),
    "table.json": ("TAPE's tasks, finetuned", task_lines),
}


def numbers(results: Path) -> str:
    """The part of a card between its marks."""
    lines = []
    for pattern, (title, lines_of) in KINDS.items():
        for path in sorted(results.glob(pattern)):
            detail = path.stem.partition("_")[2].replace("_", " ")
            lines += [f"## {title}{f': {detail}' if detail else ''}", "", f"From {path.name}.", ""]
            content = read_json(path)
            lines += [*lines_of(content), "", "```bash", *commands_of(path, content), "```", ""]
    if not lines:
        raise InputError(f"{results}: holds none of {', '.join(KINDS)}")
    return "\n".join([BEGIN, *lines, END])


def skeleton(name: str, directory: Path) -> str:
    """A card whose words are still to be written."""
    config = proteinlm.load(directory, device="cpu").config
    shape = f"{config.num_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads"
    weights = f"{(directory / SAFE_NAME).stat().st_size / 1e6:.1f} MB in half precision"
    lines = [f"# {name}", "", f"A masked language model of proteins with {config.num_parameters(True):,} parameters"]
    lines += [f"({shape}), {weights}, in the format of ESM-2: Hugging Face's `EsmForMaskedLM`."]
    if (directory / "training.json").is_file():
        run = read_json(directory / "training.json")
        cost = f"{run['consumed_tokens']:,} tokens, {run['seconds_of_steps'] / 3600:.1f} hours of steps"
        lines += [f"Trained for {run['iteration']:,} steps: {cost} (training.json)."]
    lines += ["", "```python", "import proteinlm", "", f'encoder = proteinlm.load("{name}")', "```", ""]
    for title, content in SECTIONS.items():
        lines += [f"## {title}", "", f"{UNWRITTEN}: {content}.", ""]
    return "\n".join([*lines, BEGIN, END, ""])


def card(directory: Path, results: Path) -> None:
    """README.md of the model: begun, or its numbers replaced."""
    path = directory / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else skeleton(directory.name, directory)
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise InputError(f"{path}: should have one {BEGIN} and one {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(path, before + numbers(results) + after)


def main(argv: Sequence[str] | None = None) -> int:
    parser = errors.ArgumentParser("scripts.model_card", description="Write the numbers of a model's card.")
    parser.add_argument("model", metavar="NAME", help="of a model in models/, or its directory")
    parser.add_argument("results", metavar="RESULTS", type=Path, help="a folder of JSON files")
    args = parser.parse_args(argv)
    card(find_model(args.model), args.results)
    return 0


cli = partial(errors.run, main)

if __name__ == "__main__":
    sys.exit(cli())
