"""Results as prottrans.md, and as prottrans.html: the same tables under an overview, in one file that stands alone.

What must hold: a published number never stands without its source and the reasons against comparing it.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from probe import page
from probe.tables.published import PUBLISHED, Published
from probe.tables.rows import SECTIONS, STEPS, Interval, Results, Row
from tape.reporting.tables import markdown_table

INTRO = (
    "Each number with its 95% interval, drawn over proteins (variants: over mutants). Random weights: the same network "
    "before pretraining, read in the same way. The difference draws the same proteins for both; above 0 with its whole "
    "interval it shows that pretraining taught the encoder something."
)
ABOUT = {
    "maps": "Neighbours in the full space of the vectors, not in a picture. ProtTrans' figures are pictures without "
    "numbers, so nothing published stands beside these.",
    "variants": "Intervals say how far other mutants of the same protein would move a number, not another protein.",
}
STYLE = """
.own :is(th, td):nth-child(2) { text-align: left } p, li { max-width: 62rem } details { margin: 1rem 0 }
figure { margin: 1rem 0 } figcaption { color: var(--soft); font-size: 14px }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink) } svg .value { fill: var(--soft) }
.better { stroke: var(--accent); fill: var(--accent) } .worse { stroke: var(--mark); fill: var(--mark) }
.neither { stroke: var(--soft); fill: var(--paper) } svg .axis { stroke: var(--line) }
"""


def show(interval: Interval | None, percent: bool, sign: str = "") -> str:
    """'64.4 [64.0, 64.7]', or a dash."""
    if interval is None:
        return "-"
    values = [interval[name] for name in ("value", "low", "high")]
    if values[0] is None:
        return "not defined"
    form = f"{sign}.1f" if percent else f"{sign}.3f"
    texts = ["none" if value is None else format(value * (100 if percent else 1), form) for value in values]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def verdict(row: Row) -> str:
    """better, worse or neither: where the interval of pretrained minus random lies."""
    gap = row.difference
    if gap is None or None in gap.values():
        return ""
    return "better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "neither"


def section_table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and a line a row; a column for each floor that a row has."""
    floors = list(dict.fromkeys(name for row in rows for name in row.beside))
    table = [["set", "measure", "n", "pretrained", "random", "pretrained − random", *floors]]
    for row in rows:
        percent = row.measure.endswith("%")
        cells = [row.of, row.measure, f"{row.count:,}", show(row.pretrained, percent), show(row.random, percent)]
        cells.append(show(row.difference, percent, "+"))
        table.append(cells + [show(row.beside.get(name), percent) for name in floors])
    return table


def summary(rows: Sequence[Row]) -> list[str]:
    """How often pretraining shows, where it does not, and what does as well without a language model."""
    judged = [row for row in rows if verdict(row)]
    lines = []

    def names_of(some: Sequence[Row], of: int) -> str:
        names = "; ".join(f"{row.of}, {row.measure.removesuffix(', %')}" for row in some)
        return "everywhere" if len(some) == of > 1 else names

    if judged:
        better = [row for row in judged if verdict(row) == "better"]
        lines.append(f"Better than random weights in {len(better)} of {len(judged)} differences.")
        for word, text in (("neither", "No difference shown"), ("worse", "Worse than random weights")):
            some = [row for row in judged if verdict(row) == word]
            lines += [f"{text}: {names_of(some, len(judged))}."] if some else []
    beaten: dict[str, list[Row]] = {}
    for row in rows:
        for name, own in row.beside.items():
            if None not in (own["value"], row.pretrained["value"]) and own["value"] >= row.pretrained["value"]:
                beaten.setdefault(name, []).append(row)
    has = {name: sum(name in row.beside for row in rows) for name in beaten}
    text = "At least as good without pretraining"
    return lines + [f"{text}: {name} ({names_of(some, has[name])})." for name, some in beaten.items()]


def heads_table(heads: Mapping) -> list[list[str]]:
    """The best heads, the best one of random weights, the background."""
    counted = f"weights ≥ {heads['threshold']:g} on contacts, %"
    table = [["weights", "layer", "head", "attention on contacts, %", counted]]
    for weights, own in (("pretrained", heads["pretrained"]), ("random, best head", heads["random"])):
        for cell in own:
            above = "too few" if cell["above"] is None else f"{100 * cell['above']:.1f}"
            table.append([weights, str(cell["layer"]), str(cell["head"]), f"{100 * cell['attention']:.1f}", above])
    return [*table, ["all pairs of residues", "", "", f"{100 * heads['background']:.1f}", ""]]


def missing(results: Results) -> list[str]:
    """What is not on the page, and why."""
    there = {row.section for row in results.rows} | {STEPS.get(step) for step in results.not_run}
    lines = [f"Not run: {step}, {reason}" for step, reason in results.not_run.items()]
    return lines + [f"Not run: {name}, no results in OUT" for section, name in SECTIONS.items() if section not in there]


def of_section(results: Results, section: str) -> list[Row]:
    return [row for row in results.rows if row.section == section]


def caption(results: Results) -> str:
    return f"{Path(results.model).name}: {results.model}; {len(results.rows)} measurements"


def title(results: Results) -> str:
    return f"What {Path(results.model).resolve().name} knows, beside random weights"


# ---- Markdown


def _markdown_section(results: Results, section: str) -> Iterator[str]:
    rows = of_section(results, section)
    published = [table for table in PUBLISHED if table.section == section]
    if not rows:
        return
    yield f"## {SECTIONS[section]}"
    if section in ABOUT:
        yield ABOUT[section]
    yield "\n".join(f"- {note}" for note in results.notes[section])
    yield markdown_table(section_table(rows))
    if lines := summary(rows):
        yield "\n".join(lines)
    if section == "contacts" and results.heads:
        yield f"Heads, on {results.heads['chains']:,} chains of {results.heads['data']}:"
        yield markdown_table(heads_table(results.heads))
    for table in published:
        yield f"### Published: {table.title}"
        yield f"Source: {table.source}. How it differs: {'; '.join(table.why)}."
        yield markdown_table([list(table.header), *map(list, table.rows)])


def to_markdown(results: Results) -> str:
    """prottrans.md."""
    parts = [f"# {title(results)}", INTRO, f"Model: `{results.model}`"]
    if absent := missing(results):
        parts.append("\n".join(f"- {line}" for line in absent))
    for section in SECTIONS:
        parts += _markdown_section(results, section)
    if results.commands:
        parts += ["## Commands", "```bash\n" + "\n".join(results.commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


# ---- HTML

ROW, LEFT, WIDTH, RIGHT = 22, 330, 560, 210  # pixels of the overview: a row, its name, the axis, its numbers


def overview(rows: Sequence[Row]) -> str:
    """An SVG: pretrained minus random with its interval, a line a main row, in hundredths."""
    drawn = [row for row in rows if row.main and verdict(row)]
    if not drawn:
        return ""
    ends = [100 * row.difference[name] for row in drawn for name in ("low", "high")]
    low, high = min(0, *ends), max(0, *ends)
    margin = 0.04 * (high - low) or 1

    def x(value: float) -> float:
        return LEFT + WIDTH * (value - low + margin) / (high - low + 2 * margin)

    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / step <= 10)
    ticks = [step * i for i in range(-int(-low // step), int(high // step) + 1)]
    height = ROW * (len(drawn) + 2)
    parts = [f'<svg viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" role="img" aria-label="differences">']
    for tick in ticks:
        width = 2 if tick == 0 else 1
        parts.append(f'<line class="axis" stroke-width="{width}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="6" '
                     f'y2="{height - ROW - 8}"/><text class="value" text-anchor="middle" x="{x(tick):.1f}" '
                     f'y="{height - 12}">{f"{tick:+g}" if tick else 0}</text>')  # fmt: skip
    for place, row in enumerate(drawn):
        y, (value, start, end) = ROW * place + 18, (100 * row.difference[name] for name in ("value", "low", "high"))
        name = html.escape(f"{row.of}, {row.measure.removesuffix(', %')}")
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{name}</text>'
                     f'<g class="{verdict(row)}"><line stroke-width="3" x1="{x(start):.1f}" x2="{x(end):.1f}" y1="{y}" '
                     f'y2="{y}"/><circle stroke-width="2" cx="{x(value):.1f}" cy="{y}" r="4.5"/></g>'
                     f'<text class="value" x="{LEFT + WIDTH + 12}" y="{y + 4}">{value:+.1f} [{start:+.1f}, {end:+.1f}]'
                     f"</text>")  # fmt: skip
    text = "Pretrained minus random weights, in hundredths of each measure (percentage points), with 95% intervals. "
    text += "Filled blue: above 0; filled red: below 0; hollow: no difference shown."
    return "\n".join(["<figure>", *parts, "</svg>", f"<figcaption>{text}</figcaption></figure>"])


def _table(rows: Sequence[Sequence[str]]) -> str:
    return page.table({name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])})


def _paragraphs(lines: Sequence[str], style: str = "") -> str:
    return "".join(f"<p{style}>{html.escape(line)}</p>\n" for line in lines)


def _published_html(table: Published) -> str:
    lines = [f"Source: {table.source}. How it differs: {'; '.join(table.why)}."]
    head = f"<details open><summary>Published: {html.escape(table.title)}</summary>"
    return head + _paragraphs(lines, ' class="soft"') + _table([table.header, *table.rows]) + "</details>"


def to_html(results: Results) -> str:
    """prottrans.html."""
    parts = [_paragraphs([INTRO]), _paragraphs(missing(results), ' class="soft"'), overview(results.rows)]
    for section, name in SECTIONS.items():
        rows = of_section(results, section)
        if not rows:
            continue
        parts += [f"<h2>{name}</h2>", _paragraphs([ABOUT[section]] if section in ABOUT else [])]
        parts += [_paragraphs(results.notes[section], ' class="soft"')]
        parts += [f'<div class="own">{_table(section_table(rows))}</div>', _paragraphs(summary(rows))]
        if section == "contacts" and results.heads:
            parts.append(_paragraphs([f"Heads, on {results.heads['chains']:,} chains of {results.heads['data']}:"]))
            parts.append(_table(heads_table(results.heads)))
        parts += [_published_html(table) for table in PUBLISHED if table.section == section]
    if results.commands:
        lines = html.escape("\n".join(results.commands))
        parts.append(f'<h2>Commands</h2><div class="scroll"><pre><code>{lines}</code></pre></div>')
    return page.make_page(title(results), "\n".join(parts), caption=caption(results), style=STYLE)
