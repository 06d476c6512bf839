"""Say what a bug report needs: versions, commit, system, CPU, cores, memory, GPUs."""

from __future__ import annotations


def main() -> None:
    """Print the environment of this process, a line for each fact."""
    # Here, because the list of commands need not wait for seconds of imports.
    from unseen.tracking.environment import Environment

    here = Environment.here()
    facts = {
        **here.versions,
        "commit": here.commit or "none: not a checkout",
        "system": here.system,
        "processor": here.processor,
        "cores": here.cores,
        "memory": f"{here.memory_bytes / 2**30:.1f} GiB",
        "accelerators": ", ".join(here.accelerators) or "none",
    }
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items()))


if __name__ == "__main__":
    main()
