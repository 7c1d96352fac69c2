"""Report and site in a browser: axe-core finds no fault, and nothing is wider than the screen.

Needs Chromium, Node and a folder with playwright-core and axe-core::

    npm install --prefix FOLDER playwright-core axe-core
    MLECS_BROWSER=FOLDER CHROMIUM=/usr/bin/chromium make test-slow
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlecs_lightning.report.page import to_html
from mlecs_lightning.report.results.reading import read_runs
from tests.unit.report.run_files import a_config, a_history, a_summary, write_run

MODULES = Path(os.environ.get("MLECS_BROWSER", "/nonexistent")) / "node_modules"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
PROGRAM = """
const { chromium } = require(process.env.MODULES + '/playwright-core');
const urls = process.argv.slice(1);
(async () => {
  const found = [];
  const executablePath = process.env.CHROMIUM;
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  for (const url of urls) for (const colorScheme of ['light', 'dark'])
  for (const width of [390, 1280]) {
    const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme });
    await page.goto(url);
    await page.waitForTimeout(300);
    await page.evaluate(() => document.querySelectorAll('details').forEach(d => { d.open = true }));
    const root = 'document.documentElement';
    const over = await page.evaluate(`${root}.scrollWidth - ${root}.clientWidth`);
    await page.addScriptTag({ path: process.env.MODULES + '/axe-core/axe.min.js' });
    const { violations, passes } = await page.evaluate(() => axe.run());
    const faults = violations.map(v => [v.impact, v.id]);
    found.push({ url, colorScheme, width, over, passes: passes.length, faults });
    await page.close();
  }
  await browser.close();
  console.log(JSON.stringify(found));
})();
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and MODULES.is_dir() and shutil.which("node")),
        reason="needs Chromium, Node and MLECS_BROWSER, a folder with playwright-core and axe-core",
    ),
]


def test_the_report_is_accessible_and_fits_every_screen(tmp_path: Path) -> None:
    confusion = {"classes": ["up", "down"], "clients": {}, "server": [[3, 0, 1], [2, 4, 0]]}
    long = [{"lose": ["depth"], "start": n} for n in range(40)]
    places = []
    for name in ("MLECS", "FedAvg"):
        for seed in (1, 2):
            config = a_config(name, seed)
            summary = a_summary(name, seed, 0.4 + 0.1 * seed, confusion=confusion)
            client = summary["clients"]["hall"]
            summary["clients"] |= {f"client_{k}": client for k in range(30)}
            folder = tmp_path / f"{name}-{seed}"
            places.append(write_run(folder, config=config, summary=summary, history=a_history()))
    config = a_config("CDCCA")
    config["data"]["init_args"]["schedule"] = {"class_path": "x.Drift", "init_args": {"at": long}}
    places.append(write_run(tmp_path / "other", config=config, summary=a_summary("CDCCA")))
    page = tmp_path / "report.html"
    page.write_text(to_html(read_runs(places)), encoding="utf-8")
    assert_accessible(page)


def test_the_site_is_accessible_and_fits_every_screen(tmp_path: Path, repo_root: Path) -> None:
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(tmp_path)]
    subprocess.run(command, cwd=repo_root, check=True, capture_output=True)
    names = ("index", "tutorial", "reference/algorithms")  # larger ones take axe minutes
    assert_accessible(*(tmp_path / f"{name}.html" for name in names))


def assert_accessible(*pages: Path) -> None:
    ran = subprocess.run(
        ["node", "-e", PROGRAM, *(page.as_uri() for page in pages)],
        env={**os.environ, "MODULES": str(MODULES), "CHROMIUM": CHROMIUM},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == 4 * len(pages)
    for each in found:
        assert each["over"] == 0, each
        assert each["passes"] > 10, each
        assert not each["faults"], each
