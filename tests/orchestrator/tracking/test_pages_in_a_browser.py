"""Each page in a real browser, cut off from any network: it is drawn, no two words lie on each other, dark is dark.

Needs Chromium; skipped where there is none.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from support.compared import facts
from support.pages import image
from support.runs import RATE, event

from orchestrator.compare.comparison import compare
from orchestrator.compare.facts import Axis
from orchestrator.compare.page import compare_page
from orchestrator.cost.ledger import Held, build_ledger
from orchestrator.plan.basis import Basis
from orchestrator.plan.estimate import estimate
from orchestrator.plan.failures import failure_models
from orchestrator.plan.figure import figure_of
from orchestrator.plan.goodput import Recovery
from orchestrator.plan.request import make_request
from orchestrator.plan.simulate import Scenario, simulate
from orchestrator.settings import Settings
from orchestrator.tracking.cost_page import cost_page
from orchestrator.tracking.plan_picture import plan_html
from orchestrator.tracking.plots import Curve
from orchestrator.tracking.run_timeline import draw_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
OVERLAPS = """<script>
const found = [];
for (const svg of document.querySelectorAll("svg")) {
  const paper = svg.getBoundingClientRect();
  if (!paper.width) continue; // behind a switch
  const boxes = [...svg.querySelectorAll("g[id^=text_], text")]
    .map(g => [g.id || g.textContent,
      (g.querySelector(":scope > g, :scope > use, :scope > path") ? g.lastElementChild : g)
      .getBoundingClientRect()]).filter(([, b]) => b.width);
  boxes.forEach(([name, a], at) => {
    if (a.left < paper.left - 1 || a.right > paper.right + 1 || a.top < paper.top - 1 || a.bottom > paper.bottom + 1)
      found.push(name + " outside");
    for (const [other, b] of boxes.slice(at + 1))
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3) found.push(name + " on " + other);
  });
  found.push("words:" + boxes.length);
}
document.body.dataset.found = found.join(";");
document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
</script>"""


def plan_page() -> bytes:
    flags = {"preset": "v3-671b", "accelerator": "H800", "gpus": "2048", "tokens": "14.8T", "precision": "fp8"}
    plan = estimate(make_request(None, flags, []), Basis.load(Settings.load(), "llama-3"))
    return plan_html(figure_of(plan), "v3-671b on 2,048 H800", [("cost", "$5.31 M"), ("note", "long " * 60)])


def timeline_page() -> bytes:
    run = simulate(Scenario(16384, 8, failure_models()["llama-3"], Recovery(), seconds=54 * 86400))
    return draw_html(run, "16,384 GPUs", Decimal(48000), "USD")


def ledger_page() -> bytes:
    events = [
        event("started", 9, step=0, tokens=0, world_size=2),
        *(event("progress", 10 + n, step=n, tokens=100 * n) for n in range(15)),
        event("ended", 25, outcome="failed", failure_class="worker-lost", seq=900),
        event("started", 39, attempt=2, step=2, tokens=200, world_size=2),
        *(event("progress", 40 + n, attempt=2, step=2 + n, tokens=200 + 100 * n) for n in range(1, 14)),
    ]
    ledger = build_ledger(events, [Held(1, 0, 26), Held(2, 30, 60)], RATE)
    curve = Curve([10.0 + n for n in range(40)], [5.0 - n / 20 for n in range(40)])
    return cost_page(ledger, curve, Curve([12.0, 50.0], [2.0, 1.5]), title="Cost of a run")


def comparison_page() -> bytes:
    """As many runs as there may be, some of which end close to each other."""
    runs = [facts(f"run-{n}", {1: 5.0 + n / 9, 10: 3.0, 20 + n: 2.0 + n % 7 / 40}) for n in range(20)]
    return compare_page(compare(runs, Axis.dollars))


def browse(page: Path, *options: str) -> str:
    """The browser's standard output; it can reach nothing, and starts from nothing."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1000,1400",
        f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("make", [plan_page, timeline_page, ledger_page, comparison_page])
def test_a_page_in_a_browser(make: Callable[[], bytes], tmp_path: Path) -> None:
    page, measured = tmp_path / "page.html", tmp_path / "measured.html"
    page.write_bytes(make())
    measured.write_bytes(make().replace(b"</body>", OVERLAPS.encode() + b"</body>"))
    dom = browse(measured, "--dump-dom")
    data = re.search(r'<body data-found="([^"]*)" data-wide="(\w+)"', dom)
    assert data is not None, dom[-500:]
    found = data[1].split(";")
    assert min(int(word.removeprefix("words:")) for word in found if word.startswith("words:")) > 8
    assert [word for word in found if not word.startswith("words:")] == []
    assert data[2] == "false"
    papers = []
    for scheme in ("1", "0"):
        shot = tmp_path / f"{scheme}.png"
        browse(page, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}")
        papers.append(image(shot.read_bytes()).getpixel((3, 3)))
    assert papers == [(255, 255, 255), (0x12, 0x18, 0x1F)]
