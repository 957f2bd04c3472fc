"""Pages that need no other file: inline SVG, no script, nothing from elsewhere; dark where the reader's browser is.

Used by `cost_page`, `plan_picture`, `run_timeline` and `compare.page`. Pure: text and drawings in, bytes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from orchestrator.tracking.palette import DARK

_NAME = {light: f"--c{light[1:]}" for light in DARK}
_METADATA = re.compile("<metadata>.*?</metadata>", re.DOTALL)
_HEX = re.compile("|".join(DARK), re.IGNORECASE)


def page(title: str, parts: Iterable[str], style: str = "") -> bytes:
    """A whole document; `parts` are HTML already and `style` is CSS, `title` is neither."""
    sets = {"light": _set(False), "dark": _set(True)}
    return _PAGE.format(title=escape(title), body="\n".join(parts), style=style, **sets).encode()


def colour(light: str) -> str:
    """A colour of the palette as a value of CSS, which follows the reader's."""
    return f"var({_NAME[light]})"


def heading(text: str, level: int = 1) -> str:
    """Of the page, or of a part of it."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A line of words."""
    return f"<p>{escape(text)}</p>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for; a name may come twice."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in pairs)
    return f"<dl>{lines}</dl>"


def drawing(svg: bytes, label: str) -> str:
    """matplotlib's SVG without the head of a file of its own; `label` is what it shows, for those who cannot see it."""
    text = svg.decode()
    text = _METADATA.sub("", text[text.index("<svg") :]).replace(
        "<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1
    )
    # its colours follow the reader's: an attribute cannot, so they become properties of the style
    return f"<figure>{_HEX.sub(lambda found: f'var({_NAME[found[0].lower()]})', text)}</figure>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The first column holds names, all others numbers. Nothing where there are no rows."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    if not lines:
        return ""
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _set(dark: bool) -> str:
    return "; ".join(f"{name}: {DARK[light] if dark else light}" for light, name in _NAME.items())


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--c1f2933); background: var(--cffffff);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word }}
h1 {{ font-size: 1.5rem; line-height: 1.25 }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
figure {{ margin: 1.5rem 0; overflow-x: auto }} svg {{ width: 100%; min-width: 40rem; height: auto; display: block }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 1rem 0 }}
dt {{ color: var(--c66727f) }} dd {{ margin: 0 }}
.wide {{ overflow-x: auto; margin: 1rem 0 }}
table {{ border-collapse: collapse }}
th {{ color: var(--c66727f); font-weight: 600; vertical-align: bottom }}
th, td {{ padding: .25rem 1.2rem .25rem 0; text-align: left; border-bottom: 1px solid var(--ce4e7eb) }}
th + th, td + td {{ text-align: right; font-variant-numeric: tabular-nums }}
{style}</style></head><body>
{body}
</body></html>
"""
