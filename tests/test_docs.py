"""README and docs: links and paths that lead somewhere, a front page of a size that is read, its picture."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
FOLDERS = "proteinlm|pretrain|converter|tape|probe|demo|scripts|benchmarks|docs|tests|examples|conda_env"
NOT_OURS = {"examples/pretrain_tape.sh", "benchmarks/NAME.py"}  # a file of the original project, and a placeholder


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings: 'Ten lines of Python' -> 'ten-lines-of-python'."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links (to a file, a heading or both) that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if "://" in target:
            continue
        if not path.exists() or (anchor and anchor not in anchors(path.read_text() if name else text)):
            broken.append(target)
    return broken


def missing_paths(page: Path, text: str) -> list[str]:
    """Files of this repository that the text names and that do not exist."""
    named = set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]+\.(?:py|sh|sbatch|md|yaml|json|svg|png))\b", text))
    named |= {f"tests/{name}" for name in re.findall(r"(?<![\w/.-])((?:unit|seam|parity|e2e)/[\w/]+\.py)\b", text)}
    return sorted(name for name in named - NOT_OURS if not (ROOT / name).exists())


@pytest.mark.parametrize("rule", [broken_links, missing_paths])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path, rule: Callable[[Path, str], list[str]]):
    assert rule(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (broken_links, "[results](docs/result.md)"),
        (broken_links, "[metrics](docs/formats.md#no-such-heading)"),
        (broken_links, "# One\n[two](#two)"),
        (missing_paths, "as `tape/models/no_such_file.py` says"),
        (missing_paths, "| unit/tape/test_no_such_thing.py |"),
    ],
)
def test_a_page_that_names_what_does_not_exist_is_seen(rule: Callable[[Path, str], list[str]], text: str):
    assert rule(ROOT / "README.md", text) != []


def test_front_page_fits_a_reader():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert [line for line in lines if len(line) > 120] == []


def test_front_page_has_a_picture():
    """One that GitHub shows: a PNG in the repository, opaque (so that it is read on a dark page too) and small."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"!\[.+\]\((.+\.png)\)", text)
    data = (ROOT / picture).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) < 200_000
    from matplotlib import image

    pixels = image.imread(ROOT / picture)
    assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1
