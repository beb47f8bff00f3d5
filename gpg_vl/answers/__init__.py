"""Extracts the answer from a response and judges it. The result is a `Verdict`.

`extract` takes the text of the answer out of a response; a judge per kind of answer (`choice`, `count`, `quantity`,
`expression`, `box`, `boxes`, `classes`, `short_answer`) reads it and compares it with the gold answer. Rewards, strict
scorers and the report all use this one verdict. Nothing in this package imports torch.
"""
