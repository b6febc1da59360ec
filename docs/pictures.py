"""The pictures of the README, taken by Chromium from pages that its commands make.

    vlm-train
    python docs/pictures.py runs/tiny-qwen2-vl-lora-easy-vqa/report.html report.png Training Configuration Distributions

A page is shown from its top; the sections that are named after the picture are left out of it.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SIZE = {"width": 1100, "height": 1010}
HIDE = """names => {
    for (const head of document.querySelectorAll("h2")) {
        if (!names.includes(head.textContent)) continue;
        const section = head.closest("section");
        (section || head).style.display = "none";
    }
}"""


def main(page: str, picture: str, *without: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport=SIZE)
        tab.goto(Path(page).resolve().as_uri())
        tab.evaluate(HIDE, list(without))
        tab.wait_for_timeout(500)  # thumbnails are drawn as they come into view
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
