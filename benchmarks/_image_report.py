"""The plot and the contact sheet of pictures in a few bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from _image_peers import Coded, mean_colour
from _report import load
from _results import RESULTS, Row
from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path
from polytok.signals.sheet import sheet

PLOT = "image_rate_distortion.png"
CURVES = {
    "direct": "WebP, AVIF, JPEG",
    "small": "the same, shrunk and enlarged",
    "hash": "ThumbHash, BlurHash",
    "mean-colour": "mean colour",
}
OURS = "polytok:"
LEAST_SHARE = 0.5  # of pictures with a file, for a point
SCORES = {"psnr": "PSNR, dB", "perceptual": "perceptual distance"}
SHEET_SIZES = (32, 64, 128)
ZOOM = 2
PAPER = (244, 244, 245)

Cell = tuple[str, Image.Image]


def draw_plot(folder: Path = RESULTS) -> Path:
    """PSNR and perceptual distance over bytes of the tiles, and over bits per pixel of Kodak.

    Raises:
        PolytokError: nothing has been measured.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    domains = panels_of(folder)
    if not domains:
        raise PolytokError(f"{folder} has no image_rd_*.json; run another part first")
    figure, grid = pyplot.subplots(
        len(SCORES), len(domains), figsize=(4.2 * len(domains), 7), squeeze=False
    )
    for column, (domain, rows) in zip(grid.T, domains.items(), strict=True):
        for panel, (score, label) in zip(column, SCORES.items(), strict=True):
            _draw(panel, rows, score)
            panel.set(title=f"{domain}, {rows[0]['pictures']} pictures", ylabel=label)
            panel.set_xlabel("bits per pixel" if "pixels" in rows[0] else "bytes, the whole file")
            panel.set_xscale("log", base=10 if "pixels" in rows[0] else 2)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.25)
    grid[0, 0].legend(fontsize=8)
    figure.tight_layout()
    with atomic_path(folder / PLOT) as aside:
        figure.savefig(aside, dpi=110)
    pyplot.close(figure)
    return folder / PLOT


def panels_of(folder: Path) -> dict[str, list[Row]]:
    """Rows by domain, tiles first."""
    found: dict[str, list[Row]] = {}
    for part in ("tiles", "kodak"):
        data = load(f"image_rd_{part}", folder)
        for row in data["rows"] if data else []:
            found.setdefault(row["domain"], []).append(row)
    return found


def _draw(panel: Any, rows: Sequence[Row], score: str) -> None:
    ours = dict.fromkeys(row["method"] for row in rows if row["method"].startswith(OURS))
    names = {**CURVES, **{name: "polytok, " + name.removeprefix(OURS) for name in ours}}
    # A curve has its colour in every panel, also where others are missing.
    for number, (method, label) in enumerate(names.items()):
        at = [
            row
            for row in rows
            if row["method"] == method
            and (row["share_with_file"] >= LEAST_SHARE or method == "mean-colour")
        ]
        if not at:
            continue
        is_ours = method in ours
        style = "-" if is_ours else {"mean-colour": ":", "hash": "-."}.get(method, "--")
        panel.plot(
            [_rate(row, is_ours) for row in at],
            [row[score] for row in at],
            style,
            marker="o" if is_ours else None,
            ms=3.5,
            color="0.5" if method == "mean-colour" else f"C{number}",
            label=label,
        )


def _rate(row: Row, is_ours: bool) -> float:
    """Bytes, or bits per pixel; a code that is shorter than its budget stands where it ends."""
    size = row["file_bytes"] if is_ours and "pixels" in row else row["bytes"]
    return 8 * size / row["pixels"] if "pixels" in row else size


def draw_sheet(
    shown: Sequence[tuple[Image.Image, Mapping[int, tuple[int, Image.Image]], Mapping[int, Coded]]],
    out: Path,
) -> None:
    """Pictures, what polytok makes of them, and below the best peer of the same bytes.

    Args:
        shown: picture, ours (bytes, picture) by budget, the peer's file by budget.
    """
    rows = []
    for start in range(0, len(shown), 2):
        # Two pictures side by side, each with its peers below.
        cells = [_cells(*one) for one in shown[start : start + 2]]
        rows += [[c for above, _ in cells for c in above], [c for _, below in cells for c in below]]
    with atomic_path(out) as aside:
        sheet(rows, text=13, gap=8).quantize(256).save(aside, optimize=True)


def _cells(
    picture: Image.Image, ours: Mapping[int, tuple[int, Image.Image]], peers: Mapping[int, Coded]
) -> tuple[list[Cell], list[Cell]]:
    above = [("original", _large(picture))]
    below = [("", Image.new("RGB", _large(picture).size, PAPER))]
    for budget in SHEET_SIZES:
        size, decoded = ours[budget]
        above.append((f"{size} B", _large(decoded)))
        coded = peers.get(budget)
        words = f"{coded.method} {len(coded.data)} B" if coded else "mean colour"
        theirs = coded.picture(picture.size) if coded else mean_colour(picture)
        below.append((words, _large(theirs)))
    return above, below


def _large(picture: Image.Image) -> Image.Image:
    size = (picture.width * ZOOM, picture.height * ZOOM)
    return picture.resize(size, Image.Resampling.NEAREST)
