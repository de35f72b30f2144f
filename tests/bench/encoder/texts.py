#!/usr/bin/env python3
"""Prints texts of a package as JSON: of functions and classes that are documented, [[summary, the rest], ...].

    python texts.py sympy COUNT

The order is that of the files' names and of the lines in them, thinned out evenly to COUNT.
"""

import ast
import importlib.util
import json
import pathlib
import sys

# Shorter ones say nothing that a summary could be found by.
CHARS_MIN = 80
DOCUMENTED = (ast.FunctionDef, ast.ClassDef)


def texts(package):
    folder = pathlib.Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(folder.rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            summary, _, rest = (text or "").partition("\n\n")
            if len(summary) >= 20 and len(rest) >= CHARS_MIN:
                yield [" ".join(summary.split()), " ".join(rest.split())]


def main():
    package, count = sys.argv[1], int(sys.argv[2])
    found = {summary: rest for summary, rest in texts(package)}
    found = list(found.items())
    print(json.dumps([found[at * len(found) // count] for at in range(count)]))


if __name__ == "__main__":
    main()
