"""Our rules for counts, geometric quantities and mathematics: those of the rewards `counting`, `geometry` and `math`."""

from gpg_vl.eval.predictions import Response
from gpg_vl.eval.scorers.strict import Mark, judged
from gpg_vl.eval.task import Doc
from gpg_vl.rewards.counting import match_count, parse_count
from gpg_vl.rewards.geometry import match_geometry, parse_quantity, read_quantities, shown
from gpg_vl.rewards.mathematics import match_math, stated


def _count_mark(doc: Doc, candidate: str) -> Mark:
    count = parse_count(candidate)
    return (
        Mark(0.0, None)
        if count is None
        else Mark(float(match_count(candidate, doc.gold)), str(count))
    )


def geometry_mark(doc: Doc, candidate: str) -> Mark:
    """The quantity that a candidate states, against the gold."""
    parsed = shown(read_quantities(candidate, doc.gold))
    return (
        Mark(0.0, None)
        if parsed is None
        else Mark(float(match_geometry(candidate, doc.gold)), parsed)
    )


def _math_mark(doc: Doc, candidate: str) -> Mark:
    expression = stated(candidate)
    return (
        Mark(0.0, None)
        if expression is None
        else Mark(float(match_math(candidate, doc.gold)), expression)
    )


count_strict = judged(_count_mark)
"""The one whole number that the answer states."""
geometry_strict = judged(geometry_mark)
"""The one quantity that the answer states, by value; another unit than the gold's is wrong."""
math_strict = judged(_math_mark)
"""The one expression that the answer states, by value."""


def written_forms(doc: Doc) -> tuple[Response, ...]:
    """The gold quantity as the benchmark writes it, bare and in tags, and in LaTeX."""
    quantity = parse_quantity(doc.gold)
    latex = (
        ()
        if quantity is None
        else (Response(text=f"<think>so</think> <answer> ${quantity.expression}$ </answer>"),)
    )
    return (
        Response(text=doc.gold),
        Response(text=f"<think>so</think> <answer> {doc.gold} </answer>"),
        *latex,
    )


def boxed_gold(doc: Doc) -> tuple[Response, ...]:
    r"""The gold expression in `\boxed{}`, as text mathematics asks for it, and after reasoning."""
    box = rf"\boxed{{{doc.gold}}}"
    return (
        Response(text=f"Therefore, the final answer is: ${box}$. I hope it is correct"),
        Response(text=f"<think>try $7$</think>\n${box}$"),
    )
