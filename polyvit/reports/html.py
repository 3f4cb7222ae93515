"""Parts of an HTML page that needs nothing but itself: style, pictures inside, tables, boxes.

In: words, numbers, PNG files. Out: HTML; all words are escaped here, except where `<br>` or HTML is asked for.
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CSS_PIXELS = 0.65
"""Of the page to a pixel of a picture: the same for all, so that their letters are of one size."""
_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #222;
  background: #fff; margin: 0 auto; padding: 1.5rem 2rem 4rem; max-width: 1240px; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 52rem; } .faint { color: #666; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; }
.fact { border: 1px solid #ddd; border-left: 4px solid #0072B2; border-radius: 4px; padding: .45rem .75rem; }
.fact b { display: block; font-size: 1.1rem; } .fact span { color: #666; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; }
th, td { padding: .28rem .45rem; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: nowrap; }
th { background: #f6f6f6; vertical-align: bottom; } td.word, th.word { text-align: left; }
td.best { font-weight: 700; background: #dcebf6; } tr.first td { border-bottom: 2px solid #0072B2; }
img { max-width: 100%; height: auto; display: block; margin: .4rem 0 0; }
pre { background: #f6f6f6; padding: .7rem 1rem; overflow-x: auto; font-size: .85rem; }
.note { border-left: 4px solid #E69F00; background: #fff8ea; padding: .4rem .9rem; margin: .5rem 0; }
"""
_WORD = ' class="word"'


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """The whole page; `parts` are HTML, `style` is added to the common one."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{_CSS}{style}</style></head><body>"
    )
    return head + "\n" + "\n".join(parts) + "\n</body></html>\n"


def safe(text: Any) -> str:
    """Escaped."""
    return html.escape(str(text))


def image(path: Path, says: str, css_pixels: float = CSS_PIXELS) -> str:
    """A PNG file inside the page; `says` is for those who cannot see it."""
    content = path.read_bytes()
    width = round(int.from_bytes(content[16:20], "big") * css_pixels)  # from the PNG's header
    data = base64.b64encode(content).decode()
    return f'<img alt="{safe(says)}" style="width: {width}px" src="data:image/png;base64,{data}">'


def fact_boxes(facts: Sequence[tuple[Any, Any]]) -> str:
    """Boxes in a row: (value, what it is)."""
    boxes = [f'<div class="fact"><b>{safe(value)}</b><span>{safe(what)}</span></div>' for value, what in facts]
    return f'<div class="facts">{"".join(boxes)}</div>'


def cell(value: Any, best: bool = False, word: bool = False, hover: str = "") -> str:
    """A cell of a table: shaded as its column's best, or standing left as words do."""
    kind = ' class="best"' if best else _WORD if word else ""
    title = f' title="{safe(hover)}"' if hover else ""
    return f"<td{kind}{title}>{safe(value)}</td>"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[int], first: bool = True) -> str:
    """`heads` may hold <br>; those in `words` stand left. first: a line is drawn below the first row."""
    top = "".join(
        f"<th{_WORD if i in words else ''}>{'<br>'.join(map(safe, head.split('<br>')))}</th>"
        for i, head in enumerate(heads)
    )
    marks = [' class="first"' if first and i == 0 else "" for i in range(len(lines))]
    rows = "".join(f"<tr{mark}>{''.join(line)}</tr>" for mark, line in zip(marks, lines, strict=True))
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
