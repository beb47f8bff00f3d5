"""Two boxes whose rows are added or compared, as `data_recipes/places.py` writes its held-out part."""

from pathlib import Path

from benchmark_data.files import write_jsonl
from gpg_vl.quickstart import places


def write(task: str, folder: Path, rows: int = 12) -> Path:
    written = []
    for row in places.rows(2, rows):
        picture = folder / "test" / "images" / f"{row['id']}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(row["image"])
        kept = {key: row[key] for key in ("id", "prompt", "answer", "task")}
        written.append({**kept, "images": [f"images/{picture.name}"], "choices": None})
    write_jsonl(folder / "test" / "part-00000.jsonl", written)
    return folder
