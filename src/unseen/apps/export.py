"""Make a bundle of a finished run, or an ONNX or torch.export file: to be used anywhere."""

from __future__ import annotations

from omegaconf import DictConfig

from unseen.config.command_line import building, command
from unseen.config.values import UsageError


@command("export")
def main(config: DictConfig) -> None:
    """Write the bundle, after it was seen to embed real images as the run did; then the format asked for."""
    if (config.run is None) == (config.bundle is None):
        raise UsageError("Give run=<folder of a finished run>, or bundle=<folder of a bundle> and a format.")
    if config.run is None and config.get("format") is None:
        raise UsageError(
            "bundle= is a bundle already. Choose what to make of it: format=onnx, format=torch_export."
        )
    if config.run is not None and config.images is not None:
        raise UsageError("images= is for bundle=: a run is checked on its own query images. Leave it out.")
    # Only a format that is made from images of a run has this key.
    calibration = (config.get("format") or {}).get("calibration")
    if config.run is None and calibration is not None:
        raise UsageError(
            "format=onnx_int8 is calibrated on a run's training images. Give run=<folder of a finished run>."
        )
    # Here, because `--help` and a typing error need not wait for seconds of imports.
    from pathlib import Path

    from rich.console import Console

    from unseen.config.export import export, images_to_check, quantization_images
    from unseen.config.targets import instantiate
    from unseen.deploy.bundle import load

    run, bundle, output, images = (
        None if config[key] is None else Path(config[key]) for key in ("run", "bundle", "output", "images")
    )
    console = Console()
    if run is not None:
        with building():
            bundle = export(run, output)
        console.print(
            f"Bundle written to {bundle}. Use it: unseen.load('{bundle}').embed([…])", soft_wrap=True
        )
    if config.get("format") is None or bundle is None:
        return
    with building():
        model = load(bundle)
        checked, what = images_to_check(model, run, images)
        write = instantiate(config.format.write)
        material = {} if run is None or calibration is None else quantization_images(run, int(calibration))
        written = write(model, (output or bundle) / config.format.file, checked, **material)
    if written.metrics is not None:
        losses = [f"{name} {one:.4f} → {other:.4f}" for name, (one, other) in written.metrics.items()]
        console.print(
            f"{written.path} written. What it loses, on {material['judged'].what}: {'; '.join(losses)}. "
            f"Its embeddings' cosine with the bundle's is at least {written.cosine:.3f}.",
            soft_wrap=True,
            highlight=False,
        )
        return
    console.print(
        f"{written.path} written. It embeds {what} as the bundle does, one alone and all at once: "
        f"they differ by at most {written.difference:.1e}, their cosine is at least {written.cosine:.6f}.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
