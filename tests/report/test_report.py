"""Reports tell what the certificate holds, whatever it holds, in one file that loads nothing."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from flashverify.records.certificate import Certificate
from flashverify.records.dropout import Bits, Rates, Statistic
from flashverify.records.measurement import CheckResult, Verdict
from flashverify.report.figures import figures
from flashverify.report.render import (
    render_claims_html,
    render_claims_markdown,
    render_html,
    render_markdown,
    write_report,
)
from flashverify.report.text import count, duration, markdown_cell, number, replay_command
from tests.records.synthetic import (
    AXIOMS,
    H200,
    ODD_AXIOMS,
    case,
    certificate,
    claims,
    distribution,
    dropped,
    measurement,
    plausible,
    record,
    sharp,
    tiered,
)

INTERPRETER = msgspec.structs.replace(H200, interpreter=True, platform="interpreter-x86_64", gpu=None)
HOSTILE = '</script><script>alert(1)</script> | `code` *bold* [link](https://example.org) & "quotes" \n# heading'
NOT_FINITE = tuple(
    measurement(tensor, **dict.fromkeys(("max_ulp", "headroom", "max_error", "rms_ulp", "bias_ulp"), value))
    for tensor, value in (("out", math.nan), ("lse", math.inf), ("dq", -math.inf))
)

INAPPLICABLE = CheckResult(check="sharp", verdict=Verdict.UNSUPPORTED, reason="all logits are 0: equal | weights")

PREDICTED = Bits(tensor="dq", mode="predicted", compared=1_000_000, untold=7)
WRONG = msgspec.structs.replace(PREDICTED, differing=2, first=(0, 1, 2, 3))
SIGNS = Bits(tensor="probabilities", mode="predicted", compared=4096, lost_by_value=123)
LIKELY = Statistic(
    question="independence", tests=300, bits=2_000_000, name="keys, lag 4", trials=9000, events=4600, expected=4500.0, p=0.0357,
    allowed=4e-13,
)  # fmt: skip
RATES = Rates(mask_low=0.1, mask_high=0.1, assumed_low=0.0999, assumed_high=None)

CERTIFICATES = {
    "pass": plausible(60),
    "problems": plausible(60, failures=3, inconclusive=2, unsupported=4),
    "nothing": certificate(),
    "not run": certificate(planned=9),
    "one": certificate(record(case())),
    "declined": certificate(record(case(), Verdict.UNSUPPORTED, (), "no fp64")),
    "not finite": certificate(record(case(), Verdict.FAIL, NOT_FINITE, "NaN in out")),
    "no keys": certificate(record(case(seqlen_q=0, seqlen_k=0), measurements=(measurement(elements=0, max_ulp=0.0),))),
    "foreign id": certificate(
        type(record(case()))(
            case="x; rm -rf <b>", kernel="k", verdict=Verdict.FAIL, reason=HOSTILE, dtype="fp8", features=HOSTILE,
            regime=HOSTILE, results=record(case(), Verdict.FAIL, (measurement(HOSTILE, HOSTILE),), HOSTILE).results,
            contract={HOSTILE: HOSTILE},
        )
    ),
    "interpreter": plausible(30, environment=INTERPRETER),
    "measured arithmetic": certificate(record(case()), axioms=AXIOMS),
    "odd arithmetic": certificate(planned=9, axioms=ODD_AXIOMS),
    "tiers": certificate(
        tiered(case(), sharp(headroom=0.812)),
        tiered(case(seed=1), sharp(headroom=0.5), distribution(rms=1.125, t=-4.25)),
        replace(record(case(seed=2)), results=(*record(case(seed=2)).results, INAPPLICABLE)),
    ),
    "beyond the sharp budget": certificate(tiered(case(), sharp("dq", "modular", headroom=1.75, violations=3))),
    "scores with a direction": certificate(tiered(case(), scores=distribution("dk", "unrounded", t_sign=-31.5))),
    "timed": certificate(replace(record(case()), timings={"kernel": 1.5, "oracle": 0.5}), record(case(seed=1))),
    "timed at nothing": certificate(replace(record(case()), timings={"kernel": 0.0})),
    "dropout": certificate(
        dropped(case(), PREDICTED, SIGNS),
        dropped(case(seed=1), WRONG, statistics=(LIKELY,), rates=RATES),
    ),
    "scores that are none": certificate(tiered(case(), sharp(headroom=math.nan, violations=1), distribution(rms=math.nan))),
}  # fmt: skip


class Page(HTMLParser):
    """Every tag of a page, its nesting checked, and its visible text."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.mark.parametrize("name", CERTIFICATES)
def test_every_certificate_renders_into_one_page_that_loads_nothing(name: str) -> None:
    assert_loads_nothing(render_html(CERTIFICATES[name]))


def assert_loads_nothing(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert len(html.encode()) < 5_000_000
    for tag, attributes in page.tags:
        for attribute in ("src", "href", "action", "data", "poster", "srcset"):
            assert not attributes.get(attribute) or attributes[attribute] == "data:,", (tag, attributes)
        assert not any(attribute.startswith("on") for attribute in attributes)
    assert not re.search(r"https?://|@import|url\(", html.replace("https://example.org", ""))
    assert sum(tag == "script" for tag, _ in page.tags) in {0, 3}
    assert html.count("<script>alert") == 0


@pytest.mark.parametrize("name", CERTIFICATES)
def test_every_certificate_renders_into_markdown(name: str) -> None:
    text = render_markdown(CERTIFICATES[name])
    columns = 0
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not columns or not cells or cells == columns, line
        columns = cells
    assert "<script" not in text
    assert not re.search(r"(?m)^# heading", text)


@pytest.mark.parametrize(
    ("name", "word", "sentence"),
    [
        ("pass", "certified", "60 cases passed and none failed: on NVIDIA H200"),
        ("problems", "FAILED", "3 cases of 56 failed"),
        ("nothing", "nothing ran", "nothing is certified"),
        ("not run", "nothing ran", "nothing is certified"),
        ("declined", "nothing ran", "nothing is certified"),
        ("interpreter", "certified", "The compiled kernel was not examined."),
    ],
)
def test_the_verdict_is_said_first(name: str, word: str, sentence: str) -> None:
    page = Page(render_html(CERTIFICATES[name]))
    text = " ".join(page.text.split())
    assert re.search(rf"on \S+.*? {word} {re.escape(sentence) if sentence[0].isdigit() else ''}", text)
    assert sentence in text.partition("What is not covered")[0]
    markdown = render_markdown(CERTIFICATES[name])
    assert markdown.startswith("# triton on ")
    assert markdown.splitlines()[0].endswith(f": {word}")
    assert sentence in markdown.splitlines()[2]


def test_inconclusive_is_no_success() -> None:
    kept = certificate(record(case()), planned=3)
    assert "inconclusive" in render_markdown(kept).splitlines()[0]
    assert "2 planned cases were not run" in render_html(kept)


def test_the_interpreter_says_what_it_does_not_examine() -> None:
    for text in (render_html(CERTIFICATES["interpreter"]), render_markdown(CERTIFICATES["interpreter"])):
        assert "says nothing of the compiled kernel" in text


def test_failures_come_with_their_worst_element_and_their_replay() -> None:
    kept = CERTIFICATES["problems"]
    failed = [entry for entry in kept.records if entry.verdict is Verdict.FAIL]
    for text in (Page(render_html(kept)).text, render_markdown(kept)):
        first = text.index("Failures and inconclusive cases")
        assert first < text.index("Worst known error of every tensor")
        for entry in failed:
            assert f"flashverify replay {entry.case}" in text[first:]
        assert "NaN" in text
        assert "12 elements of out exceed their budget" in text
        assert "illegal memory access" in text
        assert "more shared memory than this device has" in text


def test_the_devices_arithmetic_is_shown_and_what_fits_no_model_first() -> None:
    understood = CERTIFICATES["measured arithmetic"]
    for page in (Page(render_html(understood)).text, render_markdown(understood)):
        assert "The device's own arithmetic" in page
        assert "2.09 ulp" in page
        assert "67,108,864" in page
        assert "fits no model" not in page
        assert "was not measured" not in page
    odd = CERTIFICATES["odd arithmetic"]
    for page in (Page(render_html(odd)).text, render_markdown(odd)):
        assert "fits no model that budgets could stand on" in page
        assert page.index("no known model") < page.index("2.09 ulp")
    without = render_markdown(CERTIFICATES["one"])
    assert "## The device's own arithmetic" not in without
    assert "own arithmetic was not measured" in without


def words_of(page: str) -> str:
    """The visible text, one blank between words."""
    return " ".join(page.split())


@pytest.mark.parametrize("of", [lambda kept: Page(render_html(kept).replace("</t", " </t")).text, render_markdown])
def test_the_tiers_have_their_table_and_their_reasons(of: Callable[[Certificate], str]) -> None:
    section = words_of(of(CERTIFICATES["tiers"]).partition("Three tiers of rounding")[2])
    assert re.search(
        r"bf16 [| ]*out [| ]*forward [| ]*0\.25 [| ]*0\.812 [| ]*0\.980 to 1\.125 [| ]*4\.25 [| ]*2\.5 [| ]*2 ", section
    )
    assert f"flashverify replay {case().id}" in section
    assert re.search(r"sharp [| ]*all logits are 0 [| ]*1 ", section)
    assert "Three tiers of rounding" not in of(CERTIFICATES["one"])


@pytest.mark.parametrize("of", [lambda kept: Page(render_html(kept).replace("</t", " </t")).text, render_markdown])
def test_dropout_masks_have_their_counts_and_their_least_likely_outcome(of: Callable[[Certificate], str]) -> None:
    section = words_of(of(CERTIFICATES["dropout"]).partition("Dropout masks")[2])
    assert re.search(r"dq [| ]*the host's prediction [| ]*2 [| ]*2,000,000 [| ]*2 [| ]*14 [| ]*0 ", section)
    assert re.search(r"probabilities [| ]*the host's prediction [| ]*1 [| ]*4,096 [| ]*0 [| ]*0 [| ]*123 ", section)
    assert re.search(r"independence [| ]*1 [| ]*300 [| ]*2,000,000 [| ]*keys, lag 4: 4,600 of 9,000, 4,500.0 expected", section)
    assert f"flashverify replay {case(seed=1).id}" in section
    assert "Dropout masks" not in of(CERTIFICATES["one"])


@pytest.mark.parametrize("of", [lambda kept: Page(render_html(kept).replace("</t", " </t")).text, render_markdown])
def test_a_failure_in_a_later_tier_shows_its_numbers(of: Callable[[Certificate], str]) -> None:
    beyond = words_of(of(CERTIFICATES["beyond the sharp budget"]).partition("Failures")[2].partition("Worst known")[0])
    assert re.search(r"sharp,? dq \(?modular\)? .*1\.75.* 3 of 1,000", beyond)
    biased = words_of(of(CERTIFICATES["scores with a direction"]).partition("Failures")[2].partition("Worst known")[0])
    assert re.search(r"dk \(?unrounded.* 960 in 64 rows.*0\.98 \(0\.75 to 1\.25\).*1\.5 \(±8\).*−31\.5 \(±8\.25\)", biased)
    assert "NaN (0.75 to 1.25)" in words_of(of(CERTIFICATES["scores that are none"]))


@pytest.mark.parametrize("of", [lambda kept: Page(render_html(kept).replace("</t", " </t")).text, render_markdown])
def test_where_the_time_goes_is_a_table(of: Callable[[Certificate], str]) -> None:
    section = words_of(of(CERTIFICATES["timed"]).partition("Where the time goes")[2])
    assert re.search(
        r"kernel [| ]*1\.5 s [| ]*70\.6% .*oracle [| ]*0\.5 s [| ]*23\.5% .*not examined [| ]*0\.125 s [| ]*5\.9% ", section
    )
    assert "Where the time goes" not in of(CERTIFICATES["one"])


def test_cases_far_beyond_a_budget_come_first() -> None:
    found = certificate(
        tiered(case(), scores=distribution(rms=9.0)),
        tiered(case(seed=1), sharp(headroom=2.0, violations=1)),
        tiered(case(seed=2), sharp(headroom=3.0, violations=1)),
        tiered(case(seed=3), hard=measurement(headroom=1.5, violations=1)),
    )
    text = render_markdown(found)
    places = [text.index(f"`{case(seed=seed).id}`") for seed in (3, 2, 1, 0)]
    assert places == sorted(places)


def test_every_tensor_has_its_worst_case() -> None:
    kept = CERTIFICATES["pass"]
    worst: dict[tuple[str, str, str], tuple[float, str]] = {}
    for entry in kept.records:
        for result in entry.results:
            for found in result.measurements:
                if found.mode != "enclosure" or entry.dtype == "fp64":
                    key = (entry.dtype, found.tensor, found.mode)
                    worst[key] = max(worst.get(key, (-1.0, "")), (found.max_ulp, entry.case), key=lambda pair: pair[0])
    text = render_markdown(kept)
    for (dtype, tensor, mode), (ulp, name) in worst.items():
        assert re.search(rf"\| {dtype} \| {tensor} \| {mode} \| {re.escape(number(ulp))} \| .* {re.escape(name)}`", text)


def test_the_plots_hold_the_numbers_and_plotly_accepts_them() -> None:
    import plotly.graph_objects

    for kept in CERTIFICATES.values():
        for figure in figures(kept).values():
            json.dumps(figure, allow_nan=False)
            plotly.graph_objects.Figure(figure)
    drawn = figures(CERTIFICATES["pass"])
    assert set(drawn) == {"headroom", "length", "histogram"}
    entries = [
        found
        for entry in CERTIFICATES["pass"].records
        for result in entry.results
        for found in result.measurements
        if found.mode != "enclosure" or entry.dtype == "fp64"
    ]
    assert sum(sum(trace["y"]) for trace in drawn["histogram"]["data"]) == len(entries)
    dots = [trace for trace in drawn["length"]["data"] if trace["mode"] == "markers"]
    assert sum(len(trace["x"]) for trace in dots) == len(entries)
    (trace,) = figures(CERTIFICATES["not finite"])["headroom"]["data"]
    assert trace["text"] == [["NaN", "∞", "−∞"]]


def test_the_packed_library_is_the_library() -> None:
    from plotly.offline import get_plotlyjs

    html = render_html(CERTIFICATES["one"])
    found = re.search(r'id="plotly">([^<]+)<', html)
    assert found is not None
    assert gzip.decompress(base64.b64decode(found[1])).decode() == get_plotlyjs()


def test_reports_are_written_as_asked(tmp_path: Path) -> None:
    write_report(CERTIFICATES["one"], tmp_path / "a" / "r.html", tmp_path / "b" / "r.md")
    assert (tmp_path / "a" / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "b" / "r.md").read_text(encoding="utf-8").endswith("\n")
    write_report(CERTIFICATES["one"], path_markdown=tmp_path / "c" / "r.md")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_report_is_the_same_after_the_round_trip() -> None:
    kept = CERTIFICATES["problems"]
    assert render_markdown(Certificate.from_json(kept.to_json())) == render_markdown(kept)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "−0"), (0.012345, "0.0123"), (123456.5, "1.23e5"), (4096.0, "4,100"),
        (999.9, "1,000"), (99960.0, "1e5"), (1.5e-13, "1.5e-13"),
        (-2.5, "−2.5"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "−∞"), (None, "–"), (5e-324, "4.94e-324"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_words() -> None:
    assert count(1, "case") == "1 case"
    assert count(1024, "case") == "1,024 cases"
    assert [duration(x) for x in (0.5, 65, 3700)] == ["0.5 s", "1 min 05 s", "1 h 01 min"]
    assert markdown_cell("a|b\n<c>") == r"a\|b &lt;c&gt;"
    assert replay_command("id_s0", "triton") == "flashverify replay id_s0"
    assert replay_command("a b", "mine:f g") == "flashverify replay 'a b' --kernel 'mine:f g'"


@pytest.mark.parametrize("outcome", ["holds", "does not hold", "not decided"])
def test_claims_are_a_page_and_a_chapter_that_say_what_holds(outcome: str) -> None:
    told = msgspec.structs.replace(claims().claims[0], outcome=outcome, statement=HOSTILE)
    found = claims(claims=(told,))
    of_h200 = plausible(5)
    for page in (render_claims_html(found), render_html(of_h200, found)):
        assert_loads_nothing(page)
        assert outcome in page
        assert 'id="claim-claim-0"' in page
        assert json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])["claim-claim-0"]["data"]  # type: ignore[index]
    for text in (render_claims_markdown(found), render_markdown(of_h200, found)):
        assert f"**{outcome}.**" in text
        assert markdown_cell(HOSTILE) in text
    assert "claims, measured" not in render_markdown(of_h200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": msgspec.structs.replace(H200, kernel_sources="other")}, "claims: got claims for kernel_sources other"),
        ({"environment": INTERPRETER}, "claims: got claims for platform interpreter-x86_64, accepted is nvidia-h200"),
        ({"kernel": "sdpa:flash"}, "claims: got claims of sdpa:flash, accepted is triton"),
    ],
)
def test_claims_of_something_else_are_no_chapter(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_markdown(plausible(5), claims(**changes))
