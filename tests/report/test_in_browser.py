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
    path = tmp_path / "page.html"
    main([str(source), "-o", str(path), "--show-triggers"])
    return path


def browse(path, *flags) -> subprocess.CompletedProcess:
    """Open a file; skips where the browser does not start."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={path.parent / 'profile'}", *flags, path.as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium did not answer within a minute")
    if done.returncode:
        pytest.skip(f"Chromium ended with status {done.returncode}")
    return done


def measured(path, width: int) -> str:
    """What a script finds in a frame so wide that holds the page without its policy; a window has at least 500 pixels.

    Its width, whether it has to be scrolled sideways, and whether all its pictures are there.
    """
    frame = path.with_name("frame.html")
    inner = html.escape(re.sub(r"<meta http-equiv[^>]*>", "", path.read_text()))
    frame.write_text(f'''<!doctype html><html><body>
        <iframe srcdoc="{inner}" width="{width}" height="800" frameborder="0"></iframe>
        <script>onload = () => {{
            const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
            const images = [...page.images];
            document.documentElement.dataset.found = [page.defaultView.innerWidth, root.scrollWidth > root.clientWidth,
                images.length, images.every(image => image.naturalWidth > 0)].join();
        }};</script></body></html>''')
    return re.search(r'data-found="([^"]*)"', browse(frame, "--dump-dom").stdout)[1]


def test_the_policy_stops_nothing_that_the_page_needs(page):
    done = browse(page, f"--screenshot={page.parent / 'seen.png'}")
    assert "Content Security Policy" not in done.stderr and (page.parent / "seen.png").stat().st_size > 10_000
    page.write_text(page.read_text().replace("color-scheme: light", "color-scheme: dark"))  # another style than allowed
    done = browse(page, f"--screenshot={page.parent / 'seen.png'}")
    assert "Content Security Policy" in done.stderr


@pytest.mark.parametrize("width", [380, 1280])
def test_a_window_scrolls_up_and_down_only(page, width):
    pictures = page.read_text().count("<img ")
    assert pictures > 10 and measured(page, width) == f"{width},false,{pictures},true"
    page.write_text(page.read_text().replace("overflow-x: auto", "overflow-x: visible"))
    assert measured(page, 380) == f"380,true,{pictures},true"
