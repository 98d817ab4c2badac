"""The README's picture: one video of a report, as a browser shows it, in a small WebP.

``alt demo --out demo`` and then ``python -m benchmarks.picture demo/report.html``. It needs Playwright and Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

OUT = Path("docs/report.webp")
MAX_BYTES = 400_000
WIDTH, SCALE = 1240, 1.5
QUALITIES = (90, 80, 70, 60, 50)


def main() -> None:
    """Take the picture and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--video", default="flying a kite", help="part of the label or file name of the video to show"
    )
    parser.add_argument("--dark", action="store_true", help="as a dark page")
    arguments = parser.parse_args()
    picture = photograph(arguments.report, arguments.video, arguments.dark)
    content = compressed(picture)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(content)
    print(f"wrote {arguments.out}, {picture.width} x {picture.height}, {len(content) / 1e3:.0f} kB")


def photograph(report: Path, video: str, dark: bool = False) -> Image.Image:
    """The first right prediction whose label or file name holds a text, of the first such video otherwise."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": 1200},
            device_scale_factor=SCALE,
            color_scheme="dark" if dark else "light",
        )
        page.goto(report.resolve().as_uri())
        page.locator("#text").fill(video)
        page.locator("#bar").evaluate("bar => { bar.style.position = 'static' }")
        right = page.locator(".card:visible:has(.verdict.right)")
        card = right.first if right.count() else page.locator(".card:visible").first
        if not card.count():
            raise SystemExit(
                f"{report} shows no video whose label or file name holds '{video}'; choose with --video"
            )
        card.scroll_into_view_if_needed()
        card.locator(".pic img").last.wait_for()
        return Image.open(io.BytesIO(card.screenshot()))


def compressed(picture: Image.Image) -> bytes:
    """A WebP of at most ``MAX_BYTES``, of the best quality that allows."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    raise SystemExit(f"even at quality {QUALITIES[-1]} the picture takes more than {MAX_BYTES:,} bytes")


if __name__ == "__main__":
    main()
