"""What the answer is and what it is worth, decided in one place: a response into a `Verdict`.

`extract` takes the text of the answer out of a response; a judge per kind of answer (`choice`, `count`, `quantity`,
`expression`, `box`, `boxes`, `classes`, `short_answer`) reads it and compares it with the gold answer. Rewards, strict
scorers and what people are shown are this one verdict. Nothing in this package imports torch.
"""
