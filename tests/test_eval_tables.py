"""The evidence folder: protocols that the program can follow, published sums that add up, and the tables that READMEs show."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from benchmark_data import WRITERS

from gpg_vl.eval.__main__ import main as evaluate
from gpg_vl.eval.tasks import tasks

FOLDER = Path(__file__).parents[1] / "eval"


def load():
    spec = importlib.util.spec_from_file_location("eval_tables", FOLDER / "tables.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["eval_tables"] = module
    spec.loader.exec_module(module)
    return module


tables = load()
PROTOCOLS = tables.read_protocols()


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_protocol_names_what_the_program_has(name):
    protocol = PROTOCOLS[name]
    task = tasks.get(protocol.task)()
    assert protocol.prompt in task.prompts
    assert protocol.scorer in task.scorers
    assert protocol.headline in task.aggregates
    assert set(protocol.columns) <= set(task.aggregates)
    assert protocol.data["rows"] == task.sizes[protocol.data["split"]]
    if protocol.published:  # one of our own may ask for shorter answers than the benchmark's
        assert protocol.decoding["max_new_tokens"] == task.prompts[protocol.prompt].max_new_tokens
    assert 0 < protocol.tolerance < 20
    assert all(0 <= row[column] <= 100 for row in protocol.published for column in protocol.columns)
    assert set(protocol.data) == {"hub", "revision", "split", "rows"}


def test_every_protocol_is_in_one_table_whose_columns_have_the_same_rows():
    assert sorted(name for names in tables.TABLES.values() for name in names) == sorted(PROTOCOLS)
    for names in tables.TABLES.values():
        rows = [[row["row"] for row in PROTOCOLS[name].published] for name in names]
        assert all(one == rows[0] for one in rows)


def test_the_published_means_are_the_means_of_their_columns():
    published = {
        "few_shot": ["56.0", "55.6", "81.9", "86.0", "89.0"],
        # The row with beta_th is printed as 48.3.
        "math": [
            "30.9",
            "43.7",
            "43.7",
            "43.9",
            "45.3",
            "47.8",
            "48.4",
            "57.7",
            "55.7",
            "55.5",
            "53.1",
            "52.0",
        ],
    }
    for name, means in published.items():
        text = tables.table(name, PROTOCOLS, [])
        rows = [
            line.split(" | ")
            for line in text.splitlines()
            if line.startswith("| ") and "published" not in line
        ]
        assert [row[1] for row in rows[1:]] == means


def test_published_rows_and_ours_never_share_a_table(tmp_path):
    result = tables.Result(
        protocol="geoqa",
        row="GPG, seed 0",
        model="m",
        n=754,
        numbers={"strict": {"micro": [50.0, 46.5, 53.4]}, "r1v": {"micro": [48.0, 44.4, 51.2]}},
        deviations=["temperature 1.0 instead of 0"],
    )
    text = tables.table("geoqa", PROTOCOLS, [result])
    published, mine = text.split("Measured with this program")
    assert "GPG, seed 0" not in published
    assert "51.33" not in mine
    assert (
        "| GPG, seed 0 | GEOQA (geometry) | 754 | 50.00 [46.50, 53.40] | 48.00 [44.40, 51.20] | "
        "temperature 1.0 instead of 0 |"
    ) in mine
    assert "nothing yet" in tables.table("cvbench", PROTOCOLS, [result])


def test_a_table_without_published_rows_shows_ours_alone():
    result = tables.Result(
        protocol="digits",
        row="base",
        model="m",
        n=359,
        numbers={"strict": {"micro": [10.03, 7.24, 13.09]}},
    )
    assert tables.table("digits", PROTOCOLS, [result]) == (
        "Measured with this program, in % with 95 % intervals:\n\n"
        "| measured with this program | benchmark | n | strict | differs from the protocol |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| base | Digits | 359 | 10.03 [7.24, 13.09] | none |\n"
    )


def test_tables_are_written_between_markers_and_checked(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# x\n<!-- table:geoqa -->\nold\n<!-- end:geoqa -->\nrest\n", encoding="utf-8"
    )
    assert tables.main(["--check", str(readme)]) == 1
    assert "not up to date. Run: python eval/tables.py --write" in capsys.readouterr().err
    assert tables.main(["--write", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(
        "# x\n<!-- table:geoqa -->\nPublished, in %. Model: Qwen/Qwen2.5-VL-3B-Instruct. Scored by `r1v`;"
    )
    assert text.endswith("<!-- end:geoqa -->\nrest\n")
    assert tables.main(["--check", str(readme)]) == 0
    readme.write_text(text.replace("51.33", "52.33"), encoding="utf-8")
    assert tables.main(["--check", str(readme)]) == 1


WRITTEN = ("docs/published.md", "docs/digits.md", "eval/README.md")


@pytest.mark.parametrize("name", WRITTEN)
def test_the_tables_of_the_repository_are_up_to_date(name, tmp_path, capsys):
    file = FOLDER.parent / name
    assert tables.main(["--check", str(file)]) == 0, capsys.readouterr().err
    changed = tmp_path / "page.md"
    text = file.read_text(encoding="utf-8")
    assert "| GPG" in text, f"{name} has no row to change"
    changed.write_text(text.replace("| GPG", "| GPQ"), encoding="utf-8")
    assert tables.main(["--check", str(changed)]) == 1


def test_the_repository_shows_each_table_once():
    texts = [(FOLDER.parent / name).read_text(encoding="utf-8") for name in WRITTEN]
    shown = [name for text in texts for name in re.findall(r"<!-- table:(\w+) -->", text)]
    assert sorted(shown) == sorted(tables.TABLES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no table here", "There is no marker such as"),
        ("<!-- table:cv -->\n<!-- end:cv -->", "names no table. Known: cvbench"),
        ("<!-- table:geoqa -->\nhalf", "must stand once each"),
        ("<!-- end:geoqa -->\n<!-- table:geoqa -->\n", "must stand once each"),
    ],
)
def test_a_readme_without_proper_markers_is_refused(tmp_path, capsys, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    assert tables.main(["--check", str(readme)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_becomes_a_result_that_says_where_it_differs(tmp_path, monkeypatch):
    data, answers, out = WRITERS["geoqa"](tmp_path / "data"), tmp_path / "p.jsonl", tmp_path / "out"
    rows = [{"doc_id": i, "response": f"<answer> {i} </answer>"} for i in range(10)]
    rows[7]["response"] = "<answer> 7 </answer>"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [
        "geoqa",
        "--predictions",
        str(answers),
        "--data",
        str(data),
        "--output",
        str(out),
        "--prompt",
        "r1v",
    ]
    assert evaluate([*arguments, "--scorer", "strict,r1v"]) == 0
    file = tables.add(out / "results.json", PROTOCOLS["geoqa"], "GPG, Seed 0", tmp_path / "results")
    assert file.name == "geoqa-gpg-seed-0.json"
    (result,) = tables.read_results(tmp_path / "results")
    assert result.numbers["strict"]["micro"][0] == pytest.approx(10)  # doc 7, whose gold is 7
    assert "10 of 754 rows" in result.deviations
    assert "temperature None instead of 0" in result.deviations
    assert not any("prompt" in one for one in result.deviations)
    with pytest.raises(
        tables.TableError, match="The results are of geoqa, the protocol is of cvbench"
    ):
        tables.add(out / "results.json", PROTOCOLS["cvbench"], "x", tmp_path / "results")
    assert evaluate([*arguments, "--scorer", "strict"]) == 0
    with pytest.raises(tables.TableError, match="Score the run again with --scorer strict,r1v"):
        tables.add(out / "results.json", PROTOCOLS["geoqa"], "x", tmp_path / "results")


def test_the_package_does_not_know_the_evidence():
    for file in (FOLDER.parent / "gpg_vl").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "eval/protocols" not in text, file
        assert "eval/results" not in text, file


def test_results_in_the_repository_belong_to_protocols():
    for result in tables.read_results():
        assert result.protocol in PROTOCOLS
