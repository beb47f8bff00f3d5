"""Text mathematics with the columns of the published sets."""

from pathlib import Path

from benchmark_data.files import write_jsonl, write_parquet

MATH500 = (
    ("What is one half?", "So we get $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
    (
        "Find both roots.",
        "They are $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}$.",
        "\\left( 3, \\frac{\\pi}{2} \\right)",
    ),
    ("How many?", "There are $\\boxed{1\\boxed{0}}$... no, $\\boxed{12}$ of them.", "12"),
    ("Simplify.", "It is $\\boxed{2\\sqrt{13}}$.", "2\\sqrt{13}"),
    ("Expand.", "Thus $\\boxed{x^2+2x+1}$.", "x^2+2x+1"),
)
ANSWERS = {
    "aime24": ("204", "25", "073"),
    "amc23": ("27", "36.0", "3159"),
    "olympiadbench": ("2", "$\\frac{1}{3}$", "$2^{1009}$", "$(1,2)$"),
}
GSM8K = (
    ("She sold 48 and 24.", "48+24 = <<48+24=72>>72\n#### 72", "72"),
    ("Dear!", "It costs\n#### 1,200", "1200"),
)


def write(task: str, folder: Path) -> Path:
    if task == "math500":
        rows = [
            {
                "problem": problem,
                "solution": solution,
                "answer": answer,
                "subject": "Algebra",
                "level": 1 + n % 5,
            }
            for n, (problem, solution, answer) in enumerate(MATH500)
        ]
        write_jsonl(folder / "test.jsonl", rows)
    elif task == "minerva":
        rows = [{"problem": problem, "solution": solution} for problem, solution, _ in MATH500]
        write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    elif task == "gsm8k":
        rows = [{"question": question, "answer": answer} for question, answer, _ in GSM8K]
        write_parquet(folder / "main" / "test-00000-of-00001.parquet", rows)
        write_parquet(folder / "socratic" / "test-00000-of-00001.parquet", rows)
    else:
        question = "question" if task == "olympiadbench" else "problem"
        rows = [
            {question: f"Problem {n}?", "answer": answer} for n, answer in enumerate(ANSWERS[task])
        ]
        write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    return folder
