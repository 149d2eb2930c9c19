"""The page in a browser, where this machine has Chromium: its policy allows its own style and no other."""

import shutil
import subprocess

import pytest

from utils.report import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium")
def test_the_policy_stops_nothing_that_the_page_needs(source, tmp_path, capsys):
    page, seen = tmp_path / "page.html", tmp_path / "seen.png"
    main([str(source), "-o", str(page), "--show-triggers"])
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={seen}", page.as_uri()]
    for style, stops in (("light", False), ("dark", True)):  # another style than the policy allows
        page.write_text(page.read_text().replace("color-scheme: light", f"color-scheme: {style}"))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except subprocess.SubprocessError as error:
            pytest.skip(f"Chromium did not open the page: {error}")
        assert ("Content Security Policy" in done.stderr) == stops and seen.stat().st_size > 10_000
