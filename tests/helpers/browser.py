"""A headless Chromium, driven by Playwright; neither is needed but for the tests that ask for it."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium():
    """Where Chromium is: what CHROMIUM names, or the first on PATH; ``None`` without one."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


def open_chromium(playwright):
    """A browser; as root, as in containers, Chromium runs only without its sandbox."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    return playwright.chromium.launch(executable_path=find_chromium(), chromium_sandbox=not root)
