"""The report: what is read of a run folder, and that the page says it, all of it, and nothing else."""

import base64
import hashlib
import json
import re
import threading
import time
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_folders import completion, evaluation, group, held_out, step, write_lines, write_run
from runs import gpg_vl

from gpg_vl.errors import UserError
from gpg_vl.report import charts, curves, evaluations, groups, page, pictures, verdicts, view
from gpg_vl.report.curves import MOST_POINTS, read_metrics
from gpg_vl.report.folder import read_run
from gpg_vl.report.groups import read_samples, spread
from gpg_vl.report.live import Pages, make_server, stamp
from gpg_vl.report.visible_text import make_visible, visible

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\u2028'\"&amp;"


class Parsed(HTMLParser):
    """A page as a browser takes it apart: elements with their attributes, visible text, scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.numbers: list[tuple[float, str]] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside != "style":
            self.text += data
        if inside == "data":
            self.numbers.append((float(str(self.elements[-1][1]["value"])), data))


def rendered(folder: Path) -> str:
    return page.render(read_run(folder))


def embedded(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


# ---- text


@pytest.mark.parametrize(
    "text,expected",
    [
        ("plain <b> é 图 👩‍🚀\n\tx", "plain <b> é 图 👩‍🚀\n\tx"),
        ("a\x00b\x1b[31m\r", "a␀b␛[31m␍"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("\ud83d!", "\\ud83d!"),
        ("\x7f\x9b\ufeff", "\\u007f\\u009b\\ufeff"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_a_long_text_says_how_much_of_it_is_left_out() -> None:
    one = make_visible("x" * 1_000_000, 4000)
    assert (len(one.text), one.left_out) == (4000, 996_000)


# ---- metrics


def test_the_curve_of_a_long_run_has_its_first_row_every_kth_and_its_last(tmp_path: Path) -> None:
    metrics = read_metrics(
        write_lines(tmp_path / "metrics.jsonl", (step(n) for n in range(1, 10_004)))
    )
    table = metrics.train
    # 1000 points are not enough for 10,003 rows, nor are every 2nd, 4th and 8th of them
    assert (table.rows, table.every) == (10_003, 16)
    assert table.steps[:3] == (1, 17, 33)
    assert table.steps[-1] == 10_003
    assert len(table.steps) <= MOST_POINTS + 1
    assert table.columns["reward"] == tuple(number / 7 for number in table.steps)
    assert metrics.seconds["step"] == pytest.approx(1.5 * 10_003)


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    peaks = []
    for rows in (4_000, 16_000):
        file = write_lines(tmp_path / f"{rows}.jsonl", (step(n) for n in range(rows)))
        tracemalloc.start()
        read_metrics(file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks


def test_the_page_of_a_long_run_needs_no_more_than_that_of_a_shorter_one(tmp_path: Path) -> None:
    """10,000 steps, 400 dumps of samples and 100 evaluations beside a tenth of each."""
    peaks, sizes = [], []
    for steps in (1_000, 10_000):
        every = steps // 100
        rows = (
            row
            for n in range(1, steps + 1)
            for row in ([step(n)] if n % every else [step(n), evaluation(n, 0.5)])
        )
        dumps = {n: [group(id=str(n))] for n in range(1, steps + 1, 25)}
        folder = write_run(tmp_path / f"{steps}", metrics=rows, samples=dumps)
        rendered(folder)  # imports and caches are no part of it
        tracemalloc.start()
        sizes.append(len(rendered(folder)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks
    assert sizes[1] < 1.5 * sizes[0], sizes


def test_of_a_million_rows_a_part_is_shown_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as if the limits were reached, in a thousandth of the rows
    monkeypatch.setattr(curves, "MOST_POINTS", 10)
    monkeypatch.setattr(evaluations, "MOST_ROWS", 100)
    monkeypatch.setattr(groups, "MOST_SCANNED", 4)
    held = {step: [held_out(n, right=n % 2 == step) for n in range(1000)] for step in (0, 1)}
    folder = write_run(
        tmp_path / "run",
        metrics=[step(n) for n in range(1, 1001)],
        samples={n: [group()] for n in range(1, 20)},
        evaluations=held,
    )
    text = Parsed(rendered(folder)).text
    for said in (
        "Of 1,000 steps every 128th is drawn, and the last.",
        "4 of 19 steps were read",
        "The evaluation has more rows than are compared here: the first 100.",
        "12 of ",
    ):
        assert said in text, said


def test_lines_that_are_no_rows_are_counted_and_a_torn_end_is_not(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    bad = ['{"step": 1, "kind": "tr', "[1]", '{"step": "x", "kind": "train"}', "\udcff", "9" * 5000]
    lines = [json.dumps(step(1)), *bad, json.dumps(step(2)), '{"step": 3, "ki']
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    metrics = read_metrics(file)
    assert (metrics.train.steps, metrics.unread) == ((1, 2), 5)


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    row = '{"step": 1, "kind": "train", "reward": NaN, "loss": Infinity, "alpha": true, "entropy": 1%s}'
    file.write_text(row % ("0" * 400) + "\n" + json.dumps(step(2)) + "\n")
    table = read_metrics(file).train
    assert table.columns["reward"] == (None, 2 / 7)
    assert table.columns["alpha"] == (None, 2.0)
    assert "loss" not in table.columns
    assert "entropy" not in table.columns


# ---- samples


def test_groups_come_from_the_first_step_the_last_those_between_and_the_extremes(
    tmp_path: Path,
) -> None:
    best = group(id="best", completions=[completion("(B)", 1.0), completion("B", 1.0)])
    samples = {number: [group(id=f"s{number}")] for number in range(10, 1010, 10)}
    samples[130] = [group(id="s130"), *[group(id="other")] * 9, best]
    found = read_samples(write_run(tmp_path / "run", samples=samples) / "samples")
    steps = [one.step for one in found.groups]
    assert steps[0] == 10
    assert steps[-1] == 1000
    assert steps == sorted(steps)
    assert "best" in [one.id for one in found.groups]
    assert (found.steps, found.seen) == (100, 110)
    assert len(found.groups) < 30


def test_of_a_step_with_many_groups_the_first_are_read_and_that_is_said(tmp_path: Path) -> None:
    """What is held does not grow with the step either, and the rest of the file is not gone through."""
    peaks = []
    for rows in (2_000, 20_000):
        folder = write_run(tmp_path / f"{rows}", samples={1: (group() for _ in range(rows))})
        tracemalloc.start()
        found = read_samples(folder / "samples")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (found.seen, found.cut) == (groups.MOST_READ, 1000)
    assert peaks[1] < 1.2 * peaks[0], peaks
    said = "of 1,000 groups in samples/"
    text = Parsed(rendered(folder)).text
    assert said in text
    assert "of a step with more, the first 1,000 groups were read" in text


def test_the_last_row_is_drawn_once_however_rows_are_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most in (3, 4):
        monkeypatch.setattr(curves, "MOST_POINTS", most)
        for rows in range(1, 30):
            file = write_lines(tmp_path / "metrics.jsonl", (step(n) for n in range(rows)))
            steps = read_metrics(file).train.steps
            assert steps[-1] == rows - 1
            assert sorted(set(steps)) == list(steps)


def test_a_row_of_a_kind_that_is_none_is_counted(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "metrics.jsonl", [step(1, kind=["train"]), step(2)])
    metrics = read_metrics(file)
    assert (metrics.train.steps, metrics.unread) == ((2,), 1)


def test_items_are_spread_evenly() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 4) == [0, 1, 2]


# ---- the page


def test_every_number_on_the_page_is_that_of_the_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    html = rendered(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    data = embedded(html)
    train, evaluated = data["tables"]
    for kind, table in (("train", train), ("eval", evaluated)):
        of_kind = [row for row in rows if row["kind"] == kind]
        assert table["steps"] == [row["step"] for row in of_kind]
        for column, values in table["columns"].items():
            name = column.removeprefix("0:")
            assert values == [lookup(row, name) for row in of_kind], name

    # what is printed rounds what it holds, and that stands in a file
    known = {n for row in (*rows, *map(json.loads, sample_lines(folder))) for n in numbers(row)}
    known.add(0.25)  # the mean of one group
    found = Parsed(html).numbers
    # two evaluations of five numbers; two groups: a mean, and three numbers of each of four answers
    assert len(found) == 2 * 5 + 2 * (1 + 4 * 3)
    for value, text in found:
        assert value in known, value
        assert text in (f"{100 * value:.1f}", f"{value:.4g}", str(int(value))), (value, text)


def sample_lines(folder: Path) -> list[str]:
    files = sorted((folder / "samples").rglob("samples.jsonl"))
    return [line for file in files for line in file.read_text().splitlines()]


def lookup(row: Any, name: str) -> Any:
    """The value of a column in a row as it was written."""
    if name in row:
        return row[name]
    first, _, rest = name.partition("/")
    inner = row[first]
    return inner[int(rest)] if isinstance(inner, list) else lookup(inner, rest)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_the_page_says_what_was_trained_and_how_it_went(tmp_path: Path) -> None:
    text = Parsed(rendered(write_run(tmp_path / "run"))).text
    for said in (
        "my/base",
        "my/train.parquet",
        "gpg-vl train my.yaml",
        "torch 2.13.0",
        "workstation",
        "How many balls?",
        "read as 'B'",
        "truncated",
        "Question 0?",
        "with a blank picture: wrong",
    ):
        assert said in text, said
    # learnt, lost, right twice, wrong twice: one of each
    assert re.search(r"only step 4 is right\s*1\s*only step 0 is right\s*1\s*both right\s*1", text)


def test_each_phase_has_its_seconds_and_the_most_memory_of_any_launch(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    launches = [
        {"peak memory by phase": {"train": {"process": 3 << 30, "gpu": 0}, "x": 5, "y": {}}},
        {"peak memory by phase": {"train": {"process": 2 << 30, "gpu": 1 << 30}}},
        {"peak memory by phase": "much"},
    ]
    (folder / "run.json").write_text(json.dumps({"launches": launches}))
    parsed = Parsed(rendered(folder))
    # four steps of 0.5 s
    assert re.search(r"train\s*2\.0\s*0\.5\s*3\.00\s*1\.00", parsed.text), parsed.text
    assert {(3 << 30, "3.00"), (1 << 30, "1.00")} <= set(parsed.numbers)
    assert "peak memory by phase" not in parsed.text


def test_it_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    html = rendered(write_run(tmp_path / "run"))
    for tag, attributes in Parsed(html).elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:image/", "#")), (tag, address)
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert "@import" not in html


def test_a_browser_may_run_the_scripts_of_the_page_and_no_other(tmp_path: Path) -> None:
    parsed = Parsed(rendered(write_run(tmp_path / "run")))
    [policy] = [a["content"] for t, a in parsed.elements if t == "meta" and "http-equiv" in a]
    assert policy is not None
    allowed = set(re.findall(r"'sha256-([^']+)'", policy.partition("script-src")[2].split(";")[0]))
    digests = {
        base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()
        for one in parsed.scripts[1:]
    }
    assert allowed == digests
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_text(tmp_path: Path) -> None:
    longest = "x" * 1_000_000
    hostile = HOSTILE + "\x00\x1b\u202e\ud800"
    rows = [
        group(
            id=hostile,
            task=hostile,
            prompt=hostile,
            answer=hostile,
            choices=[hostile, "b"],
            images=[hostile],
            completions=[completion(hostile, 0.0, finish_reason=hostile), completion(longest, 1.0)],
        )
    ]
    rows[0]["completions"][0][f"reward/{hostile}"] = 0.5
    held = [held_out(1, True, response=hostile, parsed=hostile, note=hostile, question=hostile)]
    folder = write_run(
        tmp_path / HOSTILE.replace("/", "_"),
        metrics=[step(1, **{hostile: 1.0, f"reward/{hostile}": 2.0}), evaluation(1, 0.5)],
        samples={1: rows},
        evaluations={0: held, 1: held},
    )
    (folder / "config.yaml").write_text(
        json.dumps({HOSTILE: {HOSTILE: HOSTILE}, "model": {"path": HOSTILE}})
    )
    html = rendered(folder)
    parsed = Parsed(html)
    # the numbers, the plots, and what belongs to the page
    assert [tag for tag, _ in parsed.elements].count("script") == 3
    assert not [
        a for t, a in parsed.elements if t == "img" and not (a["src"] or "").startswith("data:")
    ]
    assert "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}" in parsed.text
    assert "␀␛\\u202e\\ud800" in parsed.text
    assert "996,000 more characters" in parsed.text
    html.encode("utf-8")
    assert len(html) < 1_000_000
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)


def test_a_page_stays_small_whatever_the_pictures(tmp_path: Path) -> None:
    images = [f"{number}.png" for number in range(8)]
    folder = write_run(tmp_path / "run", samples={1: [group(images=images)] * 6})
    for name in images:
        Image.effect_noise((900, 700), 90).convert("RGB").save(
            folder / "samples" / "step-000001" / name
        )
    album = pictures.Album(folder, budget=100_000)
    place = folder / "samples" / "step-000001"
    made = [album.show(place, name) for name in images]
    assert max(made[0].width, made[0].height) == 256
    assert sum(len(one.source or "") for one in made) < 200_000
    assert made[-1].source is None
    assert "large enough" in made[-1].missing


def test_pictures_come_from_the_run_folder_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (30, 30)).save(secret)
    names = [str(secret), "../../../secret.png", "link.png", "gone.png", "a\x00b", "samples.jsonl"]
    folder = write_run(tmp_path / "run", samples={1: [group(images=names)]})
    (folder / "samples" / "step-000001" / "link.png").symlink_to(secret)
    html = rendered(folder)
    assert "<img" not in html
    assert html.count('class="nopicture"') == len(names)


# ---- reasons


def test_an_answer_comes_with_the_reason_for_its_reward(tmp_path: Path) -> None:
    samples = read_samples(write_run(tmp_path / "run") / "samples")
    one = samples.groups[0]
    asked = [verdicts.Question(reward="choice", group=one, answer=a) for a in one.answers]
    reasons = verdicts.explain_all(asked)
    assert [reason.parsed for reason in reasons] == ["B", "A", None, "A"]
    assert [reason.score for reason in reasons] == [1.0, 0.0, 0.0, 0.0]


def test_rewards_that_may_be_slow_answer_in_a_process_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [group(answer="1/2", choices=None, completions=[completion("0.5", 1.0)])]
    one = read_samples(write_run(tmp_path / "run", samples={1: rows}) / "samples").groups[0]
    asked = [
        verdicts.Question(reward="math", group=one, answer=one.answers[0]),
        verdicts.Question(reward="choice", group=one, answer=one.answers[0]),
        verdicts.Question(reward="math", group=one, answer=one.answers[0]),
    ]
    assert [reason.score for reason in verdicts.explain_all(asked)][::2] == [1.0, 1.0]

    monkeypatch.setattr(verdicts, "TIME_LIMIT", 0.01)
    late = verdicts.explain_all(asked)
    assert [reason.note for reason in late][::2] == [verdicts.NO_TIME] * 2


def test_a_reward_that_a_folder_names_is_not_imported(tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\ndef f(c, e): return 0.0\n")
    name = f"reward/{tmp_path / 'evil.py'}:f"
    rows = [group(completions=[{"text": "x", "reward": 0.0, name: 0.0}])]
    folder = write_run(tmp_path / "run", samples={1: rows})
    assert "a reward of the run&#39;s own" in rendered(folder)
    assert not mark.exists()


def test_each_answer_off_the_mean_of_its_group_has_a_colour(tmp_path: Path) -> None:
    rewards = (1.0, 0.0, *[0.9] * 8, 0.84)
    rows = [group(completions=[completion("x", reward) for reward in rewards])]
    html = rendered(write_run(tmp_path / "run", samples={1: rows}))
    shades = re.findall(r'class="answer (\w+)"', html.split('id="groups"')[1])
    # the mean is (1 + 8 * 0.9 + 0.84) / 11 = 0.822: 0.178, -0.822, 0.078 and 0.018 off
    assert shades == ["up1", "down3", *["up1"] * 8, "up1"]


def test_answers_are_compared_with_a_greedy_one_where_there_is_one(tmp_path: Path) -> None:
    """Twice the same answers, of mean 1/2: beside a greedy one of 1 half of them are level."""
    answers = [completion("x", 1.0), completion("x", 0.0)]
    rows = [group(completions=answers), group(completions=answers, greedy=completion("y", 1.0))]
    html = rendered(write_run(tmp_path / "run", samples={1: rows})).split('id="groups"')[1]
    assert re.findall(r'class="answer (\w+)"', html) == ["up3", "down3", "level", "level", "down3"]
    assert html.count("<b>greedy</b>") == 1


def test_what_a_reward_of_the_runs_own_said_at_the_time_is_shown(tmp_path: Path) -> None:
    name = "/gone/mine.py:f"
    told: list[Any] = [
        {"parsed": "four", "note": "<b>close</b>", "score": 0.5},
        {"parsed": None, "note": "", "score": 1.0},
        {"parsed": None, "note": "not explained: it hung", "score": None},
        {"parsed": 4, "note": ["x"], "score": "1"},
        "nothing",
    ]
    answers = [
        {"text": "x", "reward": 0.5, f"reward/{name}": 0.5, f"verdict/{name}": one} for one in told
    ]
    html = rendered(write_run(tmp_path / "run", samples={1: [group(completions=answers)]}))
    said = re.findall(r'class="why">([^<]*)</p>', html.split('id="groups"')[1])
    silent = "a reward of the run&#39;s own, which does not say why; decorate it with @explained"
    assert said == [
        f"{name}: read as &#39;four&#39;; &lt;b&gt;close&lt;/b&gt;",
        f"{name}: no answer could be read; the run recorded 0.5, its explanation says 1",
        f"{name}: not explained: it hung",
        # of another shape: as if it had said nothing
        f"{name}: read as &#39;x&#39;; {silent}",
    ]


def test_a_reward_that_the_rule_of_today_gives_otherwise_says_so(tmp_path: Path) -> None:
    rows = [group(completions=[completion("(A)", 1.0), completion("(B)", 1.0)])]
    html = rendered(write_run(tmp_path / "run", samples={1: rows}))
    assert html.count("the run recorded 1, the rule of this version gives 0") == 1


# ---- folders that lack something


@pytest.mark.parametrize(
    "gone,said",
    [
        ("config.yaml", "what was trained is not known"),
        ("run.json", "command, versions, host and times are not known"),
        ("metrics.jsonl", "no training step in metrics.jsonl"),
        ("samples", "There are no samples"),
        ("evaluations", "answers of two evaluations are needed"),
    ],
)
def test_a_folder_that_lacks_something_shows_the_rest(tmp_path: Path, gone: str, said: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / gone).rename(tmp_path / "away")
    text = Parsed(rendered(folder)).text
    assert said in text
    assert ("my/base" in text) is (gone != "config.yaml")
    assert ("How many balls?" in text) is (gone != "samples")


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content", [b"", b"{{{", b"\xff\xfe", b"[1, 2]\n", b"null\n", b"a: &a [*a]\n"]
)
def test_a_folder_with_a_broken_file_shows_the_rest(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    assert "How many balls?" in Parsed(rendered(folder)).text


@pytest.mark.parametrize(
    "row",
    [
        {"completions": None},
        {"completions": []},
        {"completions": [None, 3, {}, {"text": 5, "reward": "x", "tokens": -1}]},
        {"completions": [{"text": "a", "reward": float("nan")}, {"text": "b", "reward": 10**400}]},
        {"images": "x.png"},
        {"images": [None, 3]},
        {"id": None, "task": 3, "prompt": None, "answer": [], "choices": "ab", "meta": 3},
        {"choices": [], "answer": "(Z)"},
    ],
)
def test_samples_of_another_shape_do_not_stop_the_page(tmp_path: Path, row: dict[str, Any]) -> None:
    rows = [group(**row), group(id="whole")]
    assert "row whole" in Parsed(rendered(write_run(tmp_path / "run", samples={1: rows}))).text


def test_an_evaluation_that_the_run_was_resumed_before_is_not_its_last(tmp_path: Path) -> None:
    later = {0: [held_out(1, False)], 4: [held_out(1, False)], 9: [held_out(1, True)]}
    run = read_run(write_run(tmp_path / "run", evaluations=later))
    assert run.changed is not None
    assert (run.changed.before, run.changed.after, run.changed.counts["learnt"]) == (0, 4, 0)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        read_run(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path)


# ---- two runs


def test_two_runs_stand_beside_each_other(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    other = write_run(tmp_path / "other", metrics=[step(2), step(9), evaluation(9, 0.5)])
    (other / "config.yaml").write_text(
        (one / "config.yaml").read_text().replace("seed: 7", "seed: 8")
    )
    html = page.render(read_run(one), read_run(other))
    table = embedded(html)["tables"][0]
    assert table["steps"] == [1, 2, 3, 4, 9]
    assert table["columns"]["0:reward"] == [1 / 7, 2 / 7, 3 / 7, 4 / 7, None]
    assert table["columns"]["1:reward"] == [None, 2 / 7, None, None, 9 / 7]
    text = Parsed(html).text
    assert re.search(r"train.seed\s*7\s*8", text)
    assert "The two runs: one and other" in text


# ---- the command line


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    result = gpg_vl("report", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in folder.iterdir() if "partial" in p.name) == []

    result = gpg_vl("report", folder, folder, "--output", tmp_path / "both.html")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "both.html").is_file()


@pytest.mark.parametrize(
    "words,said",
    [
        (["gone"], "There is no folder gone"),
        (["."], "holds no run"),
        (["run", "--output", "gone/x.html"], "cannot be written"),
        (["run", "--live", "--output", "x.html"], "--live serves the page and writes no file"),
        (["run", "--live", "--port", "70000"], "is not a port"),
    ],
)
def test_what_the_command_cannot_do_it_says(tmp_path: Path, words: list[str], said: str) -> None:
    write_run(tmp_path / "run")
    result = gpg_vl("report", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


# ---- live


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    folder = write_run(tmp_path / "run")
    pages = Pages(lambda: page.render(read_run(folder), live=True), lambda: stamp(folder))
    with make_server(pages, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield folder, int(server.server_address[1])
        server.shutdown()
        thread.join()


def asked(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def test_the_live_page_follows_the_run(served: tuple[Path, int]) -> None:
    folder, port = served
    status, html = asked(port, "/")
    assert status == 200
    assert embedded(html)["tables"][0]["steps"] == [1, 2, 3, 4]
    before = asked(port, "/stamp")
    assert asked(port, "/stamp") == before

    time.sleep(0.02)
    with (folder / "metrics.jsonl").open("a") as out:
        out.write(json.dumps(step(5)) + "\n")
    assert asked(port, "/stamp") != before
    assert embedded(asked(port, "/")[1])["tables"][0]["steps"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml",
        "/../config.yaml",
        "/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/samples/",
        "/?x",
        "/stamp/..",
    ],
)
def test_the_server_has_no_files(served: tuple[Path, int], path: str) -> None:
    assert asked(served[1], path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_the_server_changes_nothing(served: tuple[Path, int], method: str) -> None:
    assert asked(served[1], "/", method)[0] == 501


def test_the_server_answers_to_its_own_name_alone(served: tuple[Path, int]) -> None:
    assert asked(served[1], "/", host="evil.example")[0] == 403
    assert asked(served[1], "/", host=f"localhost:{served[1]}")[0] == 200
    assert asked(served[1], "/", "HEAD") == (200, "")


# ---- several data sets


def test_sources_have_curves_of_their_own_and_samples_name_theirs(tmp_path: Path) -> None:
    by_source = {"source/geo/reward": 0.5, "source/sat/reward": 0.25, "source/sat/length": 9.0}
    folder = write_run(
        tmp_path / "run",
        metrics=[step(1, **by_source), step(2, **{"source/sat/reward": 0.75})],
        samples={1: [group(source="sat"), group(task="")]},
    )
    sources = "data: {sources: [{path: my/sat, weight: 3}, {path: my/geo, weight: 1}]}"
    config = (
        (folder / "config.yaml").read_text().replace("data: {train: my/train.parquet}", sources)
    )
    (folder / "config.yaml").write_text(config)

    run = read_run(folder)
    data = charts.chart_data([run.metrics.train], [run.metrics.eval], ["run"])
    drawn = {one["title"]: one["series"] for one in data["training"]}
    assert [one["label"] for one in drawn["Reward by source"]] == ["geo", "sat"]
    assert [one["label"] for one in drawn["Length by source"]] == ["sat"]
    assert "Accuracy by source" not in drawn
    assert data["tables"][0]["columns"]["0:source/geo/reward"] == [0.5, None]

    of_run = {fact.name: fact.value for fact in view.facts(run)}
    assert of_run["trained on several"] == "my/sat x 3, my/geo x 1"
    named = [one.source for one in read_samples(folder / "samples").groups]
    assert named == ["sat", ""]


@pytest.mark.parametrize("value", ["text", 3, [1, "x"], {"a": 1}, None, []])
def test_sources_that_are_none_of_ours_are_no_fact(tmp_path: Path, value: object) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text(json.dumps({"data": {"sources": value}}))
    assert "trained on several" not in {fact.name for fact in view.facts(read_run(folder))}
