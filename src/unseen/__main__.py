"""`unseen <command> …`: the console script; each module of `unseen.apps` with a `main` is a command."""

from __future__ import annotations

import ast
import errno
import importlib
import io
import os
import sys
from pathlib import Path

from unseen import apps


def commands() -> dict[str, str]:
    """Name → first line of the docstring of every command, read without importing any."""
    found = {}
    for path in sorted(Path(apps.__path__[0]).glob("[!_]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(part, ast.FunctionDef) and part.name == "main" for part in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main() -> None:
    """Run a command; when nobody reads its output any more, leave quietly as tools of a shell do."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no λ
    try:
        _run()
        sys.stdout.flush()
    except BrokenPipeError:
        status = 128 + 13  # SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {error}. Make room, and run it again.", file=sys.stderr)
        status = 2
    else:
        return
    # Else Python would flush it once more when it leaves, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status)


def _run() -> None:
    """The command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    known = commands()
    if name in known:
        module = importlib.import_module(f"{apps.__name__}.{name}")
        sys.argv = [f"unseen {name}", *sys.argv[2:]]
        # Distributed training starts its other processes with `python -m` and this name.
        sys.modules["__main__"].__spec__ = module.__spec__
        module.main()
        return
    lines = ["Usage: unseen <command> [group=choice] [key=value] …", "", "Commands:"]
    lines += [f"  {command:<10} {summary}" for command, summary in known.items()]
    lines += ["", "`unseen <command> --help` explains the groups and keys of a command."]
    if name in ("-h", "--help", "help"):
        print("\n".join(lines))
        return
    print("\n".join([f"error: there is no command {name!r}.", "", *lines]), file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
