"""The page around the pictures of probe/: it stands alone, holds any data and turns dark."""

import json

import pytest

from probe.page import DARK, LIGHT, embed_json, make_page, table
from probe.themes import draw_all, short
from tests.browser import click_through

NASTY = "</script><script>alert(1)</script><!-- \u2028 & \"quotes' <b>"


def test_whatever_the_data_hold_they_stay_data():
    text = embed_json({"id": NASTY})
    assert "<" not in text and json.loads(text) == {"id": NASTY}
    assert "<script>alert" not in make_page(NASTY, "", caption=NASTY, data=[NASTY])
    assert "<b>" not in table({NASTY: [NASTY]}, NASTY)
    with pytest.raises(ValueError, match="JSON compliant"):
        embed_json([float("nan")])


def test_a_picture_draws_names_as_they_are(tmp_path):
    names = "a $x^$ and {b}", short("n" * 999), short("a\x01b"), "名"
    (_, drawn, *_) = draw_all(tmp_path / "a", (9, 1), lambda figure, theme: figure.suptitle("\n".join(names)))
    assert all(name in drawn.read_text() for name in ("$x^$", "n" * 59 + "…", "a?b"))


def themed(page):
    page.write_text(make_page("P1", "<p id=note></p>", data=NASTY, script="""
        document.addEventListener("themechange", () => { document.getElementById("note").textContent = ink("paper"); });
    """))  # fmt: skip
    return page


def test_a_page_turns_dark_by_its_button(tmp_path):
    steps = "const before = ink('paper'); fire('#theme', 'click'); tip('near the corner', 1190, 890); "
    steps += "const box = at('#tip').getBoundingClientRect(); "
    steps += "return [data, before, at('#note').textContent, box.right <= innerWidth, box.bottom <= innerHeight]"
    report = click_through(themed(tmp_path / "page.html"), tmp_path, steps)
    assert report.value == [NASTY, LIGHT["paper"], DARK["paper"], True, True]
    assert report.errors == [] and report.requests == []


@pytest.mark.slow
def test_a_page_is_dark_where_the_system_is(tmp_path):
    steps = "const before = ink('paper'); fire('#theme', 'click'); return [before, at('#note').textContent]"
    report = click_through(themed(tmp_path / "page.html"), tmp_path, steps, dark=True)
    assert report.value == [DARK["paper"], LIGHT["paper"]]


@pytest.mark.slow
def test_the_watch_sees_errors_and_what_a_page_asks_for(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(make_page("P1", '<img src="https://example.org/x.png">', script="undefined_name()"))
    report = click_through(page, tmp_path, "at('#nowhere').click()")
    assert any("undefined_name" in error for error in report.errors)
    assert any("null" in error for error in report.errors)
    assert any("example.org" in request for request in report.requests)
