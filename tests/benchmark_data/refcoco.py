"""RefCOCO as lmms-lab publishes it: a row per object with several expressions, boxes as left, top, width and height."""

from pathlib import Path

from benchmark_data.files import image, write_parquet

SIZE = (100, 50)
SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}
BOX = [10.0, 5.0, 40.0, 20.0]  # (10, 5) to (50, 25)


def rows(split: str, number: int = 3) -> list[dict]:
    return [
        {
            "question_id": str(n),
            "image": image(n // 2, SIZE),
            "question": "Please carefully observe the area circled in the image and come up with a caption.",
            "answer": [f"left one {n}", f"the {split} thing"][: 1 + n % 2],
            "segmentation": [1.0, 2.0],
            "bbox": BOX,
            "iscrowd": 0,
            "file_name": f"COCO_train2014_{n // 2:012}_{n}.jpg",  # two objects in one picture, each with its number
        }
        for n in range(number)
    ]


def write(task: str, folder: Path) -> Path:
    for split in SPLITS[task]:
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows(split))
    return folder
