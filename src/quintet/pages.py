"""Self-contained HTML pages (data sets, rankings): a title and sections of text, tables and figures."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd

from quintet.files import atomic_file

TEMPLATE = jinja2.Template(
    """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d5dce3}
div.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #e6ebf0;white-space:nowrap}
th{background:#f3f6f9}td:first-child,th:first-child{text-align:left}
p.lead{font-size:1.1rem;background:#eef5fb;border-left:4px solid #2b6cb0;padding:.7rem 1rem}
img{max-width:100%}a{color:#2b6cb0}p.links a{margin-right:1.2rem}
summary{cursor:pointer;color:#2b6cb0;margin:.6rem 0}
</style></head><body><h1>{{ title }}</h1>{% if lead %}<p class="lead">{{ lead }}</p>{% endif %}
{% for s in sections %}{% if s.folded %}<details><summary>{{ s.heading }}</summary>
{% else %}<section>{% if s.heading %}<h2>{{ s.heading }}</h2>{% endif %}{% endif %}
{% if s.lead %}<p class="lead">{{ s.lead }}</p>{% endif %}
{% for paragraph in s.paragraphs %}<p>{{ paragraph }}</p>{% endfor %}
{% if s.html %}<div class="wide">{{ s.html|safe }}</div>{% endif %}
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

    @property
    def paragraphs(self) -> list[str]:
        return [p for p in self.text.split("\n\n") if p.strip()]

    @property
    def html(self) -> str:
        if self.table is None:
            return ""
        return self.table.to_html(index=False, border=0, na_rep="", float_format=format_number, escape=True)

    @property
    def images(self) -> list[tuple[str, str]]:
        return [(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in self.figures]


def write_page(path: Path, title: str, sections: list[Section], *, lead: str = "") -> None:
    """Write one HTML file that needs no other files: figures are embedded."""
    with atomic_file(path) as temporary:
        temporary.write_text(TEMPLATE.render(title=title, lead=lead, sections=sections), encoding="utf-8")
