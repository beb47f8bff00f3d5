"""ChartQA, TextVQA, DocVQA and VQAv2 with their published columns."""

from pathlib import Path

from benchmark_data.files import image, write_parquet

TEN = ["red"] * 6 + ["dark red"] * 3 + ["maroon"]
SPREAD = [f"answer {n}" for n in range(10)]  # nobody agrees: the best answer is worth 0.3


def write(task: str, folder: Path) -> Path:
    if task == "chartqa":
        rows = [
            {"type": kind, "question": "How much?", "answer": gold, "image": image(n)}
            for n, (kind, gold) in enumerate(
                (
                    ("human_test", "14"),
                    ("human_test", "12%"),
                    ("augmented_test", "Norway"),
                    ("augmented_test", "0"),
                )
            )
        ]
        write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    elif task == "docvqa":
        rows = [
            {
                "questionId": str(n),
                "question": "What is the total?",
                "image": image(n),
                "answers": golds,
                "data_split": "val",
            }
            for n, golds in enumerate((["$1,200", "1200"], ["Grand Total"]))
        ]
        write_parquet(folder / "DocVQA" / "validation-00000-of-00001.parquet", rows)
        write_parquet(folder / "InfographicVQA" / "validation-00000-of-00001.parquet", rows[:1])
    elif task == "textvqa":
        rows = [
            {
                "image_id": str(n),
                "question_id": n,
                "question": "what does it say?",
                "image": image(n),
                "answers": golds,
            }
            for n, golds in enumerate((TEN, SPREAD))
        ]
        write_parquet(folder / "data" / "validation-00000-of-00001.parquet", rows)
    else:
        rows = [
            {
                "question_id": n,
                "question": "What colour?",
                "multiple_choice_answer": golds[0],
                "answers": [
                    {"answer": gold, "answer_confidence": "yes", "answer_id": i}
                    for i, gold in enumerate(golds)
                ],
                "image": image(n),
            }
            for n, golds in enumerate((TEN, SPREAD))
        ]
        write_parquet(folder / "data" / "validation-00000-of-00001.parquet", rows)
    return folder
