"""A command: a plain click command, which appears as `posthoc-inn stripes`."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--count", default=8, show_default=True, type=click.IntRange(1, 64), help="How many pictures.")
@click.option("--seed", default=0, show_default=True, help="Which pictures.")
@click.option("--out", type=click.Path(dir_okay=False, writable=True), help="PNG file to write them to.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def stripes(count: int, seed: int, out: str | None, as_json: bool) -> None:
    """Draw striped pictures."""
    # Imported here, so that `posthoc-inn --help` stays fast.
    import torch

    from posthoc_inn_example.dataset import Stripes

    data = Stripes(count, train=True, seed=seed)
    if out is not None:
        from PIL import Image

        row = torch.cat([data[i][0] for i in range(count)], dim=2)
        Image.fromarray((row * 255).round().byte().permute(1, 2, 0).numpy()).save(out)
    counts = {name: int((data.labels == i).sum()) for i, name in enumerate(("-", "/", "|", "\\"))}
    click.echo(json.dumps({"count": count, "orientations": counts, "out": out}) if as_json else str(counts))
