"""Pages clicked through in a headless Chromium, without a package for it: the steps are a script put into a copy.

    report = click_through(page, tmp_path, "fire('#map', 'pointermove', {x: 40, y: 90}); return at('#tip').textContent")
    report.value, report.errors, report.requests

What must hold: an exception of the page or of the steps, a console error and anything asked of the network are in the
report; steps that do not come to their end fail the test.
"""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--virtual-time-budget=5000", "--window-size=1200,900",
    "--enable-logging=stderr",
)  # fmt: skip
# Without a screen frames come when they like and virtual time does not wait for them: timers stand in.
WATCH = """<script>window.requestAnimationFrame = callback => setTimeout(() => callback(performance.now()), 16);
window.report = {errors: [], requests: [], value: null, ended: false};
addEventListener("error", event => report.errors.push(event.message || event.target.tagName + " did not load"), true);
addEventListener("unhandledrejection", event => report.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => report.requests.push(event.blockedURI));
</script>"""
STEPS = """<script>(async () => {
const at = selector => document.querySelector(selector);
const fire = (target, kind, init = {}) => {  // an event as a reader's hand makes it; x and y: of the window
  const node = typeof target === "string" ? at(target) : target;
  const known = {bubbles: true, cancelable: true, clientX: init.x, clientY: init.y, pointerId: 1, ...init};
  const type = kind.startsWith("pointer") ? PointerEvent : kind === "wheel" ? WheelEvent :
    kind.startsWith("key") ? KeyboardEvent : kind === "click" || kind === "dblclick" ? MouseEvent : Event;
  node.dispatchEvent(new type(kind, known));
};
const scratch = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const pixel = (canvas, x, y) => {  // "r,g,b" of a canvas, x and y from its corner as the window counts
  const scale = devicePixelRatio;
  scratch.drawImage(at(canvas), Math.round(x * scale), Math.round(y * scale), 1, 1, 0, 0, 1, 1);
  return [...scratch.getImageData(0, 0, 1, 1).data].slice(0, 3).join();
};
const frame = () => new Promise(done => setTimeout(done, 50));
try { report.value = await (async () => { %s })(); report.ended = true; }
catch (error) { report.errors.push(String(error && error.stack || error)); }
for (const entry of performance.getEntriesByType("resource"))
  if (!entry.name.startsWith("data:")) report.requests.push(entry.name);
const out = document.createElement("pre");
out.id = "report"; out.textContent = JSON.stringify(report); document.body.append(out);
})();</script>"""


@dataclass(frozen=True)
class Report:
    """What the steps returned, and what went wrong."""

    value: object
    errors: list[str]
    requests: list[str]


def click_through(page: Path, folder: Path, steps: str, *, dark: bool = False) -> Report:
    """Open a copy of `page` and run `steps`, the body of an async function (`at`, `fire`, `pixel`, `await frame()`)."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + WATCH, 1)
    copy = folder / f"watched_{page.name}"
    end = text.rindex("</body>")
    copy.write_text(text[:end] + STEPS.replace("%s", steps) + text[end:], encoding="utf-8")
    words = [browser, *SWITCHES, f"--user-data-dir={folder / 'profile'}"]
    words += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*words, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, f"the steps did not end; the browser says {done.stderr[-2000:]}"
    report = json.loads(html.unescape(match[1]))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Report(report["value"], report["errors"] + console, report["requests"])
