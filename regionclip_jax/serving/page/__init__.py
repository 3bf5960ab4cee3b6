"""Files of the page: HTML, style, scripts and icon, without a build step."""

from importlib import resources

# Path of a URL -> file and media type. No other file can be asked for.
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/drawing.js": ("drawing.js", "text/javascript"),
    "/messages.js": ("messages.js", "text/javascript"),
    "/requests.js": ("requests.js", "text/javascript"),
    "/results.js": ("results.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def read_page_files() -> dict[str, tuple[bytes, str]]:
    """Return content and media type by the path of the URL."""
    folder = resources.files(__name__)
    return {url: (folder.joinpath(name).read_bytes(), kind) for url, (name, kind) in _FILES.items()}
