"""The benchmarks, by name. Each is a function without arguments that builds a `gpg_vl.eval.task.Task`.

A package of your own announces one in the entry-point group `gpg_vl.eval_tasks`; a file is named as `my.py:function`.
"""

from collections.abc import Callable

from gpg_vl.eval.task import Task
from gpg_vl.registry import Registry

BUILTIN = {
    "cvbench": "gpg_vl.eval.tasks.cvbench:cvbench",
    "geoqa": "gpg_vl.eval.tasks.r1v:geoqa",
    "superclevr": "gpg_vl.eval.tasks.r1v:superclevr",
    "lisa": "gpg_vl.eval.tasks.reasonseg:lisa",
    "refcoco": "gpg_vl.eval.tasks.refcoco:refcoco",
    "refcoco+": "gpg_vl.eval.tasks.refcoco:refcoco_plus",
    "refcocog": "gpg_vl.eval.tasks.refcoco:refcocog",
    "flowers102": "gpg_vl.eval.tasks.virft:flowers102",
    "pets37": "gpg_vl.eval.tasks.virft:pets37",
    "fgvc": "gpg_vl.eval.tasks.virft:fgvc",
    "cars196": "gpg_vl.eval.tasks.virft:cars196",
    "digits": "gpg_vl.eval.tasks.virft:digits",
    "places": "gpg_vl.eval.tasks.places:places",
    "math500": "gpg_vl.eval.tasks.text_math:math500",
    "aime24": "gpg_vl.eval.tasks.text_math:aime24",
    "amc23": "gpg_vl.eval.tasks.text_math:amc23",
    "minerva": "gpg_vl.eval.tasks.text_math:minerva",
    "olympiadbench": "gpg_vl.eval.tasks.text_math:olympiadbench",
    "gsm8k": "gpg_vl.eval.tasks.text_math:gsm8k",
    "mathvista": "gpg_vl.eval.tasks.visual_math:mathvista",
    "mathverse": "gpg_vl.eval.tasks.visual_math:mathverse",
    "geometry3k": "gpg_vl.eval.tasks.visual_math:geometry3k",
    "mmmu": "gpg_vl.eval.tasks.multiple_choice:mmmu",
    "blink": "gpg_vl.eval.tasks.multiple_choice:blink",
    "chartqa": "gpg_vl.eval.tasks.short_answers:chartqa",
    "textvqa": "gpg_vl.eval.tasks.short_answers:textvqa",
    "docvqa": "gpg_vl.eval.tasks.short_answers:docvqa",
    "vqav2": "gpg_vl.eval.tasks.short_answers:vqav2",
}

tasks: Registry[Callable[[], Task]] = Registry(
    "eval task", builtin=BUILTIN, entry_point_group="gpg_vl.eval_tasks"
)
