"""What every head of an encoder attends to in one protein, as a page that stands alone.

    Path("heads.html").write_text(head_view(encoder, "P1", sequence, labels))

The page has, of each head, the strongest weights as lines from residue to residue. What must hold: it stays below
about 10 MB, so of a large model it has fewer lines a head, and says how many; a weight is rounded to 1/255.

Legend: L residues, M = layers * heads maps, K lines of a head.
"""

import base64

import numpy as np
import torch

from probe.contacts.chains import DEFINITION
from probe.page import make_page
from proteinlm.encoder import Encoder, make_stream
from proteinlm.errors import InputError
from proteinlm.network.attention.maps import AttentionMaps

LINES_A_RESIDUE = 10
MOST_LINES = 1_300_000  # 5 bytes each, a third more as text: 8.7 MB
LONGEST = 2_000  # residues: beyond, lines are narrower than a pixel
BODY = """<p><label>layer <select id="layer"></select></label> <label>head <select id="head"></select></label>
<label>strongest lines <input id="lines" type="range" min="1"></label> <span id="least" class="soft"></span>
<label id="known"><input id="contacts" type="checkbox" checked> contacts</label></p>
<canvas id="arcs" tabindex="0" aria-label="attention from residue to residue"></canvas>
<p class="soft" id="legend"></p>
<h2>All heads</h2><p class="soft" id="gridlegend"></p><canvas id="grid" aria-label="heads by layer"></canvas>"""
STYLE = "canvas { width: 100%; display: block } #grid { cursor: pointer } select { margin-right: .6rem }"
SCRIPT = """
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const weights = bytes(data.weights), places = new Uint16Array(bytes(data.places).buffer);
const L = data.sequence.length, K = data.lines, key = (i, j) => i * L + j;
const contacts = new Set((data.contacts || []).flatMap(([i, j]) => [key(i, j), key(j, i)]));
const at = id => document.getElementById(id), arcs = at("arcs"), grid = at("grid");
const GAP = 10, name = i => data.sequence[i] + (i + 1);
let hovered = -1;
for (const [id, count] of [["layer", data.layers], ["head", data.heads]])
  for (let n = 1; n <= count; n++) at(id).add(new Option(n, n - 1));
at("lines").max = K; at("lines").value = Math.min(K, L);
at("known").style.display = data.contacts ? "" : "none";
at("legend").textContent = "Above the axis a residue attends to a later one, below to an earlier one; the stronger the "
  + "weight, the heavier the line." + (data.contacts ? " Red: the two are in contact; grey: contacts." : "");
at("gridlegend").textContent = data.contacts ? "The fuller the colour, the more of the head's attention lands on "
  + "contacts (of all pairs " + (100 * data.background).toFixed(1) + "% are). Click one to see it." :
  "The fuller the colour, the larger the head's largest weight. Click one to see it.";
function surface(canvas, height) {
  const width = canvas.clientWidth, scale = devicePixelRatio || 1;
  canvas.style.height = height + "px"; canvas.width = width * scale; canvas.height = height * scale;
  const pen = canvas.getContext("2d"); pen.scale(scale, scale); return [pen, width];
}
const chosen = () => +at("layer").value * data.heads + +at("head").value;
function strongest() {  // [from, to, weight] of the chosen head, the heaviest first
  const start = chosen() * K, count = Math.min(+at("lines").value, data.counts[chosen()]), rows = [];
  for (let n = start; n < start + count; n++) rows.push([places[2 * n], places[2 * n + 1], weights[n] / 255]);
  return rows;
}
const x = (i, width) => 20 + (i + .5) * (width - 40) / L;
function arc(pen, width, middle, i, j, up) {  // the axis is GAP high on either side
  const a = x(i, width), b = x(j, width), reach = Math.max(6, Math.min(middle - GAP - 4, Math.abs(b - a) / 2));
  pen.beginPath(); pen.ellipse((a + b) / 2, up ? middle - GAP : middle + GAP, Math.abs(b - a) / 2, reach, 0,
    up ? Math.PI : 0, up ? 2 * Math.PI : Math.PI); pen.stroke();
}
function draw() {
  const height = 460, middle = height / 2, [pen, width] = surface(arcs, height), rows = strongest();
  if (at("contacts").checked && data.contacts) {
    pen.strokeStyle = ink("line"); pen.lineWidth = .7;
    for (const [i, j] of data.contacts) { arc(pen, width, middle, i, j, true); arc(pen, width, middle, i, j, false); }
  }
  const largest = rows.length ? rows[0][2] : 1, mark = ink("mark"), accent = ink("accent");
  for (const [i, j, weight] of rows.slice().reverse()) {
    const near = hovered < 0 || i === hovered || j === hovered;
    const touch = contacts.has(key(i, j)), crowd = Math.min(1, 200 / rows.length);
    pen.globalAlpha = near ? (touch ? .9 : .15 + (.3 + .5 * crowd) * weight / largest) : .05;
    pen.strokeStyle = touch ? mark : accent;
    pen.lineWidth = .4 + (.8 + 1.4 * crowd) * weight / largest;
    if (i === j) { pen.beginPath(); pen.arc(x(i, width), middle, 5, 0, 7); pen.stroke(); }
    else arc(pen, width, middle, i, j, i < j);
  }
  pen.globalAlpha = 1; pen.fillStyle = ink("soft"); pen.textAlign = "center"; pen.font = "10px system-ui";
  const letters = (width - 40) / L >= 7, step = L <= 60 ? 5 : L <= 400 ? 25 : 100;
  for (let i = 0; i < L; i++) {
    if (letters) pen.fillText(data.sequence[i], x(i, width), middle + 4);
    if ((i + 1) % step === 0) pen.fillText(i + 1, x(i, width), letters ? height - 4 : middle + 4);
  }
  at("least").textContent = rows.length + " of " + data.counts[chosen()] + " kept, down to "
    + (rows.length ? rows[rows.length - 1][2] : 0).toFixed(3);
}
function drawGrid() {
  const side = Math.max(10, Math.min(26, (grid.clientWidth - 40) / data.heads)), high = 22 + side * data.layers;
  const [pen] = surface(grid, high + 14), top = Math.max(...data.shares);
  pen.font = "10px system-ui"; pen.textAlign = "right";
  for (let n = 0; n < data.shares.length; n++) {
    const layer = Math.floor(n / data.heads), head = n % data.heads;
    pen.globalAlpha = .06 + .94 * data.shares[n] / top; pen.fillStyle = ink("accent");
    pen.fillRect(40 + head * side, layer * side, side - 1, side - 1); pen.globalAlpha = 1;
    if (n === chosen()) { pen.strokeStyle = ink("mark"); pen.lineWidth = 2;
      pen.strokeRect(41 + head * side, layer * side + 1, side - 3, side - 3); }
    if (!head && (side > 12 || layer % 4 === 0)) {
      pen.fillStyle = ink("soft"); pen.fillText(layer + 1, 34, (layer + .5) * side + 4); }
  }
  pen.fillStyle = ink("soft"); pen.textAlign = "left";
  pen.fillText("layers from top to bottom, heads from left to right", 40, high);
  grid.dataset.side = side;
}
function list(title, rows, other) {
  if (!rows.length) return "";
  return "\\n" + title + " " + rows.slice(0, 6).map(row => name(row[other]) + " " + row[2].toFixed(3)
    + (contacts.has(key(row[0], row[1])) ? " (contact)" : "")).join(", ") + (rows.length > 6 ? " ..." : "");
}
function show(i, px, py) {
  if (i !== hovered) { hovered = i; draw(); }
  if (i < 0) return tip("");
  const rows = strongest();
  tip(name(i) + list("attends to", rows.filter(row => row[0] === i), 1)
    + list("is attended by", rows.filter(row => row[1] === i), 0), px, py);
}
arcs.addEventListener("pointermove", event => {
  const box = arcs.getBoundingClientRect();
  const i = Math.floor((event.clientX - box.left - 20) * L / (box.width - 40));
  show(i >= 0 && i < L ? i : -1, event.clientX, event.clientY);
});
arcs.addEventListener("pointerleave", () => show(-1));
function cell(event) {
  const box = grid.getBoundingClientRect(), side = +grid.dataset.side;
  const head = Math.floor((event.clientX - box.left - 40) / side), layer = Math.floor((event.clientY - box.top) / side);
  return head >= 0 && head < data.heads && layer >= 0 && layer < data.layers ? [layer, head] : null;
}
grid.addEventListener("pointermove", event => {
  const place = cell(event);
  if (!place) return tip("");
  const value = data.shares[place[0] * data.heads + place[1]];
  tip("layer " + (place[0] + 1) + ", head " + (place[1] + 1) + ": " + (data.contacts ?
    (100 * value).toFixed(1) + "% of its attention on contacts" : "largest weight " + value.toFixed(3)),
    event.clientX, event.clientY);
});
grid.addEventListener("pointerleave", () => tip(""));
grid.addEventListener("click", event => {
  const place = cell(event);
  if (place) { [at("layer").value, at("head").value] = place; redraw(); }
});
function redraw() { draw(); drawGrid(); }
for (const id of ["layer", "head", "lines", "contacts"]) at(id).addEventListener("input", redraw);
addEventListener("resize", redraw); document.addEventListener("themechange", redraw);
[at("layer").value, at("head").value] = data.start;
redraw();
"""


class _Lines:
    """The strongest weights of every map, and one number about each."""

    def __init__(self, maps: int, length: int, contact: np.ndarray | None):
        self.most = min(length**2, LINES_A_RESIDUE * length, max(1, MOST_LINES // maps))
        self.places = np.zeros((maps, self.most, 2), np.uint16)
        self.weights = np.zeros((maps, self.most), np.uint8)
        self.shares = np.zeros(maps)
        self._contact = None if contact is None else torch.from_numpy(contact)

    def add(self, maps: AttentionMaps) -> None:
        residues = maps.residues
        values, flat = residues.flatten(1).topk(self.most)
        length = residues.shape[-1]
        pairs = torch.stack((flat // length, flat % length), -1)
        self.places[maps.heads] = pairs.cpu().numpy()
        self.weights[maps.heads] = (255 * values.clamp(0, 1)).round().byte().cpu().numpy()
        if self._contact is None:
            self.shares[maps.heads] = values[:, 0].cpu().numpy()
        else:
            on = (residues * self._contact.to(residues.device)).sum((1, 2)) / residues.sum((1, 2))
            self.shares[maps.heads] = on.nan_to_num(0.0).cpu().numpy()


def head_view(encoder: Encoder, name: str, sequence: str, labels: np.ndarray | None = None, caption: str = "") -> str:
    """The page. labels [L, L]: 1 for a contact, where the structure is known; caption: data, model, seed."""
    if len(sequence) > LONGEST:
        raise InputError(f"{name}: {len(sequence):,} residues; a page shows proteins of up to {LONGEST:,}")
    config = encoder.config
    lines = _Lines(encoder.num_maps, len(sequence), None if labels is None else labels == 1)
    encoder.attention_sums(lines.add, make_stream(encoder.check([sequence]), encoder.tokenizer))
    text = f"{caption}; of each head its {lines.most:,} largest weights, rounded to 1/255"
    data = {
        "sequence": sequence.upper(),
        "layers": config.num_layers,
        "heads": config.num_attention_heads,
        "lines": lines.most,
        "counts": (lines.weights > 0).sum(1).tolist(),
        "places": base64.b64encode(lines.places.astype("<u2").tobytes()).decode(),
        "weights": base64.b64encode(lines.weights.tobytes()).decode(),
        "shares": [round(float(share), 5) for share in lines.shares],
        "contacts": None,
        "start": [int(place) for place in divmod(int(lines.shares.argmax()), config.num_attention_heads)],
    }
    if labels is not None:
        text += f"; contact: {DEFINITION}"
        first, second = np.nonzero(np.triu(labels == 1, 1))
        data["contacts"] = np.stack((first, second), 1).tolist()
        data["background"] = float((labels == 1).mean())
    return make_page(f"Attention in {name}", BODY, caption=text, style=STYLE, script=SCRIPT, data=data)
