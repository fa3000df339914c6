"""Tables of the page on pictures in a few bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

from _report import load, markdown
from _results import Row

MISSING = "not measured yet"
OURS = "polytok:"
NAMES = {
    "webp": "WebP",
    "avif": "AVIF",
    "jpeg": "JPEG",
    "small-webp": "shrunk, WebP",
    "small-avif": "shrunk, AVIF",
    "small-jpeg": "shrunk, JPEG",
    "thumbhash": "ThumbHash",
    "blurhash": "BlurHash",
    "all": "best of these per picture",
    "webp-lossless": "WebP, lossless",
    "mean-colour": "mean colour",
}
SCORES = {"psnr": ("PSNR, dB", ".1f", 1), "perceptual": ("perceptual distance", ".3f", 1)}
SCORES |= {"agreement": ("classifier agreement, %", ".0f", 100), "ssim": ("SSIM", ".3f", 1)}
SETS = {
    "decoded": "test pictures, decoded",
    "training": "training pictures",
    "independent": "ids drawn each alone",
}
ARMS = {"drop": "One-D-Piece", "no_drop": "the same without tail drop (TiTok, K = 16)"}
SHORT, LONGEST = ("thumbhash", "small-webp", "all"), 192
GAINS = ("psnr", "perceptual", "agreement")
FLOOR, TARGET = "small+hash", "all"


def score_table(folder: Path, part: str, score: str) -> str:
    """A score by budget; in brackets the share of pictures with a file, where not all have one."""
    rows = _rows(part, folder)
    budgets = sorted({row["bytes"] for row in rows})
    title, form, factor = SCORES[score]
    out = []
    for domain in dict.fromkeys(row["domain"] for row in rows):
        found = {(r["method"], r["bytes"]): r for r in rows if r["domain"] == domain}
        methods = dict.fromkeys(method for method, _ in found)
        ours = [m for m in methods if m.startswith(OURS)]
        for method in [*ours, *(m for m in NAMES if m in methods)]:
            cells = [_cell(found.get((method, b)), score, form, factor) for b in budgets]
            out.append([f"{domain}: {_name(method)}", *cells])
    head = [title, *(f"{b} B" for b in budgets)]
    return markdown(head, out) if out else markdown([title, "bytes"], [[MISSING, "–"]])


def short_table(folder: Path) -> str:
    """PSNR and distance of polytok and of its peers by size of the file, up to 192 bytes."""
    rows = [r for r in _rows("tiles", folder) if r["bytes"] <= LONGEST]
    budgets = sorted({row["bytes"] for row in rows})
    out = []
    for score in ("psnr", "perceptual"):
        title, form, factor = SCORES[score]
        for domain in dict.fromkeys(row["domain"] for row in rows):
            found = {(r["method"], r["bytes"]): r for r in rows if r["domain"] == domain}
            ours = [m for m in dict.fromkeys(m for m, _ in found) if m.startswith(OURS)]
            for method in [*ours, *SHORT]:
                cells = [_cell(found.get((method, b)), score, form, factor) for b in budgets]
                out.append([f"{title}, {domain}: {_name(method)}", *cells])
    head = ["whole files of at most", *(f"{b} B" for b in budgets)]
    return markdown(head, out) if out else markdown(["bytes"], [[MISSING]])


def _name(method: str) -> str:
    if method.startswith(OURS):
        return f"**{method.removeprefix(OURS)}**"
    return NAMES[method]


def _cell(row: Row | None, score: str, form: str, factor: float) -> str:
    if row is None:
        return "–"
    share, text = row["share_with_file"], f"{factor * row[score]:{form}}"
    if not share and row["method"] != "mean-colour":
        return "–"
    return text if share in (0, 1) else f"{text} ({100 * share:.0f}%)"


def gain_table(folder: Path, part: str = "tiles") -> str:
    """How far polytok is ahead of peers, with intervals, up to 192 bytes."""
    out = []
    for row in _rows(part, folder):
        if row["method"].startswith(OURS) and row["bytes"] <= LONGEST:
            for group, words in ((FLOOR, "shrunk and hashes"), (TARGET, "all peers")):
                gains = [_gain(row[f"over {group}"][s], s) for s in GAINS]
                name = f"{row['domain']}: {_name(row['method'])}"
                out.append([name, str(row["bytes"]), words, *gains])
    head = ["gain, better is positive", "bytes", "over", *(SCORES[s][0] for s in GAINS)]
    return markdown(head, out or [[MISSING, *["–"] * (len(head) - 1)]])


def _gain(values: Sequence[float], score: str) -> str:
    _, form, factor = SCORES[score]
    mean, low, high = (f"{factor * v:+{form}}" for v in values)
    return f"{mean} [{low}, {high}]"


def prefixes_table(folder: Path) -> str:
    """PSNR of the first tokens, and how far a longer prefix falls below a shorter one at most."""
    rows = _rows("prefixes", folder)
    out = []
    for domain, model in dict.fromkeys((row["domain"], row["model"]) for row in rows):
        at = {r["tokens"]: r for r in rows if (r["domain"], r["model"]) == (domain, model)}
        whole, first = max(at), at[max(at)]
        shown = [k for k in (whole // 8, whole // 4, whole // 2, whole) if k in at]
        curve = [at[k]["psnr"] for k in sorted(at)]
        dip = max(most - now for most, now in zip(accumulate(curve, max), curve, strict=True))
        psnrs = " ".join(f"{at[k]['psnr']:.2f}" for k in shown)
        trained = "yes" if first["has_tail_drop"] else "no"
        out.append([f"{domain}: {model}", trained, " ".join(map(str, shown)), psnrs, f"{dip:.2f}"])
    head = ["model", "trained on prefixes", "tokens", "PSNR, dB", "largest dip, dB"]
    return markdown(head, out or [[MISSING, *["–"] * 4]])


def tokens_table(folder: Path) -> str:
    """Small models of one-dimensional tokens, and of tokens in a grid, by what they learnt from."""
    data = load("image_tokens", folder)
    out = []
    order = ("tokens", "samples", "arm")
    for row in sorted(data["rows"], key=itemgetter(*order)) if data else []:
        some = [row.get(f"psnr_{k}") for k in (1, 2, 4, 8)]
        cells = ["–" if value is None else f"{value:.2f}" for value in (*some, row["psnr"])]
        use = f"{100 * row['codes_used']:.0f}"
        name = ARMS.get(row["arm"]) or row["arm"].replace("titok-", "TiTok, K = ").replace(
            "grid-", "VQ in a grid, K = "
        )
        out.append([name, str(row["tokens"]), f"{row['samples']:,}", *cells, use])
    firsts = (f"first {k}" for k in (1, 2, 4, 8))
    head = ["model", "tokens", "learnt from", *firsts, "all", "codes used, %"]
    return markdown(head, out or [[MISSING, *["–"] * (len(head) - 1)]])


def samples_table(folder: Path, pictures: str) -> str:
    """Samples of some pictures by number of steps, and what to compare them with."""
    data = load(f"masked_generation_{pictures}", folder)
    out = []
    for row in data["rows"] if data else []:
        if "class_agreement" in row:
            name = SETS.get(row["set"]) or f"samples, T = {row['steps']}"
            passes = str(row.get("passes", "–"))
            agreement = f"{100 * row['class_agreement']:.0f}"
            out.append([name, passes, f"{row['feature_distance']:.1f}", agreement])
    head = ["pictures", "passes", "feature distance", "class agreement, %"]
    return markdown(head, out or [[MISSING, *["–"] * 3]])


def coders_table(folder: Path) -> str:
    """Bytes of whole codes by coder."""
    out = [
        [f"{row['domain']}: {row['model']}", str(row["pictures"])]
        + [f"{row[f'{name}_bytes']:.1f}" for name in ("raw", "static", "prior")]
        for row in _rows("coders", folder)
    ]
    head = ["whole codes, mean bytes of a file", "pictures", "raw", "range coded", "prior"]
    return markdown(head, out or [[MISSING, *["–"] * 4]])


def efforts_table(folder: Path) -> str:
    """What searching for a code brings, and what it takes."""
    out = [
        [
            f"{row['domain']}: {row['model']}",
            *(str(row[key]) for key in ("pictures", "tokens", "effort")),
            f"{row['psnr']:.2f}",
            f"{row['bytes']:.1f}",
            f"{row['seconds']:.2f}",
        ]
        for row in _rows("efforts", folder)
    ]
    head = ["searched codes", "pictures", "tokens", "effort", "PSNR, dB", "bytes", "seconds"]
    return markdown(head, out or [[MISSING, *["–"] * 6]])


def probe_table(folder: Path) -> str:
    """What a linear classifier reads from the first tokens."""
    data = load("image_probe", folder)
    rows: list[Row] = data["rows"] if data else []
    counts = sorted({row["tokens"] for row in rows})
    out = []
    for model in dict.fromkeys(row["model"] for row in rows):
        at = {row["tokens"]: row["accuracy"] for row in rows if row["model"] == model}
        out.append([model, *(f"{100 * at[k]:.1f}" if k in at else "–" for k in counts)])
    if rows:
        out.append(["chance", *[f"{100 * rows[0]['chance']:.1f}"] * len(counts)])
    head = ["accuracy from the first tokens, %", *map(str, counts)]
    return markdown(head, out or [[MISSING]])


def judge_table(folder: Path) -> str:
    """What the network is that judges."""
    data = load("image_rd_tiles", folder)
    if data is None:
        return markdown(["judge", "value"], [[MISSING, "–"]])
    told = data["protocol"]["judge"]
    rows = [
        ["network", told["network"]],
        ["parameters", f"{told['parameters']:,}"],
        ["pictures learnt from", " + ".join(f"{n:,}" for n in told["learnt"])],
        ["accuracy on others, %", ", ".join(f"{100 * a:.0f}" for a in told["accuracy"])],
    ]
    return markdown(["judge", "value"], rows)


def _rows(part: str, folder: Path) -> list[Row]:
    data = load(f"image_rd_{part}", folder)
    rows: list[Row] = data["rows"] if data else []
    return rows


TABLES: dict[str, Callable[[Path], str]] = {
    "image-rate": partial(score_table, part="tiles", score="psnr"),
    "image-rate-perceptual": partial(score_table, part="tiles", score="perceptual"),
    "image-rate-agreement": partial(score_table, part="tiles", score="agreement"),
    "image-searched": partial(gain_table, part="searched"),
    "image-kodak": partial(score_table, part="kodak", score="psnr"),
    "image-gain": gain_table,
    "image-prefixes": prefixes_table,
    "image-coders": coders_table,
    "image-efforts": efforts_table,
    "image-probe": probe_table,
    "image-digits": partial(samples_table, pictures="digits"),
    "image-cifar10": partial(samples_table, pictures="cifar10"),
    "image-judge": judge_table,
    "image-tokens": tokens_table,
    "image-short": short_table,
}
