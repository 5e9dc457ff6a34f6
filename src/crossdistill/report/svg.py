"""Turn a matplotlib figure into SVG that can live inside a page: small, named, and without anything from outside."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Generator, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#1f2933"
QUIET = "#5f6b7a"
GRID = "#e3e7ec"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, searchable, in the reader's own sans serif
    "svg.hashsalt": "crossdistill",
    "text.parse_math": False,  # a dollar sign in a user's name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.labelcolor": QUIET,
    "text.color": INK,
    "xtick.color": "#9aa5b1",
    "ytick.color": "#9aa5b1",
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "path.simplify": True,
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that no XML may hold; a name in a stranger's folder may."""

_REFERENCE = re.compile(r"url\(#([^)]+)\)|^#(.+)$")


@contextlib.contextmanager
def style() -> Generator[None]:
    """Draw and save within the report's look; a glyph that matplotlib's font lacks is the browser's to find."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def blank(width: float, height: float) -> Figure:
    """Make an empty figure whose unit is one CSS pixel, so that a font of 11 is 11 pixels at natural size."""
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def to_svg(figure: Figure, name: str, label: str, tips: Mapping[str, str] | None = None) -> str:
    """Write a figure as one <svg> element of a page.

    Args:
        figure: What to write; call within `style()`.
        name: A word unique in the page; every id starts with it.
        label: What a person who cannot see the picture is told.
        tips: From the gid of an artist to what hovering over it says.

    Returns:
        The element as text.
    """
    buffer = io.BytesIO()
    # 216 dpi counts for rasterised artists alone: three pixels a unit stay sharp on dense screens
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", dpi=216 if _has_raster(figure) else 72, metadata=nothing)
    root = ElementTree.fromstring(_ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue().decode("utf-8")))
    _tidy(root, name)
    for gid, tip in (tips or {}).items():
        for element in root.iter("g"):
            if element.get("data-gid") == gid:
                title = ElementTree.Element("title")
                title.text = tip
                element.insert(0, title)
    for element in root.iter():
        element.attrib.pop("data-gid", None)
    root.attrib.pop("height", None)
    root.attrib["width"] = root.attrib["viewBox"].split()[2]
    look = f"stroke-linejoin:round;stroke-linecap:butt;font-family:{_FONT}"
    root.attrib.update(role="img", **{"aria-label": label}, style=look)
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", ElementTree.tostring(root, encoding="unicode"))


def as_file(svg: str) -> str:
    """Make what `to_svg` gave a file of its own, with its namespace and a fixed size."""
    root = ElementTree.fromstring(svg)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib.update(xmlns="http://www.w3.org/2000/svg", width=width, height=height)
    return ElementTree.tostring(root, encoding="unicode")


def _has_raster(figure: Figure) -> bool:
    return any(artist.get_rasterized() for artist in figure.findobj())


def _tidy(root: ElementTree.Element, name: str) -> None:
    """Drop namespaces, metadata and unused ids, and put `name` before the ids that are used."""
    used: set[str] = set()
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "style":
                value = re.sub(r"font-family:[^;]*;? ?", "", value)  # said once, at the root
                value = re.sub(r"(?<=px )'DejaVu Sans'[^;]*", _FONT, value)  # older matplotlib's shorthand
            elif key in ("d", "x", "y"):
                value = re.sub(r"(\.\d\d)\d+", r"\1", value)  # a hundredth of a pixel is enough
            elif key == "transform" and value.startswith("rotate(-0 "):
                continue
            found = _REFERENCE.search(value)
            if found and key != "id":
                used.add(found[1] or found[2])
                value = _REFERENCE.sub(lambda m: f"url(#{name}-{m[1]})" if m[1] else f"#{name}-{m[2]}", value)
            element.set(key, re.sub(r"\s*\n\s*", "" if value.startswith("data:") else " ", value))
    for parent in list(root.iter()):
        for child in list(parent):
            sheet = child.tag == "defs" and all(
                grandchild.tag == "style" for grandchild in child
            )  # would hold page-wide
            if sheet or child.tag in ("metadata", "style"):
                parent.remove(child)
        parent.text = parent.text.strip() if parent.text and parent.tag != "text" else parent.text
        parent.tail = None
    for element in root.iter():
        identity = element.attrib.pop("id", None)
        if identity and identity in used:
            element.set("id", f"{name}-{identity}")
        elif identity:
            element.set("data-gid", identity)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
