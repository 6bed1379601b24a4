"""One HTML page that needs nothing but itself: its skeleton, its styles, and the parts that it is put together from.

It fetches nothing and runs no script, so it can be mailed, archived, or served under the strictest policy; names from a
ledger are text here, never markup. The colours of a drawing become CSS variables, so that one drawing reads on light
and on dark.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from muxfer.figures import INK, LINE, PAPER


def html(title: str, sections: Sequence[str], shades: Mapping[str, str]) -> str:
    """The whole page. `shades` gives each colour that its drawings use (#rrggbb) its twin on a dark background."""
    light = "".join(f"--c-{name[1:]}:{name};" for name in shades)
    dark = "".join(f"--c-{name[1:]}:{shade};" for name, shade in shades.items())
    style = f":root{{{light}}}{STYLE}@media(prefers-color-scheme:dark){{:root{{{DARK}{dark}}}}}"
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline';"
        ' img-src data:">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def headline(kicker: str, answer: str, why: str, tone: str, badge: str) -> str:
    mark = {"transfers": "✓", "drifts": "↘"}.get(tone, "?")
    tone = tone if tone in ("transfers", "drifts") else "abstains"
    return (
        f"<header class='{tone}'><p class='kicker'>{escape(kicker)}"
        f" <span class='badge'>{mark} {escape(badge)}</span></p>"
        f"<h1>{escape(answer)}</h1><p>{escape(why)}</p></header>"
    )


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def figure(picture: str, caption: str) -> str:
    return f"<figure><div class='scroll'>{picture}</div><figcaption>{escape(caption)}</figcaption></figure>"


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


def inline(svg: str, prefix: str) -> str:
    """A drawing as part of a page: its colours become the page's variables, its ids its own, its style sheet goes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<=<svg )([^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(?<=<svg )([^>]*?)height="[^"]*"', r"\1role='img'", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    fixed = {INK: "var(--ink)", LINE: "var(--line)", PAPER: "var(--paper)"}

    def variable(found: re.Match[str]) -> str:
        return found[1] + fixed.get(found[2], f"var(--c-{found[2][1:]},{found[2]})")

    return re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})\b", variable, svg)


DARK = """--ink:#e7e6e2;--soft:#a3a6ad;--line:#363a41;--paper:#15171b;--tint:#1e2126;
--good:#5cc8a8;--bad:#f2a25c;--near:#2c3440;"""

STYLE = """
:root{color-scheme:light dark;--ink:#1c1e22;--soft:#5d626b;--line:#d5d8dc;--paper:#fefefe;--tint:#f4f5f6;
--good:#0b7a5e;--bad:#a8500a;--near:#e6ebf3}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:56rem;margin:0 auto;padding:2rem 1.25rem 4rem}
header{border-left:.35rem solid var(--tone);padding-left:1.1rem;--tone:var(--soft)}
header.transfers{--tone:var(--good)}header.drifts{--tone:var(--bad)}
header p{margin:.3rem 0;max-width:46rem}
h1{font-size:1.75rem;line-height:1.2;margin:.35rem 0;font-weight:650}
h2{font-size:1.05rem;margin:0 0 .7rem;font-weight:650}
.kicker,.note,figcaption,.about{color:var(--soft);font-size:.88rem}
.badge{color:var(--tone);border:1px solid;border-radius:1rem;padding:.05rem .6rem;margin-left:.5rem;font-weight:600}
.about{margin:1rem 0 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem;margin:1.4rem 0 0}
.cards>div{background:var(--tint);border-radius:.5rem;padding:1rem 1.1rem}
.cards h2{color:var(--soft);font-size:.8rem;margin:0 0 .3rem;font-weight:500}
.cards p{margin:.1rem 0}.cards b{font-size:1.2rem}.cards small{color:var(--soft)}
pre{margin:.2rem 0 0;font:1rem/1.5 ui-monospace,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
section{margin-top:2.4rem;border-top:1px solid var(--line);padding-top:1.2rem}
figure{margin:0}svg{display:block;width:100%;height:auto;min-width:30rem;fill:currentColor;
stroke-linejoin:round;stroke-linecap:butt}
.samples{display:block;width:100%;max-width:36rem;image-rendering:pixelated}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.28rem .9rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:500;color:var(--soft)}th:first-child,td:first-child{text-align:left;padding-left:.3rem}
tr.strong>*,td.best{font-weight:700;color:var(--ink)}
td.best,td.near{background:var(--near)}td.none{color:var(--soft);font-style:italic}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.4rem;margin:0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer}details table{margin-top:.8rem;font-size:.82rem}
@media print{details{display:block}}
"""
