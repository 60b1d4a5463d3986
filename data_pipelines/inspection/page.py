"""What an inspection found, for people: findings, a table, and one HTML page that needs neither network nor scripts."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np

from data_pipelines.inspection.report import DataSetReport, ReadSample, SplitReport

NAMED = 5  # keys or texts that a finding names
BARS, CLASSES, CAPTIONS_SHOWN = 12, 20, 6  # rows of a histogram, and at most so many listed
BOXES_NAMED = 12  # more names would hide the picture
LONGEST_TEXT = 300  # characters of an untrusted text that are shown
WIDTH = 320  # of a picture's drawing, in its own units
LETTER, LINE = 7.5, 12  # about the size of a name's letter, in the same units
COLOURS = ("#ff4d4d", "#4da3ff", "#3ddc84", "#ffc83d", "#d27dff", "#ff9440", "#2fe0e0", "#ff7ab8")


@dataclass(frozen=True)
class Finding:
    """Something to know. A fault makes the command fail; the rest is for a person to judge."""

    fault: bool
    text: str


def findings(report: DataSetReport) -> list[Finding]:
    """Damaged splits and broken samples, then what splits share and what may surprise."""
    found = [Finding(True, f"split {s.split} cannot be read: {s.damage}") for s in report.splits if s.damage]
    for s in report.splits:
        for reason, keys in sorted(s.broken.items(), key=lambda item: -len(item[1])):
            found.append(Finding(True, f"split {s.split}: {reason}: {_count_of(len(keys), 'sample')} ({_named(keys)})"))
    for both in report.shared:
        splits = f"splits {both.first} and {both.second} share"
        if both.keys:
            found.append(Finding(False, f"{splits} {_count_of(len(both.keys), 'key')} ({_named(both.keys)})"))
        if both.pictures:
            pairs = [first if first == second else f"{first} = {second}" for first, second in both.pictures]
            found.append(
                Finding(False, f"{splits} {_count_of(len(pairs), 'picture')}, byte for byte ({_named(pairs)})")
            )
        if both.captions:
            texts = [f"“{_clipped(text, 60)}”" for text in both.captions]
            found.append(Finding(False, f"{splits} {_count_of(len(texts), 'caption')} ({_named(texts, 3)})"))
    for s in report.splits:
        listed = report.manifest.samples.get(s.split, s.samples)
        if listed != s.samples and not s.damage:
            found.append(
                Finding(False, f"split {s.split}: samples found: {s.samples:,}; manifest.json says {listed:,}")
            )
        repeated = [f"“{_clipped(text, 60)}” {n} times" for text, n in s.captions.most_common(3) if n > 1]
        if repeated:
            found.append(Finding(False, f"split {s.split} repeats captions: {', '.join(repeated)}"))
    return found


def verdict(report: DataSetReport) -> str:
    """Whether the data set is sound, in a sentence."""
    if report.sound:
        return "No split is damaged and no sample is broken."
    damaged, broken = sum(bool(s.damage) for s in report.splits), sum(s.broken_samples for s in report.splits)
    return f"{_count_of(damaged, 'damaged split')}, {_count_of(broken, 'broken sample')}."


def _count_of(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _named(names: list[str], most: int = NAMED) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def _clipped(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def table_rows(report: SplitReport) -> dict[str, str]:
    """What is counted in a split, as text by name; the names are the same for every split."""
    s = report
    texts, tokens = s.captions.total(), sum(length * count for length, count in s.tokens.items())
    mean, std, zeros = s.features.mean_std_zeros()
    return {
        "samples": f"{s.samples:,}",
        "pictures": f"{s.pictures:,}",
        "captions": f"{texts + s.empty_captions:,}",
        "regions": f"{sum(n * count for n, count in s.regions_per_sample.items()):,}",
        "boxes without features": f"{s.boxes_without_features:,}",
        "broken samples": f"{s.broken_samples:,}",
        "samples without picture": f"{s.samples - s.pictures:,}",
        "samples without captions": f"{s.without_captions:,}",
        "samples without regions": f"{s.without_regions:,}",
        "empty captions": f"{s.empty_captions:,}",
        "repeated captions": f"{texts - len(s.captions):,}",
        "captions of a sample": spread(s.captions_per_sample),
        "words of a caption": spread(s.words),
        "tokens of a caption": spread(s.tokens),
        "unknown tokens": f"{s.unknown_tokens / tokens:.2%}" if tokens else "-",
        "regions of a sample": spread(s.regions_per_sample),
        "feature mean ± std": f"{mean:.3g} ± {std:.3g}" if s.features.count else "-",
        "features that are zero": f"{zeros:.1%}" if s.features.count else "-",
    }


def readable_splits(report: DataSetReport) -> list[SplitReport]:
    """Splits that a table has a column for: all but those of which nothing could be read."""
    return [s for s in report.splits if s.samples or not s.damage]


def _expanded(counts: Counter[int]) -> np.ndarray:
    return np.repeat(sorted(counts), [counts[number] for number in sorted(counts)])


def spread(counts: Counter[int]) -> str:
    """Least, median and most of the numbers counted."""
    if not counts:
        return "-"
    return f"{min(counts)} / {np.median(_expanded(counts)):g} / {max(counts)}"


def histogram(counts: Counter[int]) -> list[tuple[str, int]]:
    """At most `BARS` ranges of equal width with how often they came, then one of the largest percent if it is far off.

    Empty ranges are kept, so that gaps show.
    """
    if not counts:
        return []
    lowest, highest, top = min(counts), max(counts), int(np.percentile(_expanded(counts), 99))
    width = -(-(top - lowest + 1) // BARS)
    starts = range(lowest, top + 1, width)
    ranges = [(start, start + width - 1) for start in starts]
    if highest > ranges[-1][1]:
        ranges.append((ranges[-1][1] + 1, highest))
    ranges[-1] = (ranges[-1][0], min(ranges[-1][1], highest))
    return [
        (f"{low}" if low == high else f"{low} to {high}", sum(counts[n] for n in counts if low <= n <= high))
        for low, high in ranges
    ]


def draw_page(report: DataSetReport, name: str) -> bytes:
    """The page, UTF-8. Nothing of the data reaches it unescaped; the same data give the same page.

    Args:
        report: of the data set.
        name: what the heading calls the data set.
    """
    m = report.manifest
    made = f"{m.extractor}; {m.feature_size} numbers a region" if m.feature_size else "none"
    parts = [
        f"<h1>{_safe(name)}</h1>",
        f"<p>{_safe(m.name)} · features: {_safe(made)} · {len(m.class_names):,} classes · {_safe(m.licence)}</p>",
        f'<p class="verdict {"good" if report.sound else "fault"}">{verdict(report)}</p>',
        _list_of_findings(report),
        _table(readable_splits(report)),
        *(_split(s) for s in readable_splits(report)),
    ]
    head = f"{HEAD}<title>{_safe(name)}: inspection</title><style>{STYLE}</style>"
    # a caption may hold half of a surrogate pair, which UTF-8 cannot
    return f"{head}<main>{''.join(parts)}</main>\n".encode("utf-8", "replace")


def _safe(text: str) -> str:
    return html.escape(_clipped(text))


def _list_of_findings(report: DataSetReport) -> str:
    rows = [
        f'<li class="{"fault" if f.fault else "note"}"><bdi>{html.escape(f.text)}</bdi></li>' for f in findings(report)
    ]
    return f'<ul class="findings">{"".join(rows)}</ul>' if rows else ""


def _table(splits: list[SplitReport]) -> str:
    if not splits:
        return ""
    columns = [table_rows(s) for s in splits]
    head = "".join(f"<th>{_safe(s.split)}{' (damaged)' if s.damage else ''}</th>" for s in splits)
    rows = [
        f"<tr><th>{_safe(name)}</th>{''.join(f'<td>{_safe(column[name])}</td>' for column in columns)}</tr>"
        for name in columns[0]
    ]
    return (
        f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
        "<p><small>Three numbers are the least, the median and the most.</small></p>"
    )


def _split(s: SplitReport) -> str:
    classes = s.classes.most_common(CLASSES)
    left = len(s.classes) - len(classes)
    charts = [
        ("captions of a sample", histogram(s.captions_per_sample)),
        ("words of a caption", histogram(s.words)),
        ("tokens of a caption", histogram(s.tokens)),
        ("regions of a sample", histogram(s.regions_per_sample)),
        ("classes of boxes" + (f" (and {left:,} rarer ones)" if left else ""), classes),
    ]
    colours = {name: COLOURS[n % len(COLOURS)] for n, (name, _) in enumerate(s.classes.most_common())}
    return (
        f"<h2>{_safe(s.split)}</h2>"
        f'<div class="cards">{"".join(_card(e, colours) for e in s.examples)}</div>'
        f'<div class="charts">{"".join(_chart(title, rows) for title, rows in charts if rows)}</div>'
    )


def _chart(title: str, rows: list[tuple[str, int]]) -> str:
    most, total = max(count for _, count in rows) or 1, sum(count for _, count in rows) or 1
    bars = [
        f'<tr><th><bdi>{_safe(name)}</bdi></th><td><i style="width:{max(100 * count / most, count > 0):.1f}%"></i></td>'
        f'<td title="{count / total:.1%}">{count:,}</td></tr>'
        for name, count in rows
    ]
    return f"<section><h3>{_safe(title)}</h3><table>{''.join(bars)}</table></section>"


def _card(example: ReadSample, colours: dict[str, str]) -> str:
    captions = "".join(f"<li><bdi>{_safe(caption)}</bdi></li>" for caption in example.captions[:CAPTIONS_SHOWN])
    if len(example.captions) > CAPTIONS_SHOWN:
        captions += f"<li>and {len(example.captions) - CAPTIONS_SHOWN} more</li>"
    counts = Counter(example.labels).most_common(BOXES_NAMED)
    names = ", ".join(name if count == 1 else f"{name} {count}" for name, count in counts)
    what = "boxes without features" if example.regions is None and len(example.boxes) else "regions"
    facts = f"{what}: {len(example.boxes)}" + (f" ({names})" if names else "")
    faults = "".join(f'<p class="fault">{_safe(fault)}</p>' for fault in example.faults)
    return (
        f"<figure>{_drawing(example, colours)}<figcaption><code>{_safe(example.key)}</code>{faults}"
        f"<ol>{captions}</ol><small>{_safe(facts)}</small></figcaption></figure>"
    )


def _drawing(example: ReadSample, colours: dict[str, str]) -> str:
    """The picture with its boxes as vectors, so that they stay sharp and their names can be read and searched."""
    picture = example.thumbnail
    height = WIDTH if picture is None else max(round(WIDTH * picture.height / picture.width), 1)
    parts = []
    if picture is None:
        why = "the picture is broken" if example.has_picture else "no picture"
        parts.append(f'<text x="{WIDTH / 2}" y="{height / 2}" text-anchor="middle" class="none">{why}</text>')
    else:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        encoded = base64.b64encode(data.getvalue()).decode()
        parts.append(f'<image href="data:image/jpeg;base64,{encoded}" width="{WIDTH}" height="{height}"/>')
    boxes, labels = example.boxes.tolist(), example.labels or [""] * len(example.boxes)
    names: list[str] = []
    taken: list[tuple[float, float, float]] = []  # left, right and foot of each name
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        x, y, w, h = left * WIDTH, top * height, (right - left) * WIDTH, (bottom - top) * height
        place, colour = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"', colours.get(label, COLOURS[0])
        title = f"<title>{_safe(label)}</title>"
        parts.append(f'<rect {place} class="edge"/><rect {place} stroke="{colour}">{title}</rect>')
        long, foot = LETTER * len(label), max(y - 3, LINE - 2)
        start = x if x < WIDTH * 0.75 else x + w - long
        free = all(start > end or start + long < begin or abs(foot - line) >= LINE for begin, end, line in taken)
        if label and free and len(names) < BOXES_NAMED:  # the rest is named when pointed at
            taken.append((start, start + long, foot))
            side, anchor = (x, "start") if start == x else (x + w, "end")
            names.append(f'<text x="{side:.1f}" y="{foot:.1f}" text-anchor="{anchor}">{_safe(label)}</text>')
    drawn = "".join([*parts, *names])
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_safe(example.key)}">{drawn}</svg>'


# the policy is a second lock behind the escaping: no script runs, nothing is fetched
HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
    " style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
)
STYLE = """
:root{--ink:#1c1c1e;--soft:#5f6368;--page:#fff;--card:#f5f5f7;--line:#d9d9de;--bar:#3b76c4;--fault:#b3261e;--good:#1b7a3d}
@media(prefers-color-scheme:dark){:root{--ink:#ececf0;--soft:#a5a5ad;--page:#17171a;--card:#232327;--line:#3b3b42;
--bar:#6ba3ea;--fault:#ff8a80;--good:#6fd08c}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:76rem;margin:auto;padding:1rem}
h1{margin:.2em 0 0}h2{margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line)}h3{font-size:1em;margin:.2em 0}
small,h1+p{color:var(--soft)}.fault{color:var(--fault)}.good{color:var(--good)}.verdict{font-weight:600;font-size:1.1em}
.findings{padding-left:1.2rem}.wide{overflow-x:auto}
table{border-collapse:collapse}.wide td,.wide th{padding:.15rem .8rem;border-bottom:1px solid var(--line)}
.wide td,.wide tr:first-child th{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.wide tr th:first-child{text-align:left;font-weight:400}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:1rem}
figure{margin:0;background:var(--card);border-radius:6px;overflow:hidden}
figcaption{padding:.5rem .8rem .8rem}figcaption p{margin:.2rem 0}ol{margin:.3rem 0;padding-left:1.3rem}
code{font-size:.85em;color:var(--soft)}
svg{display:block;width:100%;max-height:26rem;background:var(--line)}text.none{fill:var(--soft);stroke:none}
rect{fill:none;stroke-width:2;pointer-events:all}rect.edge{stroke:#000;stroke-width:4;stroke-opacity:.55}
text{font:600 12px system-ui,sans-serif;fill:#fff;stroke:#000;stroke-width:3;paint-order:stroke}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:1.2rem;margin-top:1.2rem}
.charts i{display:block;height:.8em;background:var(--bar);border-radius:2px}.charts table{width:100%}
.charts th{font-weight:400;text-align:right;padding-right:.5rem;width:35%}
.charts td:last-child{width:5rem;padding-left:.5rem;color:var(--soft);font-variant-numeric:tabular-nums}
"""
