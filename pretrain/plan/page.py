"""The plan as one HTML page without links: the trade-off drawn, what each layout costs on hover, a table to sort."""

import html
import json
import math
from collections.abc import Mapping, Sequence

SHOWN = 400  # rows of the table; the drawing has every layout
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 920, 440, 76, 24, 20, 48
SHARDINGS = {"none": "replicas", "optimizer": "distributed optimizer", "full": "FSDP2"}
STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5b6775; --line: #d5dbe3; --paper: #fff; --band: #f3f5f8;
  --none: #2563b8; --optimizer: #b5651d; --full: #2f8552; --best: #c22f4e }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --soft: #9aa7b6; --line: #36404d; --paper: #12171e;
  --band: #1b222c; --none: #6aa5f5; --optimizer: #e5a15a; --full: #63c28b; --best: #ff7d97 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2rem }
p.soft, .soft { color: var(--soft) } code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: var(--band); padding: .8rem 1rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif } svg text { fill: var(--soft) }
.axis { stroke: var(--line) } .limit { stroke: var(--best); stroke-dasharray: 5 4 }
.none { fill: var(--none); color: var(--none) } .optimizer { fill: var(--optimizer); color: var(--optimizer) }
.full { fill: var(--full); color: var(--full) } .mark { opacity: .75; cursor: pointer } .mark:hover { opacity: 1 }
.unfit { opacity: .18 } .ring { fill: none; stroke: var(--best); stroke-width: 2 } svg .name { fill: var(--best);
  font-weight: 600 }
#tip { position: fixed; display: none; background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  padding: .5rem .7rem; font-size: 13px; box-shadow: 0 4px 14px #0003; pointer-events: none; white-space: pre-line;
  max-width: 26rem; z-index: 2 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; width: 100% }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums } th:first-child, td:first-child { text-align: left }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid var(--none) }
tr.best td { background: var(--band); font-weight: 600 } tr.unfit td { opacity: .5 }
"""
SCRIPT = """
const plan = JSON.parse(document.getElementById("plan").textContent), tip = document.getElementById("tip");
const gb = x => x.toFixed(x < 10 ? 2 : 1) + " GB";
function details(layout) {
  const lines = [layout.name, ""];
  lines.push(layout.fits ? "fits" : "does not fit", gb(layout.total_memory_gb) + " a GPU: " +
    Object.entries(layout.memory_gb).map(([name, size]) => name + " " + gb(size)).join(", "));
  for (const [axis, phases] of Object.entries(layout.traffic_gb))
    lines.push("sent over " + axis + ": " + Object.entries(phases).map(([p, s]) => p + " " + gb(s)).join(", "));
  lines.push((1000 * layout.step_seconds).toFixed(1) + " ms a step, bubble " + (100 * layout.bubble).toFixed(1) +
    "%, MFU " + (100 * layout.mfu).toFixed(1) + "%");
  lines.push(Math.round(layout.real_tokens_per_second).toLocaleString("en") + " real tokens/s, " +
    layout.days.toFixed(2) + " days" + (layout.cost === null ? "" : ", cost " + Math.round(layout.cost)
    .toLocaleString("en")));
  if (layout.flags) lines.push("", layout.flags);
  return lines.join("\\n");
}
for (const mark of document.querySelectorAll("[data-layout]")) {
  const show = event => {
    tip.textContent = details(plan.layouts[mark.dataset.layout]);
    tip.style.display = "block";
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const y = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
    tip.style.left = Math.max(4, x) + "px"; tip.style.top = Math.max(4, y) + "px";
  };
  mark.addEventListener("mousemove", show);
  mark.addEventListener("mouseleave", () => { tip.style.display = "none"; });
}
const body = document.querySelector("tbody");
document.querySelectorAll("th button").forEach((button, column) => {
  let up = column === 0;
  button.addEventListener("click", () => {
    const value = row => { const cell = row.cells[column]; return cell.dataset.value ?? cell.textContent; };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    });
    body.append(...(up ? rows : rows.reverse()));
    up = !up;
  });
});
"""


def to_html(plan: Mapping) -> str:
    """The page of a plan (`report.to_dict`)."""
    cluster, best = plan["cluster"], plan["layouts"][plan["recommended"]]
    gpus = cluster["gpus_per_node"] * cluster["nodes"]
    title = f"{plan['parameters'] / 1e6:,.0f}M parameters on {gpus} x {cluster['gpu']}"
    source = f"calibrated by {cluster['calibration']}" if cluster["calibration"] else "from data-sheet figures"
    days = f"{best['days']:.2f} days to {plan['tokens']:.3g} real tokens"
    cost = "" if best["cost"] is None else f", cost {best['cost']:,.0f}"
    facts = (
        f"{gb(best['total_memory_gb'])} a GPU, {1e3 * best['step_seconds']:,.1f} ms a step, MFU {best['mfu']:.1%}, "
        f"{best['real_tokens_per_second']:,.0f} real tokens/s; {days}{cost}"
    )
    data = json.dumps(plan, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="soft">{cluster["nodes"]} nodes of {cluster["gpus_per_node"]}, {cluster["memory_gb"]:g} GB a GPU; global batch
{plan["global_batch_size"]} rows of {plan["seq_length"]} tokens; {html.escape(plan["lengths"]["source"])}. Memory and
traffic are counted from the code that trains; times are {html.escape(source)}, ±{cluster["error"]:.0%}.</p>
<h2>Recommended: {html.escape(best["name"])}</h2>
<p>It is {html.escape(plan["reason"])}.<br><span class="soft">{facts}.</span></p>
<pre>{html.escape(plan["start"])}</pre>
<h2>Memory against speed</h2>
{_scatter(plan)}
<h2>Layouts</h2>
<p class="soft">The fastest {min(SHOWN, len(plan["layouts"])):,} of {len(plan["layouts"]):,}; a click on a heading
sorts, the pointer on a row shows all about it.</p>
<div class="scroll"><table><thead><tr>{_heads(plan)}</tr></thead><tbody>
{_rows(plan)}
</tbody></table></div>
<p class="soft"><code>{html.escape(plan["command"])}</code></p>
<div id="tip" role="status"></div>
<script id="plan" type="application/json">{data}</script><script>{SCRIPT}</script></body></html>
"""


def gb(size: float) -> str:
    return f"{size:.2f} GB" if size < 10 else f"{size:.1f} GB"


def _heads(plan: Mapping) -> str:
    names = ["layout", "GB a GPU", "ms a step", "bubble", "MFU", "real tokens/s", "days"]
    names += ["cost"] if plan["cluster"]["price_per_gpu_hour"] is not None else []
    return "".join(f'<th><button type="button">{name}</button></th>' for name in names)


def _rows(plan: Mapping) -> str:
    lines = []
    layouts: Sequence[Mapping] = plan["layouts"]
    numbers = [*range(min(SHOWN, len(layouts)))]
    for number in numbers if plan["recommended"] in numbers else [*numbers, plan["recommended"]]:
        layout = layouts[number]
        kind = "best" if number == plan["recommended"] else "" if layout["fits"] else "unfit"
        cells = [
            (layout["total_memory_gb"], f"{layout['total_memory_gb']:.1f}"),
            (layout["step_seconds"], f"{1e3 * layout['step_seconds']:,.1f}"),
            (layout["bubble"], f"{layout['bubble']:.1%}"),
            (layout["mfu"], f"{layout['mfu']:.1%}"),
            (layout["real_tokens_per_second"], f"{layout['real_tokens_per_second']:,.0f}"),
            (layout["days"], f"{layout['days']:.2f}"),
        ]
        cells += [(layout["cost"], f"{layout['cost']:,.0f}")] if layout["cost"] is not None else []
        body = "".join(f'<td data-value="{value}">{text}</td>' for value, text in cells)
        lines.append(f'<tr class="{kind}" data-layout="{number}"><td>{html.escape(layout["name"])}</td>{body}</tr>')
    return "\n".join(lines)


def _scatter(plan: Mapping) -> str:
    """Memory of a GPU, logarithmic, against real tokens a second; faint where it does not fit."""
    layouts, limit = plan["layouts"], plan["cluster"]["memory_gb"]
    memories = [layout["total_memory_gb"] for layout in layouts]
    low, high = math.log10(min(*memories, limit) * 0.9), math.log10(min(max(*memories, limit), 20 * limit) * 1.1)
    fastest = max(layout["real_tokens_per_second"] for layout in layouts) * 1.05

    def x(memory: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (min(math.log10(memory), high) - low) / (high - low)

    def y(speed: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - speed / fastest)

    parts = [_grid(x, y, 10**low, 10**high, fastest)]
    parts.append(f'<line class="limit" x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text x="{x(limit) - 6:.1f}" y="{TOP + 12}" text-anchor="end">{limit:g} GB</text>')
    for number in reversed(range(len(layouts))):
        layout = layouts[number]
        kind = f"mark {layout['sharding']}" + ("" if layout["fits"] else " unfit")
        place = x(layout["total_memory_gb"]), y(layout["real_tokens_per_second"])
        parts.append(_mark(place, kind, number, layout["layout"]["tp"] * layout["layout"]["pp"] > 1))
    best = layouts[plan["recommended"]]
    cx, cy = x(best["total_memory_gb"]), y(best["real_tokens_per_second"])
    anchor, shift = ("end", -12) if cx > WIDTH / 2 else ("start", 12)
    parts.append(f'<circle class="ring" cx="{cx:.1f}" cy="{cy:.1f}" r="9"/>')
    parts.append(
        f'<text class="name" x="{cx + shift:.1f}" y="{cy + 4:.1f}" text-anchor="{anchor}">'
        f"{html.escape(best['name'])}</text>"
    )
    legend = " &nbsp; ".join(f'<span class="{kind}">●</span> {name}' for kind, name in SHARDINGS.items())
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="memory of a GPU against real tokens a second">'
        f"{''.join(parts)}</svg><p class='soft'>{legend} &nbsp; ■ with tp or pp &nbsp; faint: does not fit</p>"
    )


def _mark(place: tuple[float, float], kind: str, number: int, is_square: bool) -> str:
    cx, cy = place
    if is_square:
        return f'<rect class="{kind}" data-layout="{number}" x="{cx - 4:.1f}" y="{cy - 4:.1f}" width="8" height="8"/>'
    return f'<circle class="{kind}" data-layout="{number}" cx="{cx:.1f}" cy="{cy:.1f}" r="5"/>'


def _short(number: float) -> str:
    """'12.5 M'."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _grid(x, y, low: float, high: float, fastest: float) -> str:
    parts = []
    for memory in (size * 10**power for power in range(-1, 5) for size in (1, 2, 5)):
        if low <= memory <= high:
            parts.append(
                f'<line class="axis" x1="{x(memory):.1f}" x2="{x(memory):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            )
            parts.append(f'<text x="{x(memory):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{memory:g}</text>')
    step = 10 ** math.floor(math.log10(fastest))
    step = next(size for size in (step / 5, step / 2, step, 2 * step) if fastest / size <= 8)
    for count in range(int(fastest / step) + 1):
        height = y(count * step)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{_short(count * step)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">GB a GPU (1e9 bytes)</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 6}">real tokens/s</text>')
    return "".join(parts)
