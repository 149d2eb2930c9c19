"""The page in a browser, where this machine has Chromium: its policy allows its style, and no window is too narrow."""

import html
import re
import shutil
import subprocess

import pytest

from utils.report import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium")


@pytest.fixture
def page(source, tmp_path, capsys):
    """The file of a page with triggers, pictures among them."""
    main([str(source), "-o", str(tmp_path / "page.html"), "--show-triggers"])
    return tmp_path / "page.html"


def browse(path, flag) -> subprocess.CompletedProcess:
    """Open a file; skips where the browser does not start."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={path.parent / 'profile'}", flag, path.as_uri()]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"Chromium did not open the page: {error}")


def measured(page: str, path, width: int) -> str:
    """What a script finds in a frame so wide that holds the page without its policy; a window has at least 500 pixels.

    Its width, whether it has to be scrolled sideways, and whether all its pictures are there.
    """
    inner = html.escape(re.sub(r"<meta http-equiv[^>]*>", "", page))
    path.write_text(f'''<!doctype html><html><body>
        <iframe srcdoc="{inner}" width="{width}" height="800" frameborder="0"></iframe>
        <script>onload = () => {{
            const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
            const images = [...page.images];
            document.documentElement.dataset.found = [page.defaultView.innerWidth, root.scrollWidth > root.clientWidth,
                images.length, images.every(image => image.naturalWidth > 0)].join();
        }};</script></body></html>''')
    return re.search(r'data-found="([^"]*)"', browse(path, "--dump-dom").stdout)[1]


def test_the_policy_stops_nothing_that_the_page_needs(page):
    for style, stops in (("light", False), ("dark", True)):  # another style than the policy allows
        page.write_text(page.read_text().replace("color-scheme: light", f"color-scheme: {style}"))
        done = browse(page, f"--screenshot={page.parent / 'seen.png'}")
        assert ("Content Security Policy" in done.stderr) == stops
        assert (page.parent / "seen.png").stat().st_size > 10_000


def test_a_window_scrolls_up_and_down_only(page):
    text, frame = page.read_text(), page.with_name("frame.html")
    pictures = text.count("<img ")
    assert pictures > 10 and measured(text, frame, 1280) == f"1280,false,{pictures},true"
    assert measured(text, frame, 380) == f"380,false,{pictures},true"
    assert measured(text.replace("overflow-x: auto", "overflow-x: visible"), frame, 380) == f"380,true,{pictures},true"
