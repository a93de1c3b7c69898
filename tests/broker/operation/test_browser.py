"""The operator's page in a real browser: headless Chromium over a local proxy of the socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealserve.errors import SealserveError
from sealserve.simulator.td import SoftwareTd
from tests.broker.conftest import World
from tests.broker.operation.chromium import CHROMIUM, Tab, browser, plain_proxy
from tests.broker.operation.test_page import HOSTILE
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_chromium() -> None:
    if CHROMIUM is None:
        missing("Chromium", "apt install chromium (`scripts/system-packages.sh --tests`)")


_CONTRAST = """
(() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = text => text.match(/[0-9.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
  }
  return bad;
})()
"""
"""Text whose contrast is below 4.5:1 (WCAG 2.2, success criterion 1.4.3)."""


_STICKS_OUT = """
[...document.querySelectorAll("body *")]
  .filter(e => !e.parentElement.closest(".scroll"))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))
"""
"""Elements wider than the window that no scrolling box holds."""


@pytest.fixture
def tab(world: World, page: Path, tmp_path: Path) -> Iterator[Tab]:
    """A tab on the page of a broker that has released, denied and met hostile peers."""
    world.ask()
    with pytest.raises(SealserveError):
        world.ask(SoftwareTd(world.platform, firmware="another"))
    for text in HOSTILE:
        world.broker.audit.append(
            {"event": "release", "verdict": "denied", "code": text, "peer": text,
             "resource": text, "reasons": [{"code": text, "expected": text, "actual": text}]}
        )  # fmt: skip
    with plain_proxy(page) as url, browser(tmp_path / "profile") as opened:
        opened.open(url)
        yield opened


def colours(tab: Tab, scheme: str) -> list[Any]:
    tab.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    style = "getComputedStyle(document.body)"
    return [tab.evaluate(f"{style}.backgroundColor"), tab.evaluate(f"{style}.color")]


def test_the_page_in_a_browser(tab: Tab, tmp_path: Path) -> None:
    # Hostile text ran nothing and made no element.
    assert "owned" not in tab.evaluate("document.title")
    assert tab.evaluate("document.title").startswith("SIMULATION: test broker")
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate("document.querySelectorAll('h1').length") == 1
    assert tab.evaluate("document.querySelectorAll('img, svg, iframe, form').length") == 0
    shown = tab.evaluate("document.body.innerText")
    assert HOSTILE[0] in shown
    assert "policy.mrtd_unknown" in shown

    # The style sheet was loaded, nothing came from elsewhere, and the browser has no complaint.
    origin = tab.evaluate("location.origin")
    assert all(url.startswith(origin + "/") for url in tab.requested())
    assert f"{origin}/page.css" in tab.requested()
    assert tab.complaints() == []

    # Light and dark are different, and legible in both, with all details open.
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    light, light_bad = colours(tab, "light"), tab.evaluate(_CONTRAST)
    dark, dark_bad = colours(tab, "dark"), tab.evaluate(_CONTRAST)
    assert light != dark
    assert (light_bad, dark_bad) == ([], [])

    # Nothing sticks out: tables scroll inside their section, on a telephone too.
    for width in (1280, 420):
        shot = tmp_path / f"{width}.png"
        tab.screenshot(shot, width)
        assert shot.read_bytes().startswith(b"\x89PNG")
        assert tab.evaluate(_STICKS_OUT) == [], width
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


def test_the_page_for_who_does_not_see_it(tab: Tab) -> None:
    """What the browser tells a screen reader: landmarks, headings, named tables and headers."""
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and "role" in node
    ]
    roles = {role for role, _ in found}
    assert {"main", "navigation", "banner", "contentinfo", "heading", "table"} <= roles
    headings = [name for role, name in found if role == "heading"]
    assert headings[0] == "test broker"
    assert {"Resources", "Who holds leases", "Last denials", "Last releases"} <= set(headings)
    assert all(name for role, name in found if role in ("table", "link", "region", "heading"))
    assert any(role == "rowheader" and "models/demo" in name for role, name in found)
    assert tab.evaluate("document.documentElement.lang") == "en"


def test_a_script_could_not_run_even_if_it_came_in(tab: Tab) -> None:
    """The policy of the answer, not only the escaping: a script put into the page is blocked."""
    tab.evaluate(
        "(() => { const s = document.createElement('script');"
        " s.textContent = \"document.title = 'owned'\"; document.body.append(s); })()"
    )
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=\"color:red\">x</p>')")
    assert "owned" not in tab.evaluate("document.title")
    assert any("Content Security Policy" in text for text in tab.complaints())
