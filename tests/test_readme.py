"""README's block of Python runs as it stands, in a folder with the files that README shows."""

import json
import re
from pathlib import Path

from runs import run_python, write_scenes

from gpg_vl.quickstart import scenes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def indented(first: str) -> str:
    """The indented block of README that begins with these words."""
    (block,) = re.findall(
        rf"^( {{4}}{re.escape(first)}.*\n(?: {{4}}.*\n|\n(?= {{4}}))*)", README, re.M
    )
    return re.sub(r"^ {4}", "", block, flags=re.M)


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    """Its model is the small one of the quickstart, which answers with the text of an option; its rows are drawn scenes."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    (tmp_path / "my.yaml").write_text(indented("model: {path"))
    (tmp_path / "my_rewards.py").write_text(indented("from gpg_vl.answers.extract"))
    (tmp_path / "models").mkdir()
    base = ROOT / "gpg_vl" / "quickstart" / "base"
    (tmp_path / "models" / "Qwen2-VL-2B-Instruct").symlink_to(base)

    (shown,) = re.findall(r'^ {4}(\{"id": .*\})$', README, re.M)
    rows = list(scenes.rows(seed=3, number=16))
    (tmp_path / "img").mkdir()
    with (tmp_path / "train.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            (tmp_path / "img" / f"{number}.png").write_bytes(row["image"]["bytes"])
            written = {
                "id": str(number),
                "images": [f"img/{number}.png"],
                "prompt": f"<image>{row['prompt']}",
                "answer": row["choices"]["ABCDEF".index(row["answer"][1])],
                "choices": row["choices"],
            }
            assert written.keys() == json.loads(shown).keys()
            file.write(json.dumps(written) + "\n")
    (tmp_path / "street.png").write_bytes(rows[0]["image"]["bytes"])
    (tmp_path / "data" / "CV-Bench").mkdir(parents=True)
    write_scenes(tmp_path / "data" / "CV-Bench" / "test.parquet", 8)

    (tmp_path / "script.py").write_text(f"{code}\nprint('measured', results.docs)\n")
    result = run_python("script.py", cwd=tmp_path, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step    10/10" in result.stdout
    assert result.stdout.endswith("measured 8\n")
