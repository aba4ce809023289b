"""The preview as one HTML file that needs no network and runs no script."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.data.ledger import places
from tunesmith.data.lengths import in_order, readable
from tunesmith.data.preview import Piece, Preview, branches, headline, pieces, runs, trained_tokens, visible
from tunesmith.data.rendered import Rendered
from tunesmith.errors import DataError

MARK = "<!doctype html>\n<!-- tunesmith preview -->\n"

ALWAYS = ("rows_read", "rows_kept", "samples", "tokens", "trained_tokens")  # said also where they are 0
STYLE = Path(__file__).with_name("page.css")
HEAD = """<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Preview of {title}</title>
<style>{style}</style>
</head>
<body>
<h1>Preview of {title}</h1>
<p>The numbers count {extent}.</p>
<table>
{ledger}</table>
{more}<p class="legend"><mark><span>trained</span></mark>
<mark class="part"><b>\u00d70.5</b><span>trained with weight 0.5</span></mark>
<span class="soft">not trained</span>
<span class="special">&lt;special&gt;</span>
<span class="soft">point at a token to see its id and weight</span></p>
"""


def write(path: str, preview: Preview, title: str) -> None:
    """Write the page. Raises DataError when the file exists and is not such a page."""
    file = Path(path)
    if file.exists() and file.read_bytes()[: len(MARK)] != MARK.encode():
        raise DataError(f"--html: {file} exists and is not a preview: name another file")
    articles = ["".join(_article(one, preview)) for one in preview]
    facts = "".join(f"<tr><th>{_text(name)}</th><td>{_text(fact)}</td></tr>\n" for name, fact in _facts(preview))
    counts = preview.ledger.as_dict()
    head = HEAD.format(
        title=_text(title),
        extent=_text(preview.extent),
        style=STYLE.read_text(encoding="utf-8"),
        ledger=facts,
        more="".join([*_sources(counts), *_lengths(preview, counts)]),
    )
    file.write_text(MARK + head + "".join(articles) + "</body>\n</html>\n", encoding="utf-8")


def _facts(preview: Preview) -> Iterator[tuple[str, str]]:
    """What is to be said of the rows, and the ledger's numbers, as rows of the table."""
    for line in preview.notes:
        yield "note", line
    for key, value in preview.ledger.as_dict().items():
        name = key.replace("_", " ")
        if isinstance(value, int):
            if value or key in ALWAYS:
                yield name, f"{value:,}"
        elif key in ("dropped", "found"):
            for what, entry in value.items():
                yield f"{name}: {what}", f"{entry['count']:,} ({places(entry)})"
        elif key == "tokens_dropped":
            for what, tokens in value.items():
                yield f"{name}: {what}", f"{tokens:,}"


def _sources(counts: Mapping[str, Any]) -> Iterator[str]:
    """What each source brought, where there are several, with its share of all."""
    if len(counts["sources"]) < 2:
        return
    columns = ("rows_read", "samples", "tokens", "trained_tokens")
    heads = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in columns)
    yield f'<table class="sources">\n<tr><th>source</th>{heads}</tr>\n'
    for name, own in counts["sources"].items():
        cells = (f"{own[key]:,} <i>{own[key] / max(1, counts[key]):.1%}</i>" for key in columns)
        yield f"<tr><td>{_text(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
    yield "</table>\n"


def _lengths(preview: Preview, counts: Mapping[str, Any]) -> Iterator[str]:
    """The samples by their length, as bars."""
    rows = in_order(counts["lengths"])
    if not rows:
        return
    yield "".join(f'<p class="legend">{_text(line)}</p>\n' for line in preview.length_lines())
    yield '<table class="lengths">\n'
    most = max(count for _, count in rows)
    for label, count in rows:
        bar = f'<i style="width:{count / most:.1%}"></i>' if count else ""
        yield f"<tr><th>{readable(label)}</th><td>{bar}</td><td>{count:,}</td></tr>\n"
    yield "</table>\n"


def _article(one: Rendered, preview: Preview) -> Iterator[str]:
    yield "<article class=dropped>\n" if one.dropped else "<article>\n"
    yield f"<header><h2>{_text(one.where)}</h2><p>{escape(headline(one, preview.classes))}</p></header>\n"
    if one.branches:
        share = trained_tokens(one) / sum(map(len, one.branches))
        yield f'<div class="bar"><i style="width:{share:.1%}"></i></div>\n'
    for title, tokens in branches(one, preview.branches):
        if title:
            yield f"<h3>{escape(title)}</h3>\n"
        yield "<pre>"
        for weight, run in runs(pieces(tokens, preview.tokenizer)):
            spans = "".join(map(_span, run))
            if weight == 1:
                yield f"<mark>{spans}</mark>"
            elif weight:
                yield f'<mark class="part"><b>\u00d7{weight:g}</b>{spans}</mark>'
            else:
                yield spans
        yield "</pre>\n"
    yield "</article>\n"


def _span(piece: Piece) -> str:
    ids = "id " + " ".join(map(str, piece.ids))
    kind = ' class="special"' if piece.special else ""
    return f'<span{kind} data-t="{ids}, weight {piece.weight:g}">{_text(piece.text)}</span>'


def _text(text: str) -> str:
    return escape(visible(text))
