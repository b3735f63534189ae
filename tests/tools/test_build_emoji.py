"""``tools/build_emoji.py`` on a made-up font and made-up files; nothing here asks a network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import build_emoji
from emoji_set import BuildError, compare, packages, shards
from emoji_set.archives import read_files
from emoji_set.colorfont import ColorFont
from emoji_set.names import read_emoji
from emoji_set.styles import compose, fluent

from hqtvae_fast.train.data import open_source

EMOJI_TEST = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
# subgroup: heart
2764 FE0F                                  ; fully-qualified     # ❤️ E0.6 red heart
2764                                       ; unqualified         # ❤ E0.6 red heart
2764 FE0F 200D 1F525                       ; fully-qualified     # ❤️‍🔥 E13.1 heart on fire
# group: People & Body
# subgroup: hand-fingers-open
1F44B                                      ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FB                                ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone
"""
ANNOTATIONS = """\
<ldml><annotations>
  <annotation cp="😀">grinning face | face | grin</annotation>
  <annotation cp="😀" type="tts">grinning face</annotation>
  <annotation cp="❤">heart</annotation>
</annotations></ldml>
"""
DERIVED = '<ldml><annotations><annotation cp="❤‍🔥">burn | heart</annotation></annotations></ldml>'


def png(colour: tuple[int, ...], size: tuple[int, int] = (20, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def color_font(pictures: dict[int, bytes], codes: dict[int, int], ligatures: dict[tuple[int, ...], int]) -> bytes:
    """A font file with a character map, one ligature lookup, and PNGs; glyphs with pictures must be consecutive."""
    groups = b"".join(struct.pack(">III", code, code, glyph) for code, glyph in sorted(codes.items()))
    cmap = struct.pack(">HHHHI", 0, 1, 3, 10, 12) + struct.pack(">HHIII", 12, 0, 16 + len(groups), 0, len(codes))
    cmap += groups

    (first, *rest), target = next(iter(ligatures.items()))
    ligature = struct.pack(f">HH{len(rest)}H", target, len(rest) + 1, *rest)
    coverage, ligature_set = struct.pack(">HHH", 1, 1, first), struct.pack(">HH", 1, 4) + ligature
    subtable = struct.pack(">HHHH", 1, 8, 1, 8 + len(coverage)) + coverage + ligature_set
    lookups = struct.pack(">HH", 1, 4) + struct.pack(">HHHH", 4, 0, 1, 8) + subtable
    gsub = struct.pack(">HHHHH", 1, 0, 0, 0, 10) + lookups

    glyphs = sorted(pictures)
    data, places = b"", [0]
    for glyph in glyphs:
        data += bytes(5) + struct.pack(">I", len(pictures[glyph])) + pictures[glyph]
        places.append(len(data))
    size = (
        struct.pack(">IIII", 56, 0, 1, 0) + bytes(24) + struct.pack(">HHBBBB", glyphs[0], glyphs[-1], 109, 109, 32, 1)
    )
    index = struct.pack(">HHI", glyphs[0], glyphs[-1], 8) + struct.pack(">HHI", 1, 17, 4)
    cblc = struct.pack(">II", 0x30000, 1) + size + index + struct.pack(f">{len(places)}I", *places)
    tables = {b"CBDT": struct.pack(">I", 0x30000) + data, b"CBLC": cblc, b"GSUB": gsub, b"cmap": cmap}

    header, body = struct.pack(">IHHHH", 0x10000, len(tables), 0, 0, 0), b""
    for tag, table in tables.items():
        header += struct.pack(">4sIII", tag, 0, 12 + 16 * len(tables) + len(body), len(table))
        body += table
    return header + body


RED, GREEN, BLUE = (255, 0, 0, 255), (0, 200, 0, 255), (0, 0, 255, 128)
FONT = color_font(
    {5: png(RED), 6: png(GREEN), 7: png(BLUE)}, {0x1F600: 5, 0x2764: 6, 0x200D: 1, 0x1F525: 2}, {(6, 1, 2): 7}
)


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """A folder with everything that a build needs: the font has three emoji, the other two styles have two each."""
    folder = tmp_path / "material"
    for name in ("fluent", "twemoji", "cldr/annotations", "cldr/annotationsDerived"):
        (folder / name).mkdir(parents=True)
    (folder / "emoji-test.txt").write_text(EMOJI_TEST, encoding="utf-8")
    (folder / "cldr/annotations/en.xml").write_text(ANNOTATIONS, encoding="utf-8")
    (folder / "cldr/annotationsDerived/en.xml").write_text(DERIVED, encoding="utf-8")
    (folder / "font.ttf").write_bytes(FONT)
    for name, colour in (("1f600", RED), ("2764-fe0f-200d-1f525", BLUE)):
        Image.new("RGBA", (32, 32), colour).save(folder / f"fluent/{name}.webp", lossless=True)
    for name, colour in (("1f600", RED), ("2764", GREEN)):
        Image.new("RGBA", (8, 8), colour).save(folder / f"twemoji/{name}.png")
    return folder


def build(material: Path, out: Path, *options: str) -> Result:
    app = typer.Typer()
    app.command()(build_emoji.main)
    given = ["--out", out, "--size", 16, "--cache", out / "cache", "--offline", "--twemoji-png"]
    given += ["--noto", material / "font.ttf", "--fluent", material / "fluent", "--twemoji", material / "twemoji"]
    given += ["--names", material / "emoji-test.txt", "--keywords", material / "cldr"]
    return CliRunner().invoke(app, [*map(str, given), *options], env={"COLUMNS": "150"})


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_shards_are_read_by_the_trainer_with_the_fields_of_every_picture(material: Path, tmp_path: Path) -> None:
    result = build(material, tmp_path, "--held-out", "0")
    assert result.exit_code == 0, result.output
    source = open_source(str(tmp_path / "emoji-16-train.tar"))
    keys = [source.key(index).split("/")[1] for index in range(len(source))]
    assert keys == [
        "noto-1f600", "fluent-1f600", "twemoji-1f600",
        "noto-2764_fe0f", "twemoji-2764_fe0f",
        "noto-2764_fe0f_200d_1f525", "fluent-2764_fe0f_200d_1f525",
    ]  # fmt: skip
    assert source.fields(5) == {
        "codepoints": "2764 FE0F 200D 1F525",
        "group": "Smileys & Emotion",
        "keywords": ["burn", "heart"],
        "license": "OFL-1.1/Apache-2.0",
        "name": "heart on fire",
        "style": "noto",
        "subgroup": "heart",
    }
    stored = members(tmp_path / "emoji-16-train.tar")
    assert list(json.loads(stored["fluent-1f600.json"])) == sorted(source.fields(1))
    assert {Image.open(io.BytesIO(data)).size for name, data in stored.items() if name.endswith(".webp")} == {(16, 16)}
    assert not (tmp_path / "emoji-16-val.tar").exists()  # nothing was held out


def test_two_builds_are_equal_byte_by_byte_and_compare_so(material: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert build(material, first, "--held-out", "0.3").exit_code == 0
    files = [first / f"emoji-16-{split}.tar" for split in ("train", "val")]
    compared = [option for file in files for option in ("--compare", str(file))]
    result = build(material, second, "--held-out", "0.3", *compared)
    assert result.exit_code == 0, result.output
    for file in files:
        assert file.read_bytes() == (second / file.name).read_bytes()
        with tarfile.open(file) as tar:
            assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}
    rows = [line for line in result.output.splitlines() if "in both" in line or "byte by byte" in line]
    assert [row.split("│")[2].strip() for row in rows] == ["7", "7"]
    assert sorted(path.name for path in second.iterdir()) == ["emoji-16-train.tar", "emoji-16-val.tar"]


def test_composing_names_what_has_no_picture(material: Path, tmp_path: Path) -> None:
    result = build(material, tmp_path, "--composed")
    assert result.exit_code == 2
    assert "snail: expected a picture in the style fluent; there is none" in result.output
    assert not list(tmp_path.glob("*.tar"))


def test_a_sheet_shows_each_shard(material: Path, tmp_path: Path) -> None:
    assert build(material, tmp_path, "--held-out", "0", "--sheet").exit_code == 0
    assert [file.name for file in tmp_path.glob("*.png")] == ["emoji-16-train.png"]


def test_a_style_can_be_left_out_but_not_all(material: Path, tmp_path: Path) -> None:
    assert build(material, tmp_path, "--held-out", "0", "--no-noto", "--no-twemoji").exit_code == 0
    assert {name.split("-")[0] for name in members(tmp_path / "emoji-16-train.tar")} == {"fluent"}
    result = build(material, tmp_path, "--no-noto", "--no-twemoji", "--no-fluent")
    assert result.exit_code == 2
    assert "expected at least one style" in result.output


def test_a_build_that_fails_leaves_the_shards_that_were_there(material: Path, tmp_path: Path) -> None:
    assert build(material, tmp_path, "--held-out", "0").exit_code == 0
    before = (tmp_path / "emoji-16-train.tar").read_bytes()
    (material / "fluent/2764-fe0f-200d-1f525.webp").write_bytes(b"no picture")
    result = build(material, tmp_path, "--held-out", "0")
    assert result.exit_code == 2
    assert "2764-fe0f-200d-1f525.webp: expected a picture" in result.output
    assert (tmp_path / "emoji-16-train.tar").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_font_gives_pictures_by_code_point_and_by_ligature() -> None:
    font = ColorFont(FONT)
    for codes, colour in ((["1F600"], RED), (["2764", "FE0F"], GREEN), (["2764", "FE0F", "200D", "1F525"], BLUE)):
        picture = font.picture(codes)
        assert picture is not None
        assert picture.size == (20, 16)
        assert picture.getpixel((0, 0)) == colour
    assert font.picture(["1F44B"]) is None  # not in the character map
    assert font.picture(["1F525"]) is None  # a glyph without a picture
    assert font.picture(["1F600", "200D", "1F525"]) is None  # no ligature


@pytest.mark.parametrize("data", [b"", b"no font at all", FONT[:60], FONT[:200], FONT.replace(b"CBDT", b"XXXX")])
def test_what_is_no_colour_font_is_refused(data: bytes) -> None:
    with pytest.raises(BuildError, match="font: expected"):
        ColorFont(data)


def test_pictures_lie_in_the_middle_of_a_white_square() -> None:
    picture = compose(Image.new("RGBA", (40, 20), (0, 0, 0, 255)), 20)
    assert (picture.mode, picture.size) == ("RGB", (20, 20))
    column = [picture.getpixel((10, y)) for y in (0, 19, 10)]
    assert column == [(255, 255, 255), (255, 255, 255), (0, 0, 0)]
    half = compose(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), 8)
    assert half.getpixel((4, 4)) == (127, 127, 127)


def test_skin_tones_and_unqualified_forms_are_left_out_and_keywords_sorted() -> None:
    emoji = read_emoji(EMOJI_TEST, [ANNOTATIONS.encode(), DERIVED.encode()])
    assert [one.name for one in emoji] == ["grinning face", "red heart", "heart on fire", "waving hand"]
    assert [one.keywords for one in emoji] == [("face", "grin", "grinning face"), ("heart",), ("burn", "heart"), ()]
    assert (emoji[3].group, emoji[3].subgroup) == ("People & Body", "hand-fingers-open")
    with pytest.raises(BuildError, match=r"emoji-test\.txt: expected lines"):
        read_emoji("nothing", [])
    with pytest.raises(BuildError, match="annotations: expected CLDR's XML"):
        read_emoji(EMOJI_TEST, [b"nothing"])


def test_of_two_file_names_for_an_emoji_the_first_is_taken(material: Path) -> None:
    Image.new("RGBA", (4, 4), GREEN).save(material / "fluent/2764-200d-1f525.webp", lossless=True)
    Image.new("RGBA", (4, 4), RED).save(material / "fluent/2764.webp", lossless=True)
    Image.new("RGBA", (4, 4), GREEN).save(material / "fluent/2764-fe0f.webp", lossless=True)
    style = fluent(material / "fluent")
    for emoji in read_emoji(EMOJI_TEST, [])[1:3]:  # red heart, heart on fire
        picture = style.draw(emoji)
        assert picture is not None
        assert picture.getpixel((0, 0)) == GREEN


def test_what_is_held_out_depends_on_key_and_seed_alone() -> None:
    # The demo's split; were it to change, its val would hold pictures that a published model was trained on.
    known = ("twemoji-1f600", "twemoji-1f617", "fluent-1f972", "fluent-1f69c", "fluent-1f1fd_1f1f0")
    assert all(shards.is_held_out(key, 25) for key in known)
    assert not any(shards.is_held_out(key, 25) for key in ("noto-1f600", "fluent-1f600", "noto-1f603", "fluent-1f603"))
    keys = [f"noto-{code:x}" for code in range(10_000)]
    chosen = {seed: {key for key in keys if shards.is_held_out(key, 25, seed)} for seed in (0, 1)}
    assert all(300 < len(some) < 500 for some in chosen.values())
    assert len(chosen[0] & chosen[1]) < 50
    assert not any(shards.is_held_out(key, 0) for key in keys)


@pytest.mark.parametrize("share, one_in", [(0.0, 0), (0.04, 25), (0.3, 3), (0.5, 2)])
def test_a_share_is_one_in_a_whole_number(share: float, one_in: int) -> None:
    assert shards.share_to_one_in(share) == one_in


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(BuildError, match=r"--held-out: expected a share from 0 to 0\.5"):
        shards.share_to_one_in(share)


def test_psnr() -> None:
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert compare.psnr(black, grey) == pytest.approx(13.9794, abs=1e-3)  # 20 log10(255 / 51)
    assert compare.psnr(grey, grey) == float("inf")


def test_a_comparison_names_what_differs(material: Path, tmp_path: Path) -> None:
    assert build(material, tmp_path / "one", "--held-out", "0").exit_code == 0
    Image.new("RGBA", (32, 32), GREEN).save(material / "fluent/1f600.webp", lossless=True)
    (material / "twemoji/2764.png").unlink()
    (material / "cldr/annotations/en.xml").write_text("<ldml/>")
    assert build(material, tmp_path / "two", "--held-out", "0").exit_code == 0
    result = compare.compare(*([tmp_path / name / "emoji-16-train.tar"] for name in ("one", "two")))
    assert (result.shared, result.only_ours, result.only_theirs) == (6, ["red heart twemoji"], [])
    assert (result.equal_fields, result.equal_bytes, len(result.psnr)) == (2, 5, 1)
    assert 0 < result.mean_psnr < 10
    with pytest.raises(BuildError, match="expected a shard"):
        compare.compare([material / "emoji-test.txt"], [])


def test_files_are_read_from_folders_and_archives_alike(material: Path, tmp_path: Path) -> None:
    tgz, wheel = tmp_path / "some.tgz", tmp_path / "some.whl"
    with tarfile.open(tgz, "w:gz") as tar:
        tar.add(material, "package")
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in material.rglob("*.*"):
            archive.write(file, f"package/{file.relative_to(material)}")
    patterns = ("annotations/en.xml", "fluent/*.webp")
    expected = sorted(read_files(material, *patterns).values())
    assert len(expected) == 3
    for path in (tgz, wheel):
        assert sorted(read_files(path, *patterns).values()) == expected


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb to make a Debian package")
def test_files_are_read_from_debian_packages(material: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True, mode=0o755)
    (root / "DEBIAN/control").write_text("Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n")
    shutil.copy(material / "font.ttf", root / "font.ttf")
    subprocess.run(["dpkg-deb", "--build", root, tmp_path / "a.deb"], check=True, capture_output=True)
    assert list(read_files(tmp_path / "a.deb", "*.ttf").values()) == [FONT]
    (tmp_path / "b.deb").write_bytes(b"nothing")
    with pytest.raises(BuildError, match="dpkg-deb cannot read it"):
        read_files(tmp_path / "b.deb", "*.ttf")


def test_what_cannot_be_read_is_named(material: Path) -> None:
    with pytest.raises(BuildError, match="no such file or folder"):
        read_files(material / "nowhere", "*.ttf")
    with pytest.raises(BuildError, match=r"expected files like \*\.svg in it; got none"):
        read_files(material, "*.svg")
    with pytest.raises(BuildError, match=r"expected a folder, or an archive \(\.deb, \.tgz"):
        read_files(material / "emoji-test.txt", "*.ttf")


def test_a_download_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"archive"
    package = packages.Package("npm", "@some/thing", "1.0", ".tgz", "--fluent", hashlib.sha256(content).hexdigest())
    commands = []

    def run(command: list[str], folder: Path, what: str) -> None:
        commands.append(command)
        (folder / "thing.tgz").write_bytes(content)

    monkeypatch.setattr(packages, "run", run)
    for _ in range(2):
        assert packages.Fetcher(tmp_path).archive(package) == tmp_path / "some-thing-1.0/thing.tgz"
    assert commands == [["npm", "pack", "--loglevel", "error", "@some/thing@1.0"]]
    (tmp_path / "some-thing-1.0/thing.tgz").write_bytes(b"another")
    with pytest.raises(BuildError, match=rf"expected sha256 {package.sha256} .*; got [0-9a-f]{{64}}"):
        packages.Fetcher(tmp_path, offline=True).archive(package)
    packages.Fetcher(tmp_path, any_version=True).archive(package)
    assert commands[1][-1] == "@some/thing@latest"
    with pytest.raises(BuildError, match=r"expected it in .* or by --noto, since --offline; got neither"):
        packages.Fetcher(tmp_path, offline=True).archive(packages.NOTO)


def test_a_tool_that_is_missing_or_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="thing: expected the tool no-such-tool; it is not installed"):
        packages.run(["no-such-tool"], tmp_path, "thing")
    with pytest.raises(BuildError, match=r"to succeed; got exit code 3: what went wrong"):
        packages.run([sys.executable, "-c", "import sys; print('what went wrong'); sys.exit(3)"], tmp_path, "thing")


def test_every_archive_has_a_hash() -> None:
    for package in (packages.NAMES, packages.KEYWORDS, packages.NOTO, packages.FLUENT, packages.TWEMOJI):
        assert package.sha256 is not None
        assert len(package.sha256) == 64


@pytest.mark.skipif(importlib.util.find_spec("resvg_py") is None, reason="needs resvg-py to draw SVG files")
def test_twemoji_is_drawn_from_svg(material: Path, tmp_path: Path) -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36"><path fill="#00F" d="M0 0h36v18H0z"/></svg>'
    (material / "twemoji/1f600.svg").write_text(svg)
    style = build_emoji.styles.twemoji(material / "twemoji", packages.Fetcher(tmp_path, offline=True).resvg(), 16)
    picture = style.draw(read_emoji(EMOJI_TEST, [])[0])
    assert picture is not None
    assert picture.size == (16, 16)
    assert [picture.getpixel((8, y)) for y in (2, 13)] == [(0, 0, 255, 255), (0, 0, 0, 0)]
