"""The preview as one HTML file that needs no network and runs no script."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from tunesmith.data.preview import Piece, Preview, headline, pieces, runs, trained_tokens, visible
from tunesmith.data.render import Rendered
from tunesmith.errors import DataError

MARK = "<!doctype html>\n<!-- tunesmith preview -->\n"

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
<p class="legend"><mark><span>trained</span></mark>
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
    head = HEAD.format(
        title=_text(title),
        extent=_text(preview.extent),
        style=STYLE.read_text(encoding="utf-8"),
        ledger=facts,
    )
    file.write_text(MARK + head + "".join(articles) + "</body>\n</html>\n", encoding="utf-8")


def _facts(preview: Preview) -> Iterator[tuple[str, str]]:
    """The ledger's numbers as rows of the table."""
    for key, value in preview.ledger.as_dict().items():
        name = key.replace("_", " ")
        if not isinstance(value, dict):
            yield name, f"{value:,}"
            continue
        for inner, entry in value.items():
            fact = f"{entry['count']:,} ({', '.join(entry['first'])})" if isinstance(entry, dict) else str(entry)
            yield f"{name}: {inner}", fact


def _article(one: Rendered, preview: Preview) -> Iterator[str]:
    yield "<article class=dropped>\n" if one.dropped else "<article>\n"
    yield f"<header><h2>{_text(one.where)}</h2><p>{escape(headline(one))}</p></header>\n"
    if one.branches:
        share = trained_tokens(one) / sum(map(len, one.branches))
        yield f'<div class="bar"><i style="width:{share:.1%}"></i></div>\n'
    for name, tokens in zip(preview.branches, one.branches, strict=False):
        if len(preview.branches) > 1:
            yield f"<h3>{escape(name)}</h3>\n"
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
