"""Self-contained HTML pages (data sets, rankings): a title and sections of text, tables and figures."""

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from quintet.files import atomic_file

NUMBER = re.compile(r"[-+<]? ?[\d.]|$")  # the beginning of a cell
TEMPLATE = jinja2.Template(
    """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d5dce3}h3{font-size:1rem}
div.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .7rem;text-align:left;border-bottom:1px solid #e6ebf0;white-space:nowrap}
th{background:#f3f6f9}.number{text-align:right}
p.lead{font-size:1.1rem;background:#eef5fb;border-left:4px solid #2b6cb0;padding:.7rem 1rem}
img{max-width:100%}a{color:#2b6cb0}nav a,p.links a{margin-right:1.2rem}
summary{cursor:pointer;color:#2b6cb0;margin:.6rem 0}
</style></head><body><h1>{{ title }}</h1>{% if lead %}<p class="lead">{{ lead }}</p>{% endif %}
{% if contents|length > 2 %}<nav>{% for id, heading in contents.items() %}<a href="#{{ id }}">{{ heading }}</a>
{% endfor %}</nav>{% endif %}
{% for s in sections %}{% if s.folded %}<details><summary>{{ s.heading }}</summary>
{% else %}<section id="part-{{ loop.index }}">
{% if s.heading %}<h{{ s.level }}>{{ s.heading }}</h{{ s.level }}>{% endif %}{% endif %}
{% if s.lead %}<p class="lead">{{ s.lead }}</p>{% endif %}
{% for paragraph in s.paragraphs %}<p>{{ paragraph }}</p>{% endfor %}
{% if s.table is not none %}{% set columns = s.columns %}<div class="wide"><table><thead><tr>
{% for c in columns %}<th{{ c.style }}>{{ c.name }}</th>{% endfor %}</tr></thead><tbody>
{% for k in range(s.table|length) %}<tr>{% for c in columns %}<td{{ c.style }}>{{ c.cells[k] }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% for name, data in s.images %}<p><img alt="{{ name }}" src="data:image/png;base64,{{ data }}"></p>{% endfor %}
{% if s.links %}<p class="links">
{% for text, url in s.links.items() %}<a href="{{ url }}">{{ text }}</a> {% endfor %}</p>{% endif %}
{% if s.folded %}</details>{% else %}</section>{% endif %}
{% endfor %}</body></html>
""",
    autoescape=True,
)


def format_number(value: float) -> str:
    """Format as 1234.57, 7.125 or 0.9083, and with two significant digits below 0.001."""
    size = abs(value)
    return f"{value:.2f}" if size >= 10 else f"{value:.3f}" if size >= 1 else f"{value:.4f}" if size >= 1e-3 else f"{value:.2g}"


def format_cell(value: object) -> str:
    """A table's cell: numbers by format_number, an unknown value as nothing."""
    if pd.isna(value):
        return ""
    return format_number(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Column:
    name: str
    cells: list[str]

    @property
    def style(self) -> Markup:
        """Columns of numbers are right-aligned."""
        return Markup(' class="number"' if all(NUMBER.match(cell) for cell in self.cells) else "")


@dataclass
class Section:
    """One section of a page. Blank lines in `text` separate paragraphs; text is escaped, not interpreted as HTML."""

    heading: str = ""
    text: str = ""
    table: pd.DataFrame | None = None
    figures: list[Path] = field(default_factory=list)
    lead: str = ""  # highlighted, above the text
    links: dict[str, str] = field(default_factory=dict)  # link text -> URL
    folded: bool = False  # collapsed until its heading is clicked
    level: int = 2  # of the heading; those of level 2 are in the page's list of contents

    @property
    def paragraphs(self) -> list[str]:
        return [p for p in self.text.split("\n\n") if p.strip()]

    @property
    def columns(self) -> list[Column]:
        return [] if self.table is None else [Column(str(name), [*map(format_cell, cells)]) for name, cells in self.table.items()]

    @property
    def images(self) -> list[tuple[str, str]]:
        return [(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in self.figures]


def write_page(path: Path, title: str, sections: list[Section], *, lead: str = "") -> None:
    """Write one HTML file that needs no other files: figures are embedded."""
    with atomic_file(path) as temporary:
        contents = {f"part-{k}": s.heading for k, s in enumerate(sections, 1) if s.heading and s.level == 2 and not s.folded}
        temporary.write_text(TEMPLATE.render(title=title, lead=lead, contents=contents, sections=sections), encoding="utf-8")
