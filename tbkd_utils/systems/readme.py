"""The tables of results in the README, made from the committed tables: `python -m tbkd_utils.systems.readme`.

Each stands between the comments `<!-- table: NAME -->` and `<!-- end -->`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from tbkd_utils.errors import RunError
from tbkd_utils.runs import explained, write_text
from tbkd_utils.systems.pneumonia.readme import TABLES as PNEUMONIA
from tbkd_utils.systems.tb.readme import TABLES as TB

TABLES: dict[str, dict[str, Callable[[Path], str]]] = {"laptop": TB, "pneumonia-laptop": PNEUMONIA}
"""Folder of committed tables, in `figures/`, to the README's tables that are made from them, by name."""


def filled_in(text: str, figures: Path) -> str:
    """Returns a README with its tables made anew.

    Args:
        text: With a pair of comments for each table.
        figures: Holds the folders of committed tables.

    Raises:
        RunError: If a table has no place in the text.
    """
    for folder, tables in TABLES.items():
        for name, make in tables.items():
            pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            if len(pattern.findall(text)) != 1:
                raise RunError(f"The README has no place for the table '{name}': expected <!-- table: {name} --> once.")
            table = make(figures / folder)
            text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    readme = Path("README.md")
    with explained(readme):
        content = readme.read_text(encoding="utf-8")
    write_text(readme, filled_in(content, Path("figures")))
