"""The found mixture as a picture: a bar for each category, its interval, and the truth if known."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from polytok.systems.text.data_mixture_inference.result import MixtureResult

_WIDTH, _ROW, _MARGIN, _HEAD, _FOOT = 960, 44, 28, 76, 84
_INK, _PALE, _BAR, _TRUE = "#1f2430", "#8a90a0", "#4c78a8", "#e45756"
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def bar_chart(
    result: MixtureResult, *, title: str, truth: Mapping[str, float] | None = None
) -> Image.Image:
    """Draw byte shares, largest first, with whiskers for intervals and a red line for the truth."""
    names = sorted(result.byte_share, key=lambda n: -result.byte_share[n])
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    label_width = min(300, int(max(font.getlength(n) for n in names)) + 16)
    left, right = _MARGIN + label_width, _WIDTH - _MARGIN - 90
    bottom = _HEAD + _ROW * len(names)
    picture = Image.new("RGB", (_WIDTH, bottom + _FOOT), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 22), title, fill=_INK, font=ImageFont.load_default(22))
    largest = max(*_ends(result), *(truth or {"": 0.0}).values())
    full = next(t for t in (0.1, 0.25, 0.5, 1.0) if largest <= t)

    def at(share: float) -> float:
        return left + (right - left) * min(share / full, 1.0)

    for tick in _TICKS:
        x = at(tick * full)
        draw.line([(x, _HEAD - 6), (x, bottom)], fill="#e6e8ee")
        draw.text((x, bottom + 8), f"{tick * full:.0%}", fill=_PALE, font=small, anchor="ma")
    for row, name in enumerate(names):
        middle = _HEAD + _ROW * row + _ROW // 2
        share = result.byte_share[name]
        draw.text((left - 10, middle), name, fill=_INK, font=font, anchor="rm")
        draw.rectangle([left, middle - 13, at(share), middle + 13], fill=_BAR)
        end = share
        if result.byte_interval is not None:
            low, end = result.byte_interval[name]
            draw.line([(at(low), middle), (at(end), middle)], fill=_INK, width=2)
            for x in (at(low), at(end)):
                draw.line([(x, middle - 6), (x, middle + 6)], fill=_INK, width=2)
        if truth is not None and name in truth:
            x = at(truth[name])
            draw.line([(x, middle - 18), (x, middle + 18)], fill=_TRUE, width=3)
        x = at(max(end, (truth or {}).get(name, 0.0))) + 10
        draw.text((x, middle), f"{share:.1%}", fill=_INK, font=font, anchor="lm")
    foot = f"share of bytes; {result.num_merges:,} merges, misfit {result.fit.misfit:.3f}, "
    foot += f"{result.fit.slackless:.0%} of merges without slack"
    foot += "; red: the truth" if truth is not None else ""
    draw.text((_MARGIN, bottom + 44), foot, fill=_PALE, font=small)
    return picture


def _ends(result: MixtureResult) -> list[float]:
    ends = list(result.byte_share.values())
    return ends + [high for _, high in (result.byte_interval or {}).values()]
