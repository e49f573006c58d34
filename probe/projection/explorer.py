"""The maps as one page to search, hover, colour and zoom (drawn on a canvas: 20,000 points move at once).

What must hold: everything that the pointer does a key does too; what the page says of a point is what the table has.
"""

from collections.abc import Mapping

import numpy as np

from probe import page
from probe.projection.maps import NAMES, Map
from probe.projection.neighbors import SILHOUETTE_POINTS
from probe.projection.picture import COLORS, NAMED, SHAPES, STYLES
from probe.projection.points import Column, Points

GRID = 10_000  # steps along the longer side of a map
NUMBER_COLORS = ("#00224e", "#434e6c", "#7d7c78", "#bcae6c", "#fee838")  # of matplotlib's cividis
BODY = """
<form id="controls" onsubmit="return false">
<label>Weights <select id="arm"></select></label> <label>Map <select id="method"></select></label>
<label>Colour by <select id="column"></select></label>
<label>Find <input id="find" type="search" placeholder="id" autocomplete="off" spellcheck="false"></label>
<span id="zoom"><button type="button" id="in" aria-label="zoom in">+</button>
<button type="button" id="out" aria-label="zoom out">&minus;</button>
<button type="button" id="whole">whole map</button></span></form>
<div id="stage"><canvas id="map" tabindex="0" role="img" aria-describedby="help"></canvas>
<div id="legend" role="group" aria-label="classes"></div></div>
<p id="status" role="status"></p>
<p class="soft" id="help">Wheel or + and &minus; zoom; dragging or arrows move; 0 shows the whole map. A click on a
class hides or shows it, with Shift it leaves that class alone. Enter in &ldquo;Find&rdquo; goes to the next one
found.</p>
"""
STYLE = """
#controls { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .6rem 0 }
#stage { display: flex; gap: 1rem; align-items: flex-start }
#map { flex: 1; min-width: 0; height: clamp(340px, 66vh, 680px); border: 1px solid var(--line); border-radius: 6px;
  touch-action: none; cursor: crosshair }
#legend { width: 13rem; max-height: clamp(340px, 66vh, 680px); overflow-y: auto; display: grid; gap: 2px }
#legend button { display: flex; gap: .5rem; align-items: center; text-align: left; background: none;
  border-color: transparent; overflow-wrap: anywhere }
#legend button:hover { background: var(--band) } #legend button[aria-pressed="false"] { opacity: .4 }
#legend .count { margin-left: auto; color: var(--soft); font-variant-numeric: tabular-nums }
#legend svg { width: 12px; height: 12px; flex: none } #bar { height: 12px; border-radius: 3px }
#bar + div { display: flex; justify-content: space-between; color: var(--soft); font-size: 13px }
#status { min-height: 1.5em; margin: .5rem 0 0; overflow-wrap: anywhere }
@media (max-width: 760px) { #stage { flex-direction: column } #map, #legend { width: 100%; flex: none } }
"""
SCRIPT = """
const ui = id => document.getElementById(id), canvas = ui("map"), pen = canvas.getContext("2d");
const view = { x: .5, y: .5, zoom: 1 }, hidden = new Set(), MISSING = -1, OTHER = data.styles, LAYERS = 16;
let hits = [], hit = -1, over = -1, place = null, queued = false;
const column = () => data.columns[+ui("column").value], map = () => data.maps[ui("arm").value][ui("method").value];
const kind = i => {  // the legend's entry of a point
  const own = column(), value = own.values[i];
  return own.numeric ? (value === null ? MISSING : 0) : Math.min(value, OTHER);
};
const shade = i => {
  const own = column(), share = (own.values[i] - own.low) / (own.high - own.low || 1) * (data.scale.length - 1);
  const step = Math.min(Math.floor(share), data.scale.length - 2);
  const parts = hex => [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16));
  const [a, b] = [parts(data.scale[step]), parts(data.scale[step + 1])];
  return `rgb(${a.map((value, k) => Math.round(value + (b[k] - value) * (share - step)))})`;
};
const side = () => Math.min(canvas.clientWidth, canvas.clientHeight) - 40;
const px = i => canvas.clientWidth / 2 + (map().x[i] / data.grid - view.x) * side() * view.zoom;
const py = i => canvas.clientHeight / 2 - (map().y[i] / data.grid - view.y) * side() * view.zoom;
const radius = () => (data.ids.length > 5000 ? 1.8 : data.ids.length > 800 ? 2.6 : data.ids.length > 100 ? 3.6 : 6)
  * Math.min(3, view.zoom ** .3);
function trace(shape, x, y, r) {
  if (shape === "circle") { pen.moveTo(x + r, y); pen.arc(x, y, r, 0, 7); }
  else if (shape === "square") pen.rect(x - .9 * r, y - .9 * r, 1.8 * r, 1.8 * r);
  else {
    pen.moveTo(x, y - 1.2 * r);
    for (const [dx, dy] of shape === "triangle" ? [[1.1, .8], [-1.1, .8]] : [[1.1, 0], [0, 1.1], [-1.1, 0]])
      pen.lineTo(x + dx * r, y + dy * r);
    pen.closePath();
  }
}
const look = entry => entry === OTHER ? [ink("soft"), "diamond"] :
  [data.colors[entry % data.colors.length], data.shapes[Math.floor(entry / data.colors.length)]];
function draw() {
  queued = false;
  const scale = devicePixelRatio || 1, [wide, high] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(wide * scale) || canvas.height !== Math.round(high * scale))
    [canvas.width, canvas.height] = [Math.round(wide * scale), Math.round(high * scale)];
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.fillStyle = ink("paper"); pen.fillRect(0, 0, wide, high);
  place = { x: new Float32Array(data.ids.length), y: new Float32Array(data.ids.length) };
  const batches = [], groups = new Map(), r = radius(), numeric = column().numeric;
  for (let i = 0; i < data.ids.length; i++) {
    const entry = kind(i), x = place.x[i] = px(i), y = place.y[i] = py(i);
    if (hidden.has(entry)) { place.x[i] = NaN; continue; }
    if (x < -r || y < -r || x > wide + r || y > high + r) continue;
    if (!groups.has(entry)) groups.set(entry, []);
    groups.get(entry).push(i);
  }
  const first = [MISSING, OTHER], order = [...groups.keys()].sort((a, b) => a - b);
  for (const entry of [...first.filter(e => groups.has(e)), ...order.filter(e => !first.includes(e))]) {
    if (numeric && entry === 0) {
      for (const i of groups.get(0)) {
        pen.fillStyle = shade(i); pen.beginPath(); trace("circle", place.x[i], place.y[i], r); pen.fill();
      }
      continue;
    }
    const [color, shape] = entry === MISSING ? [ink("soft"), "circle"] : look(entry);
    batches.push([entry, groups.get(entry), color, shape]);
  }
  for (let layer = 0; layer < LAYERS; layer++)  // classes by turns: none lies on top of another everywhere
    for (const [entry, own, color, shape] of batches) {
      pen.beginPath();
      for (let k = layer; k < own.length; k += LAYERS) trace(shape, place.x[own[k]], place.y[own[k]], r);
      if (entry === MISSING) { pen.strokeStyle = color; pen.lineWidth = 1; pen.stroke(); }
      else { pen.globalAlpha = .85; pen.fillStyle = color; pen.fill(); }
    }
  pen.globalAlpha = 1;
  marks(r, wide, high);
}
function marks(r, wide, high) {  // axes, names, what was searched for, the point under the pointer
  pen.fillStyle = ink("soft"); pen.font = "12px system-ui, sans-serif";
  pen.fillText(map().axes[0], 10, high - 10);
  pen.save(); pen.translate(16, high - 28); pen.rotate(-Math.PI / 2); pen.fillText(map().axes[1], 0, 0); pen.restore();
  if (data.named) {
    pen.fillStyle = ink("ink");
    data.ids.forEach((id, i) => { if (!isNaN(place.x[i])) pen.fillText(id, place.x[i] + r + 2, place.y[i] - r); });
  }
  const ring = (i, size, color) => {
    pen.strokeStyle = color; pen.beginPath(); pen.arc(px(i), py(i), size, 0, 7); pen.stroke();
  };
  pen.lineWidth = 2;
  for (const i of hits) ring(i, r + (i === hits[hit] ? 8 : 4), ink("mark"));
  if (over >= 0) ring(over, r + 3, ink("ink"));
}
function redraw() { if (!queued) { queued = true; requestAnimationFrame(draw); } }
const cell = (own, i) => own.numeric ? own.values[i] : own.values[i] < 0 ? null : own.classes[own.values[i]];
const about = i => [data.ids[i], ...data.columns.map(own => own.name + ": " + (cell(own, i) ?? "missing"))];
function nearest(x, y) {
  let best = -1, least = 100;  // 10 pixels
  for (let i = 0; place && i < data.ids.length; i++) {
    const far = (place.x[i] - x) ** 2 + (place.y[i] - y) ** 2;
    if (far < least) { best = i; least = far; }
  }
  return best;
}
function zoomBy(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const zoom = Math.min(200, Math.max(.5, view.zoom * factor));
  const [dx, dy] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
  view.x += dx / side() * (1 / view.zoom - 1 / zoom);
  view.y -= dy / side() * (1 / view.zoom - 1 / zoom);
  view.zoom = zoom; redraw();
}
function move(dx, dy) { view.x -= dx / side() / view.zoom; view.y += dy / side() / view.zoom; redraw(); }
function whole() { Object.assign(view, { x: .5, y: .5, zoom: 1 }); redraw(); }
function swatch(entry) {
  const [color, shape] = entry === MISSING ? ["none", "circle"] : look(entry);
  const fill = entry === MISSING ? 'fill="none" stroke="currentColor"' : `fill="${color}"`;
  const paths = { circle: "M11 6A5 5 0 1 1 1 6A5 5 0 1 1 11 6", square: "M1 1H11V11H1Z", triangle: "M6 0L12 11H0Z",
    diamond: "M6 0L12 6L6 12L0 6Z" };
  return `<svg viewBox="0 0 12 12" aria-hidden="true"><path ${fill} d="${paths[shape]}"/></svg>`;
}
function entries() {  // of the legend: [entry, name, count]
  const own = column(), counts = new Map();
  for (let i = 0; i < data.ids.length; i++) counts.set(kind(i), (counts.get(kind(i)) || 0) + 1);
  const names = own.numeric ? [] : own.classes.slice(0, OTHER).map((name, k) => [k, name]);
  if (counts.has(OTHER)) names.push([OTHER, own.classes.length - OTHER + " others"]);
  if (counts.has(MISSING)) names.push([MISSING, "missing"]);
  return names.map(([entry, name]) => [entry, name, counts.get(entry) || 0]);
}
function legend() {
  const own = column(), box = ui("legend"), all = entries();
  box.textContent = "";
  if (own.numeric) {
    box.innerHTML = '<div id="bar"></div><div><span></span><span></span></div>';
    ui("bar").style.background = `linear-gradient(to right, ${data.scale})`;
    [own.low, own.high].forEach((value, k) => { box.querySelectorAll("span")[k].textContent = value.toPrecision(4); });
  }
  for (const [entry, name, count] of all) {
    const button = document.createElement("button");
    button.type = "button"; button.dataset.entry = entry; button.innerHTML = swatch(entry);
    button.setAttribute("aria-pressed", !hidden.has(entry));
    for (const [text, style] of [[name, ""], [count.toLocaleString("en"), "count"]]) {
      const span = document.createElement("span");
      span.textContent = text; span.className = style; button.append(span);
    }
    button.addEventListener("click", event => {
      if (event.shiftKey) {
        const alone = all.every(([other]) => hidden.has(other) === (other !== entry));
        hidden.clear();
        if (!alone) all.forEach(([other]) => { if (other !== entry) hidden.add(other); });
      } else if (!hidden.delete(entry)) hidden.add(entry);
      for (const one of box.querySelectorAll("button"))
        one.setAttribute("aria-pressed", !hidden.has(+one.dataset.entry));
      over = -1; redraw();
    });
    box.append(button);
  }
}
function search() {
  const word = ui("find").value.trim().toLowerCase(), rank = id => id === word ? 0 : id.startsWith(word) ? 1 : 2;
  const low = data.ids.map(id => id.toLowerCase());
  hits = word ? low.flatMap((id, i) => id.includes(word) ? [i] : []) : [];
  hits.sort((a, b) => rank(low[a]) - rank(low[b]) || a - b); hit = hits.length === 1 ? 0 : -1;
  ui("status").textContent = !word ? "" : hits.length === 1 ? about(hits[0]).join("; ") :
    hits.length.toLocaleString("en") + " found" + (hits.length ? "; Enter goes to the next" : "");
  redraw();
}
function next() {
  if (!hits.length) return;
  hit = (hit + 1) % hits.length;
  const i = hits[hit];
  Object.assign(view, { x: map().x[i] / data.grid, y: map().y[i] / data.grid, zoom: Math.max(view.zoom, 4) });
  ui("status").textContent = `${hit + 1} of ${hits.length}: ` + about(i).join("; ");
  redraw();
}
const options = (select, names, label = name => name) => names.forEach((name, k) => {
  const option = document.createElement("option");
  option.value = select === ui("column") ? k : name; option.textContent = label(name); select.append(option);
});
options(ui("arm"), data.arms);
options(ui("method"), data.methods, name => data.names[name]);
options(ui("column"), data.columns.map(own => own.name));
for (const id of ["arm", "method"]) ui(id).addEventListener("change", () => { over = -1; whole(); });
ui("column").addEventListener("change", () => { hidden.clear(); over = -1; legend(); redraw(); });
ui("find").addEventListener("input", search);
ui("find").addEventListener("keydown", event => { if (event.key === "Enter") { event.preventDefault(); next(); } });
ui("in").addEventListener("click", () => zoomBy(1.5));
ui("out").addEventListener("click", () => zoomBy(1 / 1.5));
ui("whole").addEventListener("click", whole);
let held = null;
const at = event => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left - canvas.clientLeft, event.clientY - box.top - canvas.clientTop];
};
canvas.addEventListener("pointerdown", event => { held = at(event); });
addEventListener("pointerup", () => { held = null; });
canvas.addEventListener("pointermove", event => {
  const [x, y] = at(event);
  if (held && event.buttons) { move(x - held[0], y - held[1]); held = [x, y]; tip(); return; }
  const was = over; over = nearest(x, y);
  tip(over < 0 ? "" : about(over).join("\\n"), event.clientX, event.clientY);
  if (was !== over) redraw();
});
canvas.addEventListener("pointerleave", () => { over = -1; tip(); redraw(); });
canvas.addEventListener("click", event => { const i = nearest(...at(event)); if (i >= 0)
  ui("status").textContent = about(i).join("; "); });
canvas.addEventListener("wheel", event => { event.preventDefault(); tip();
  zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? .05 : .0015)), ...at(event)); }, { passive: false });
canvas.addEventListener("keydown", event => {
  const keys = { ArrowLeft: () => move(40, 0), ArrowRight: () => move(-40, 0), ArrowUp: () => move(0, 40),
    ArrowDown: () => move(0, -40), "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5),
    "0": whole };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
addEventListener("resize", redraw);
document.addEventListener("themechange", () => { legend(); redraw(); });
canvas.setAttribute("aria-label", `a map of ${data.ids.length.toLocaleString("en")} points; Find names any of them`);
legend(); draw();
"""


def _on_grid(own: Map) -> dict:
    """Whole numbers from 0 to GRID, the same scale along both axes, the map in the middle."""
    low, high = own.xy.min(0), own.xy.max(0)
    scale = (high - low).max() or 1.0
    x, y = np.rint(((own.xy - (low + high) / 2) / scale + 0.5) * GRID).astype(int).T
    return {"x": x.tolist(), "y": y.tolist(), "axes": own.axes}


def _column(column: Column) -> dict:
    if column.classes:
        return {"name": column.name, "classes": column.classes, "values": column.values.tolist(), "numeric": False}
    values = [float(value) if np.isfinite(value) else None for value in column.values]
    known = column.values[column.known]
    extent = {"low": float(known.min()), "high": float(known.max())}
    return {"name": column.name, "classes": (), "values": values, "numeric": True} | extent


def explorer(
    title: str, caption: str, points: Points, maps: Mapping[str, Mapping[str, Map]], numbers: Mapping[str, list]
) -> str:
    """The page. maps: arm -> method -> Map; numbers: the columns of the table below (page.table)."""
    arms, methods = list(maps), list(next(iter(maps.values())))
    data = {
        "ids": points.ids,
        "columns": [_column(column) for column in points.columns],
        "arms": arms,
        "methods": methods,
        "names": NAMES,
        "maps": {arm: {method: _on_grid(own) for method, own in maps[arm].items()} for arm in arms},
        "grid": GRID,
        "colors": COLORS,
        "shapes": SHAPES,
        "styles": STYLES,
        "scale": NUMBER_COLORS,
        "named": len(points) < NAMED,
    }
    note = "Measured in the full space of the vectors, not in the map; in brackets 95% intervals over points; chance: "
    note += "labels shuffled, with the range of 95% of the shuffles. Silhouettes are of at most "
    note += f"{SILHOUETTE_POINTS:,} points, drawn once."
    tables = f'<h2>Numbers</h2><p class="soft">{note}</p>{page.table(numbers)}' if numbers else ""
    body = BODY + tables
    return page.make_page(title, body, caption=caption, data=data, style=STYLE, script=SCRIPT)
