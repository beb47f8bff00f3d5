"""Data recipes: from the rows of a published data set to a folder that `gpg-vl train` reads.

A recipe is a short script: a function that makes an `Example` (or several, or `LeftOut`) of one source row, and the facts of
the data set.

    def convert(row: RawRow) -> Example:
        return Example(id=row.id, images=row.images("image"), prompt=row.text("problem"), answer=row.text("solution"))

    RECIPE = Recipe(name="mine", title="My set", help=__doc__, licence="MIT", columns=("image", "problem", "solution"),
                    convert=convert)

    if __name__ == "__main__":
        sys.exit(main(RECIPE))
"""

from gpg_vl.data.recipe.command import main
from gpg_vl.data.recipe.convert import make
from gpg_vl.data.recipe.drawn import drawn_sources
from gpg_vl.data.recipe.recipe import LeftOut, Option, Recipe, Request, untagged
from gpg_vl.data.recipe.row import BrokenRowError, RawRow, Source, finite_numbers

__all__ = [
    "BrokenRowError",
    "LeftOut",
    "Option",
    "RawRow",
    "Recipe",
    "Request",
    "Source",
    "drawn_sources",
    "finite_numbers",
    "main",
    "make",
    "untagged",
]
