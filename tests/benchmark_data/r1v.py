"""GEOQA and SuperCLEVR as R1-V lays them out: JSONL, with images below the folder."""

from pathlib import Path

from benchmark_data.files import write_jsonl, write_picture

# (gold, form, whether the published rule accepts the right answer in LaTeX)
GOLDS = (
    ("140°", "degree", True),
    ("8√{3}", "root", False),
    ("\\frac{√{3}}{2}", "root", False),
    ("65π", "pi", False),
    ("5cm", "other", True),
    ("2√{15}米", "root", False),
    ("\\frac{6}{5}", "other", True),
    ("7", "other", True),
    ("25cm²", "other", True),
    ("2√{2}-2", "root", False),
)
COUNTS = (4, 3, 10, 7)


def write(task: str, folder: Path) -> Path:
    if task == "geoqa":
        rows = [
            {
                "image_path": f"./Geo170K/images/test/{n}.png",
                "question": f"Figure {n}: how large is x ()",
                "ground_truth": gold,
            }
            for n, (gold, _, _) in enumerate(GOLDS)
        ]
        file = folder / "geoqa_test_prompts.jsonl"
    else:
        question = "How many different items are there in the image?"
        rows = [
            {
                "image_path": f"./images/superCLEVR_new_{n:06}.png",
                "question": question,
                "ground_truth": count,
            }
            for n, count in enumerate(COUNTS)
        ]
        file = folder / "superclevr_test200_counting_problems.jsonl"
    write_jsonl(file, rows)
    for n, row in enumerate(rows):
        write_picture(folder / row["image_path"], n)
    return folder
