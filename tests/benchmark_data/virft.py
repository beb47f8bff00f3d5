"""The classification lists of Visual-RFT: class names beside torch-saved labels; and our digits recipe's output."""

from pathlib import Path

import torch

from benchmark_data.files import write_jsonl, write_picture

LISTS = {
    "flowers102": (
        "oxford_flowers",
        "oxford_flowers/jpg",
        ("rose", "desert-rose", "pink primrose", "sunflower"),
    ),
    "pets37": ("pets", "pets/images", ("american_bulldog", "Abyssinian", "pug")),
    "fgvc": ("fgvc_aircraft", "fgvc-aircraft-2013b/data/images", ("707-320", "737-200", "A320")),
    "cars196": (
        "stanford_cars",
        "cars_test",
        ("2012 BMW 1 Series Convertible", "2000 AM General Hummer SUV"),
    ),
}
DIGITS = [str(digit) for digit in range(10)]


def write(task: str, folder: Path, rows: int = 5) -> Path:
    return write_digits(folder) if task == "digits" else write_list(task, folder, rows)


def write_list(task: str, folder: Path, rows: int) -> Path:
    """Paths lead to somebody's disk, of which the file name counts."""
    name, images, classes = LISTS[task]
    entries = []
    for n in range(rows):
        write_picture(folder / images / f"{n}.jpg", n)
        facts = {
            "label": torch.tensor(n % len(classes)),
            "pred_logits": torch.zeros(10, dtype=torch.float16),
            "pred_class": torch.arange(10),
        }
        entries.append({f"/mnt/disk/{images}/{n}.jpg": facts})
    torch.save(entries, folder / f"{name}.pth")
    (folder / f"{name}.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    return folder


def write_digits(folder: Path) -> Path:
    rows = []
    for n in range(12):
        write_picture(folder / "test" / "images" / f"{n}.png", n)
        rows.append(
            {
                "id": str(n),
                "images": [f"images/{n}.png"],
                "prompt": "Which digit is this?",
                "answer": str(n % 10),
                "choices": None,
                "task": "digits",
                "classes": DIGITS,
                "index": n,
            }
        )
    write_jsonl(folder / "test" / "part-00000.jsonl", rows)
    return folder
