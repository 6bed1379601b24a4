"""One HTML page that needs nothing but itself: its skeleton, its styles, and the parts that it is put together from.

It fetches nothing and runs no script, so it can be mailed, archived, or served under the strictest policy; names from a
ledger are text here, never markup. The colours of a drawing become CSS variables, so that one drawing reads on light
and on dark.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from muxfer.redaction import redact
from muxfer.report.figures import INK, LINE, PAPER, twin


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page that its table of contents names: `name` there, `title` over the part itself."""

    name: str
    title: str
    body: str

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def html(title: str, head: str, sections: Sequence[Section] = ()) -> str:
    """The whole page: `head` first, then the sections, named in a table of contents that stays in sight."""
    body = "\n".join(
        f"<section id='{part.anchor}'><h2>{escape(part.title)}</h2>{part.body}</section>" for part in sections
    )
    contents = "".join(f"<a href='#{part.anchor}'>{escape(part.name)}</a>" for part in sections)
    nav = f"<nav aria-label='contents'><a href='#top'>Verdict</a>{contents}</nav>" if sections else ""
    colors = sorted(set(re.findall(r"var\(--c-([0-9a-f]{6})", head + body)))
    light = "".join(f"--c-{color}:#{color};" for color in colors)
    dark = "".join(f"--c-{color}:{twin('#' + color)};" for color in colors)
    style = f":root{{{light}}}{STYLE}@media screen and (prefers-color-scheme:dark){{:root{{{DARK}{dark}}}}}"
    return redact(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline';"
        ' img-src data:">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body id='top'>{nav}<main>\n"
        f"{head}\n{body}\n</main></body></html>\n"
    )


def headline(kicker: str, answer: str, why: str, tone: str, badge: str) -> str:
    mark = {"transfers": "✓", "drifts": "↘"}.get(tone, "?")
    tone = tone if tone in ("transfers", "drifts") else "abstains"
    return (
        f"<header class='{tone}'><p class='kicker'>{escape(kicker)}"
        f" <span class='badge'>{mark} {escape(badge)}</span></p>"
        f"<h1>{escape(answer)}</h1><p>{_prose(why)}</p></header>"
    )


def section(title: str, body: str) -> str:
    """A part that no table of contents names."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """What the page says in numbers: a name, the number, and what it means."""
    items = "".join(
        f"<div><h3>{escape(name)}</h3><p class='fact'>{_prose(fact)}</p><p>{_prose(note)}</p></div>"
        for name, fact, note in facts
    )
    return f"<div class='tiles'>{items}</div>"


def figure(picture: str, caption: str, files: Sequence[Path] = ()) -> str:
    """A drawing, what it shows, and links to its files beside the page."""
    links = " ".join(
        f"<a href='{escape(quote(file.name))}'>{escape(_kind(file, files))}</a>"
        for file in sorted(files, key=lambda file: (".png.svg.csv".find(file.suffix), len(file.name)))
    )
    below = f"<p class='files'>{links}</p>" if links else ""
    return f"<figure><div class='scroll'>{picture}</div><figcaption>{_prose(caption)}{below}</figcaption></figure>"


def _kind(file: Path, files: Sequence[Path]) -> str:
    """PNG, SVG, CSV; the second CSV by its name."""
    first = min((other.name for other in files if other.suffix == file.suffix), key=len)
    return file.suffix[1:].upper() if file.name == first else file.name


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, last_strong: bool = False) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    lines = [f"<tr>{head}</tr>"]
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        strong = " class='strong'" if last_strong and index == len(rows) - 1 else ""
        lines.append(f"<tr{strong}><th scope='row'>{escape(row[0])}</th>{cells}</tr>")
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def pairs(values: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in values.items())
    return f"<dl>{items}</dl>"


def note(*sentences: str) -> str:
    return f"<p class='note'>{_prose(' '.join(sentence for sentence in sentences if sentence))}</p>"


def _prose(text: str) -> str:
    """Escaped, and a number is not parted from its percent sign at the end of a line."""
    return escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def folded(summary: str, body: str, *, unfolded: bool = False) -> str:
    return f"<details{' open' if unfolded else ''}><summary>{escape(summary)}</summary>{body}</details>"


def inline(svg: str, prefix: str) -> str:
    """A drawing as part of a page: its colours become the page's variables, its ids its own, its style sheet goes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    width = re.search(r'(?<=<svg )[^>]*?width="([0-9.]+)pt"', svg)
    natural = f"style='max-width:{float(width[1]) * LARGEST:.0f}pt' " if width else ""
    svg = re.sub(r'(?<=<svg )([^>]*?)width="[^"]*"', rf"{natural}\1", svg, count=1)
    svg = re.sub(r'(?<=<svg )([^>]*?)height="[^"]*"', r"\1role='img'", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    fixed = {INK: "var(--ink)", LINE: "var(--line)", PAPER: "var(--paper)"}

    def variable(found: re.Match[str]) -> str:
        return found[1] + fixed.get(found[2], f"var(--c-{found[2][1:]},{found[2]})")

    return re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})\b", variable, svg)


LARGEST = 1.2
"""A drawing grows with the page up to so many times its own size: letters as large as headlines help nobody."""

DARK = """--ink:#e7e6e2;--soft:#a3a6ad;--line:#363a41;--paper:#15171b;--tint:#1e2126;
--good:#5cc8a8;--bad:#f2a25c;--near:#2c3440;--link:#8ab4f8;"""

STYLE = """
:root{color-scheme:light dark;--ink:#1c1e22;--soft:#5d626b;--line:#d5d8dc;--paper:#fefefe;--tint:#f4f5f6;
--good:#0b7a5e;--bad:#a8500a;--near:#e6ebf3;--link:#1a56b0}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:62rem;margin:0 auto;padding:2rem 1.25rem 5rem}
a{color:var(--link)}
nav{position:sticky;top:0;z-index:1;display:flex;gap:.2rem;overflow-x:auto;padding:.5rem 1rem;
background:var(--paper);border-bottom:1px solid var(--line);font-size:.88rem}
nav a{color:var(--soft);text-decoration:none;white-space:nowrap;padding:.2rem .6rem;border-radius:.4rem}
nav a:hover,nav a:focus-visible{color:var(--ink);background:var(--tint)}
header{border-left:.35rem solid var(--tone);padding-left:1.1rem;--tone:var(--soft)}
header.transfers{--tone:var(--good)}header.drifts{--tone:var(--bad)}
header p{margin:.3rem 0;max-width:46rem;overflow-wrap:anywhere}
h1{font-size:clamp(1.45rem,1rem + 2vw,2.1rem);line-height:1.2;margin:.35rem 0;font-weight:650;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .8rem;font-weight:650;overflow-wrap:anywhere}
h3{font-size:.82rem;margin:0 0 .2rem;font-weight:500;color:var(--soft);overflow-wrap:anywhere}
.kicker,.note,figcaption,.about{color:var(--soft);font-size:.88rem;overflow-wrap:anywhere}
.badge{color:var(--tone);border:1px solid;border-radius:1rem;padding:.05rem .6rem;margin-left:.4rem;
font-weight:600;white-space:nowrap}
.about{margin:1rem 0 0;max-width:46rem}
.choice,.next{background:var(--tint);border-radius:.6rem;padding:1rem 1.15rem;min-width:0}
.choice p,.next p{margin:.1rem 0;overflow-wrap:anywhere}
.choice b{font-size:1.35rem;font-weight:650;margin-right:.35rem}.choice small{color:var(--soft);margin-right:1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));gap:.8rem;margin:1.5rem 0 0}
.tiles{margin-top:.8rem;display:grid;grid-template-columns:repeat(auto-fit,minmax(min(9.2rem,100%),1fr));gap:.8rem}
.tiles>div{border:1px solid var(--line);border-radius:.6rem;padding:.75rem .9rem;min-width:0}
.tiles p{margin:0;color:var(--soft);font-size:.84rem;line-height:1.4;overflow-wrap:anywhere}
.tiles p.fact{color:var(--ink);font-size:1.3rem;font-weight:650;font-variant-numeric:tabular-nums}
pre{margin:.2rem 0 0;font:.95rem/1.5 ui-monospace,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
section{margin-top:2.6rem;border-top:1px solid var(--line);padding-top:1.4rem;scroll-margin-top:3rem}
figure{margin:0 0 1rem}figure+figure{margin-top:1.6rem}figcaption{margin-top:.5rem;max-width:52rem}
.files{margin:.35rem 0 0}.files a{margin-right:.7rem}
svg{display:block;width:100%;height:auto;min-width:34rem;fill:currentColor;
stroke-linejoin:round;stroke-linecap:butt}
.samples{display:block;width:100%;max-width:36rem;image-rendering:pixelated}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.3rem .9rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:500;color:var(--soft)}th:first-child,td:first-child{text-align:left;padding-left:.3rem}
tr.strong>*,td.best{font-weight:700;color:var(--ink)}
td.best,td.near{background:var(--near)}td.none{color:var(--soft);font-style:italic}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.3rem 1.6rem;margin:0;font-size:.92rem}
dt{color:var(--soft);max-width:16rem;overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
details{margin-top:.8rem}summary{cursor:pointer;color:var(--soft);font-size:.92rem;border-radius:.3rem}
summary:hover{color:var(--ink)}details[open]>summary{margin-bottom:.6rem}
#every-trial table{font-size:.8rem}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
@media(max-width:30rem){dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:.5rem}main{padding-top:1.25rem}}
@media(min-width:80rem){body{display:grid;grid-template-columns:13rem minmax(0,1fr);align-items:start}
nav{flex-direction:column;align-self:start;max-height:100vh;padding:2.2rem 1rem;border:0;overflow:auto}
body:not(:has(nav)){display:block}
main{width:100%}section{scroll-margin-top:1rem}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{nav{display:none}body{display:block;font-size:11pt}section,figure{break-inside:avoid}
.scroll{overflow:visible}details::details-content{content-visibility:visible;block-size:auto}}
"""
