"""An HTML page that stands alone: colours, caption, data and script are in it, and it asks the network for nothing.

    make_page("P1", "<canvas id=map></canvas>", caption="data, model, seed", data={"points": [...]}, script="...")

The script finds the data as `data`, a colour of the present theme as `ink("accent")` (a key of LIGHT), and hears
"themechange" on `document` when the reader's system or the page's own button turns light to dark. What must hold: the
Content-Security-Policy lets nothing be loaded; whatever the data hold, they cannot end the script or become markup.
"""

import html
import json
from collections.abc import Mapping

LIGHT = {
    "ink": "#1b2430", "soft": "#5b6775", "line": "#d5dbe3", "paper": "#ffffff", "band": "#f3f5f8", "accent": "#1f5fa8",
    "mark": "#b3352b",
}  # fmt: skip
DARK = {
    "ink": "#e4e9f0", "soft": "#9aa7b6", "line": "#36404d", "paper": "#12171e", "band": "#1b222c", "accent": "#6fb0f5",
    "mark": "#f0806f",
}  # fmt: skip
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 1.5rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem }
header { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem }
.soft { color: var(--soft) } code { font: 13px/1.45 ui-monospace, monospace }
label { color: var(--soft); font-size: 14px }
button, select, input { font: inherit; font-size: 14px; color: var(--ink); background: var(--band);
  border: 1px solid var(--line); border-radius: 6px; padding: .2rem .6rem }
button { cursor: pointer } :focus-visible { outline: 2px solid var(--accent); outline-offset: 1px }
table { border-collapse: collapse; font-size: 13px } .scroll { overflow-x: auto }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums } th:first-child, td:first-child { text-align: left }
#tip { position: fixed; display: none; background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  padding: .4rem .6rem; font-size: 13px; box-shadow: 0 4px 14px #0003; pointer-events: none; white-space: pre-line;
  max-width: 26rem; overflow-wrap: anywhere; z-index: 2 }
"""
SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const ink = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
const announce = () => document.dispatchEvent(new Event("themechange"));
darkSystem.addEventListener("change", announce);
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, now = root.dataset.theme || (darkSystem.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  announce();
});
function tip(text, x, y) {  // beside the point (x, y) of the window; no text: gone
  const box = document.getElementById("tip");
  box.textContent = text || "";
  box.style.display = text ? "block" : "none";
  if (!text) return;
  box.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.offsetWidth - 8)) + "px";
  box.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.offsetHeight - 8)) + "px";
}
"""


def _colors() -> str:
    light, dark = ("; ".join(f"--{name}: {value}" for name, value in theme.items()) for theme in (LIGHT, DARK))
    return (
        f":root {{ color-scheme: light; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {dark} }} }}\n"
        f':root[data-theme="light"] {{ color-scheme: light; {light} }}\n'
        f':root[data-theme="dark"] {{ color-scheme: dark; {dark} }}'
    )


def embed_json(data: object) -> str:
    """JSON that may stand inside a <script>: no `<` that could end it. ValueError for NaN, which JSON does not have."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def make_page(
    title: str, body: str, *, caption: str = "", data: object = None, style: str = "", script: str = ""
) -> str:
    """The page. title, caption: text (data, model, seed); body: HTML, whose texts the caller escapes; style, script:
    of this page, after what every page has; data: whatever JSON can hold."""
    name = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<title>{name}</title><style>
{_colors()}
{STYLE}{style}</style></head><body>
<header><h1>{name}</h1><button type="button" id="theme" aria-label="light or dark">&#9680;</button></header>
<p class="soft" id="caption">{html.escape(caption)}</p>
{body}
<div id="tip" role="status"></div>
<script id="data" type="application/json">{embed_json(data)}</script>
<script>{SCRIPT}</script>
<script>{script}</script></body></html>
"""


def table(columns: Mapping[str, list], caption: str = "") -> str:
    """An HTML table of columns (heading -> cells, as text)."""
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = zip(*columns.values(), strict=True)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    note = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{note}<thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
