"""`unseen <command> …`: the console script; each module of `unseen.apps` with a `main` is a command."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from unseen import apps


def commands() -> dict[str, str]:
    """Name → first line of the docstring of every command."""
    found = {}
    for module in pkgutil.iter_modules(apps.__path__):
        loaded = importlib.import_module(f"{apps.__name__}.{module.name}")
        if hasattr(loaded, "main"):
            found[module.name] = (loaded.__doc__ or "").splitlines()[0]
    return found


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in (module.name for module in pkgutil.iter_modules(apps.__path__)):
        module = importlib.import_module(f"{apps.__name__}.{name}")
        if hasattr(module, "main"):
            sys.argv = [f"unseen {name}", *sys.argv[2:]]
            # Distributed training starts its other processes with `python -m` and this name.
            sys.modules["__main__"].__spec__ = module.__spec__
            module.main()
            return
    lines = ["Usage: unseen <command> [group=choice] [key=value] …", "", "Commands:"]
    lines += [f"  {command:<10} {summary}" for command, summary in commands().items()]
    lines += ["", "`unseen <command> --help` explains the groups and keys of a command."]
    if name in ("-h", "--help", "help"):
        print("\n".join(lines))
        return
    print("\n".join([f"error: there is no command {name!r}.", "", *lines]), file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
