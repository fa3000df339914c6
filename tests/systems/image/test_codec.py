"""The image codec: pictures to bytes and back, with a tokenizer whose codes can be read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contracts.pictures import PatchColours, PatchColoursConfig
from polytok import bitstream
from polytok.core import hub
from polytok.core.contracts import Codes, Level
from polytok.core.errors import ConfigError, FormatError, PolytokError, SignalError, WeightsError
from polytok.systems import api
from polytok.systems.image import one_d_piece
from polytok.systems.image.codec import LARGEST_SIDE, ImageCodec
from polytok.systems.image.titok import TiTok

TAG = "0badc0de"
SIDE, TOKENS = 16, 16
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def make_codec(**changes: object) -> ImageCodec:
    model = PatchColours(PatchColoursConfig(**changes))  # type: ignore[arg-type]
    return ImageCodec(model, size=model.side, name="patch-colours-tiny", weights=TAG)


@pytest.fixture(scope="module")
def codec() -> ImageCodec:
    return make_codec()


def blocks(rows: int, columns: int, seed: int = 0, pixels: int = 4) -> Image.Image:
    """Patches of colours that the palette has."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 5, (rows, columns, 3)) * 63.75
    return Image.fromarray(np.rint(small.repeat(pixels, 0).repeat(pixels, 1)).astype(np.uint8))


def same(a: Codes, b: Codes) -> bool:
    return all(map(torch.equal, a.indices, b.indices)) and all(
        torch.equal(a.meta[k], b.meta[k]) for k in ("size", "tiles")
    )


def off(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two pictures in levels of 255."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_a_picture_becomes_bytes_and_a_picture_again(codec: ImageCodec) -> None:
    picture = blocks(4, 4)
    codes = codec.encode(picture)
    assert codes.indices[0].shape == (1, TOKENS) and codes.indices[0].dtype == torch.int64
    [data] = codec.pack(codes)
    back = codec.unpack(data)
    assert same(codes, back)
    [shown] = codec.decode(back)
    assert shown.mode == "RGB" and shown.size == (16, 16) and off(shown, picture) <= 1


@pytest.mark.parametrize(("rows", "columns", "tiles"), [(8, 8, 2), (4, 12, 3), (12, 8, 3)])
def test_tiles_are_coded_token_by_token(
    codec: ImageCodec, rows: int, columns: int, tiles: int
) -> None:
    """Tile t's token n is id n T + t; each tile has the code it would have alone."""
    picture = blocks(rows, columns)
    codes = codec.encode(picture, tiles=tiles)
    down, across = rows // 4, columns // 4
    assert bitstream.tile_grid(*picture.size, tiles) == (down, across)
    ids = codes.indices[0].view(TOKENS, down * across)
    for t in range(down * across):
        top, left = SIDE * (t // across), SIDE * (t % across)
        alone = codec.encode(picture.crop((left, top, left + SIDE, top + SIDE)))
        assert torch.equal(ids[:, t], alone.indices[0][0])
    assert off(codec.decode(codes)[0], picture) <= 1
    short = codec.prefix(codes, 3)
    assert torch.equal(short.indices[0].view(3, -1), ids[:3])
    [data] = codec.pack(short)
    assert same(codec.unpack(data), short)
    assert off(codec.decode(codec.unpack(data))[0], codec.decode(codes, tokens=3)[0]) == 0


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 700), (700, 1), (300, 200), (16, 16), (1000, 999), (5000, 40)]
)
def test_width_and_height_come_back(codec: ImageCodec, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (0, 191, 64))
    for tiles in (1, 3):
        codes = codec.encode(picture, tiles=tiles)
        assert codes.meta["size"].tolist() == [list(size)]
        [shown] = codec.decode(codec.unpack(codec.pack(codes)[0]))
        longest = max(size)
        expected = size if longest <= 4096 else tuple(round(s * 4096 / longest) for s in size)
        assert shown.size == expected
        assert off(shown, picture.resize(expected)) <= 1


def test_the_size_of_a_decoded_picture_can_be_chosen(codec: ImageCodec) -> None:
    codes = codec.encode(Image.new("RGB", (300, 200)))
    for size, expected in ((30, (30, 20)), (600, (600, 400)), (1, (1, 1))):
        assert codec.decode(codes, size=size)[0].size == expected
    for size in (0, LARGEST_SIDE + 1):
        with pytest.raises(PolytokError, match=f"size={size} is not within 1..{LARGEST_SIDE}"):
            codec.decode(codes, size=size)


def test_a_header_that_claims_a_large_picture_costs_little(codec: ImageCodec) -> None:
    meta = {"size": torch.tensor([[65535, 65535]]), "tiles": torch.tensor([1])}
    codes = Codes(indices=(torch.zeros(1, 1, dtype=torch.int64),), meta=meta)
    [data] = codec.pack(codes)
    assert len(data) <= 22
    assert codec.decode(codec.unpack(data), size=64)[0].size == (64, 64)
    assert codec.decode(codec.unpack(data))[0].size == (4096, 4096)


def test_prefixes(codec: ImageCodec) -> None:
    picture = blocks(4, 4)
    whole = codec.encode(picture)
    errors = []
    for k in range(1, TOKENS + 1):
        short = codec.encode(picture, tokens=k)
        assert same(short, codec.prefix(whole, k)) and same(short, whole.prefix(tokens=k))
        shown = [codec.decode(short)[0], codec.decode(whole, tokens=k)[0]]
        assert off(*shown) == 0
        errors.append(np.square(np.asarray(shown[0], float) - np.asarray(picture, float)).mean())
    assert errors[-1] < 0.3 and errors[0] > 1000
    for k in (0, TOKENS + 1):
        with pytest.raises(PolytokError, match=f"tokens={k} is not within 1..{TOKENS}"):
            codec.encode(picture, tokens=k)
        with pytest.raises(PolytokError, match=f"tokens={k} is not within"):
            codec.decode(whole, tokens=k)
    with pytest.raises(PolytokError, match=r"tokens=4 is not within 1\.\.3"):
        codec.prefix(codec.prefix(whole, 3), 4)


def test_without_prefixes_only_whole_codes_exist() -> None:
    codec = make_codec(has_prefixes=False)
    codes = codec.encode(blocks(4, 4), tokens=TOKENS)
    [data] = codec.pack(codes)
    assert same(codec.unpack(data), codes)
    with pytest.raises(PolytokError, match=r"tokens=15: .* decodes whole codes of 16 only"):
        codec.encode(blocks(4, 4), tokens=15)
    with pytest.raises(PolytokError, match="possible sizes"):
        codec.pack(codes, max_bytes=len(data) - 1)


def test_max_bytes_keeps_the_most_tokens_that_fit(codec: ImageCodec) -> None:
    codes = codec.encode(blocks(8, 12), tiles=3)
    files = [codec.pack(codec.prefix(codes, k))[0] for k in range(1, TOKENS + 1)]
    for limit in range(len(files[0]), len(files[-1]) + 1):
        [data] = codec.pack(codes, max_bytes=limit)
        assert data == files[max(k for k in range(TOKENS) if len(files[k]) <= limit)]
        assert codec.truncate(files[-1], limit) == data
    with pytest.raises(PolytokError, match=f"size.*{len(files[0])}"):
        codec.pack(codes, max_bytes=len(files[0]) - 1)


def test_range_coding_is_chosen_when_smaller(codec: ImageCodec) -> None:
    dark, light = (codec.encode(Image.new("RGB", (16, 16), 3 * (v,))) for v in (0, 255))
    raw = [codec.pack(c, coder="raw")[0] for c in (dark, light)]
    auto = [codec.pack(c)[0] for c in (dark, light)]
    assert len(auto[0]) < len(raw[0]) and auto[1] == raw[1]
    assert bitstream.read_header(auto[0]).is_range_coded
    assert same(codec.unpack(auto[0]), dark)
    with pytest.raises(PolytokError, match="coder='gzip'"):
        codec.pack(dark, coder="gzip")


def test_a_bottleneck_without_usage_is_packed() -> None:
    codec = make_codec()
    del codec.model.bottleneck.usage
    assert codec.histograms is None
    codes = codec.encode(Image.new("RGB", (16, 16)))
    [data] = codec.pack(codes)
    assert not bitstream.read_header(data).is_range_coded and same(codec.unpack(data), codes)


def test_every_kind_of_signal_gives_the_code_of_its_pixels(
    codec: ImageCodec, tmp_path: Path
) -> None:
    picture = blocks(4, 4)
    picture.save(tmp_path / "a.png")
    values = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1) / np.float32(255))
    one = codec.encode(picture)
    for signal in (tmp_path / "a.png", str(tmp_path / "a.png"), values, values.double()):
        assert same(codec.encode(signal), one)
    many = codec.encode([picture, blocks(4, 4, 1), values])
    assert len(many) == 3 and same(many[0], one) and same(many[2], one)
    assert codec.pack(many)[0] == codec.pack(one)[0]
    assert len(codec.decode(many)) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.full((3, 4, 4), float("nan")), "values from nan to nan"),
        (torch.linspace(-1, 1, 48).view(3, 4, 4), r"from -1 to 1; .* within \[0, 1\]"),
        (torch.linspace(0, 255, 48).view(3, 4, 4), "from 0 to 255"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "not uint8"),
        (torch.zeros(2, 3, 4, 4), r"not float32 \(2, 3, 4, 4\)"),
        (torch.full((3, 4, 4), 2.0, dtype=torch.bfloat16), "from 2 to 2"),
        (np.zeros((3, 4, 4), np.float32), r"a tensor of floats \(3, H, W\), not ndarray"),
        ([np.zeros((3, 4, 4))], "not ndarray"),
        (b"bytes of a file", "not bytes"),
        (None, "not NoneType"),
        ([3], "not int"),
    ],
)
def test_the_range_of_values_is_not_guessed(
    codec: ImageCodec, values: object, message: str
) -> None:
    with pytest.raises(SignalError, match=message):
        codec.encode(values)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_float_are_taken(codec: ImageCodec, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 0.25, 0.5, 1.0]).repeat_interleave(4).expand(3, 16, 16)
    assert same(codec.encode(values.to(dtype)), codec.encode(values))


def test_what_is_lost_is_said(codec: ImageCodec, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.new("RGBA", (8, 4), (*RED, 255))
    picture.putpixel((0, 0), (*BLUE, 0))
    picture.save(tmp_path / "a.png", exif=exif)
    notes: list[str] = []
    codes = codec.encode(tmp_path / "a.png", background=GREEN, note=notes.append)
    assert notes == [
        "it is turned upright as its EXIF orientation says; EXIF is dropped",
        "its transparent parts are laid over rgb(0, 255, 0)",
    ]
    turned = Image.new("RGB", (8, 4), RED)
    turned.putpixel((7, 3), GREEN)
    assert same(codes, codec.encode(turned))


def test_pictures_of_different_tiles_are_encoded_one_by_one(codec: ImageCodec) -> None:
    wide, square = Image.new("RGB", (40, 20)), Image.new("RGB", (20, 20))
    assert len(codec.encode([wide, square])) == 2
    assert len(codec.encode([wide, wide.rotate(90, expand=True)], tiles=2)) == 2
    with pytest.raises(PolytokError, match="2 to 4 tiles; encode them one by one"):
        codec.encode([wide, square], tiles=2)
    with pytest.raises(PolytokError, match="list is empty"):
        codec.encode([])
    for tiles in (0, 17):
        with pytest.raises(PolytokError, match=f"tiles={tiles} is not within 1..16"):
            codec.encode(wide, tiles=tiles)


def test_the_number_of_tiles_that_shows_most_is_chosen(codec: ImageCodec) -> None:
    """Against every number on its own, cut to as many bytes."""
    picture, choices = blocks(8, 12), (1, 2, 3, 6)

    def error(codes: Codes, budget: int) -> float:
        [data] = codec.pack(codes, max_bytes=budget)
        shown = np.asarray(codec.decode(codec.unpack(data))[0], float)
        return float(np.square(shown - np.asarray(picture, float)).mean())

    chosen = []
    for budget, possible in ((24, 1), (40, 3), (90, 4), (400, 4)):
        codes = codec.encode(picture, tiles=choices, fit=codec.fitting(budget))
        others = [codec.encode(picture, tiles=tiles) for tiles in choices[:possible]]
        assert error(codes, budget) == min(error(other, budget) for other in others)
        chosen.append(int(codes.meta["tiles"]))
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]
    assert same(codec.encode(picture, tiles=(3,)), codec.encode(picture, tiles=3))
    with pytest.raises(PolytokError, match="smallest possible size"):
        codec.encode(picture, tiles=choices, fit=codec.fitting(10))
    for wrong, words in (((), "no number"), ((1, 17), "tiles=17 is not within 1..16")):
        with pytest.raises(PolytokError, match=words):
            codec.encode(picture, tiles=wrong)


def test_many_tiles_are_seen_in_parts(codec: ImageCodec) -> None:
    picture = blocks(20, 20)
    codes = codec.encode(picture, tiles=5)
    assert codes.indices[0].shape == (1, 25 * TOKENS)
    assert off(codec.decode(codes)[0], picture) <= 1


def test_files_of_other_weights_and_cut_files_are_refused(codec: ImageCodec) -> None:
    codes = codec.encode(blocks(4, 4))
    [data] = codec.pack(codes, coder="raw")
    other = ImageCodec(codec.model, size=SIDE, name=codec.name, weights="12345678")
    with pytest.raises(WeightsError, match=f"{TAG}.*12345678"):
        other.unpack(data)
    with pytest.raises(FormatError, match="cut"):
        codec.unpack(data[:-1])
    part = codec.unpack(data[:-1], partial=True)
    # An id of the palette takes 7 bits of the last byte and the one before, or some of both.
    assert TOKENS - 2 <= part.indices[0].shape[1] < TOKENS
    assert same(part, codec.prefix(codes, part.indices[0].shape[1]))


def test_a_tokenizer_without_one_level_of_tokens_has_no_codec() -> None:
    model = PatchColours(PatchColoursConfig())
    for levels in ((), model.spec.levels * 2, (Level(vocab=8),)):
        model.spec = replace(model.spec, levels=levels)
        with pytest.raises(ConfigError, match="patches has no codec"):
            ImageCodec(model, size=SIDE, name="patches", weights=TAG)


def test_registered_tokenizers_have_the_codec(tmp_path: Path) -> None:
    """A folder of random weights, through every arrow there and back."""
    torch.manual_seed(0)
    name = "one-d-piece-micro"
    model = TiTok(one_d_piece.preset(name))
    tag = hub.save_pretrained(model, model.config, tmp_path, system="one-d-piece", preset=name)
    codec = api.load_codec(tmp_path, modality="image")
    count, side = model.config.num_latents, model.config.size
    assert (codec.weights, codec.size, codec.num_tokens) == (tag, side, count)
    codes = codec.encode(blocks(5, 9), tiles=2)
    for k in (1, count // 2, count):
        [data] = codec.pack(codec.prefix(codes, k))
        assert len(data) <= 17 + -(-2 * k * math.log2(model.config.codebook_size) // 8)
        back = codec.unpack(data)
        assert same(back, codec.prefix(codes, k))
        # Tile by tile, as the model decodes alone.
        wide = [model.decode(Codes(indices=(back.indices[0][:, t::2],)))["image"] for t in (0, 1)]
        shown = codec.decode(
            replace(back, meta={**back.meta, "size": torch.tensor([[2 * side, side]])})
        )
        apart = torch.cat(wide, -1)[0].clamp(0, 1) - torch.from_numpy(
            np.asarray(shown[0]).transpose(2, 0, 1) / np.float32(255)
        )
        assert apart.abs().max() <= 0.6 / 255
    assert codec.decode(codes)[0].size == (36, 20)


def test_codes_that_are_of_no_picture_are_refused(codec: ImageCodec) -> None:
    codes = codec.encode(blocks(8, 8), tiles=2)
    for bad, message in (
        (replace(codes, meta={}), "meta 'size' and 'tiles'"),
        (Codes(latents=torch.zeros(1, 2, 3)), "have indices"),
        (codes.prefix(tokens=6), "6 tokens are not the same number in all of 4 tiles"),
    ):
        with pytest.raises(PolytokError, match=message):
            codec.decode(bad)


def test_ids_outside_the_vocabulary_are_refused(codec: ImageCodec) -> None:
    codes = codec.encode(blocks(4, 4))
    for wrong in (-1, 125):
        ids = codes.indices[0].clone()
        ids[0, 3] = wrong
        with pytest.raises(PolytokError, match=r"ids from .* are not within 0\.\.124"):
            codec.decode(replace(codes, indices=(ids,)))
    with pytest.raises(PolytokError, match="codes of 2 levels, not 1"):
        codec.decode(replace(codes, indices=codes.indices * 2))
