"""Writes the bundle that every later version has to read; run it only when a new format version is released."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bundle_helpers import make_bundle, make_model, sample

from posthoc_inn.bundle import FORMAT_VERSION, save_bundle

DATA = Path(__file__).parent / "data"


def main() -> None:
    model, run = make_model(), DATA / f"v{FORMAT_VERSION}"
    shutil.rmtree(run, ignore_errors=True)
    bundle = make_bundle(model)
    save_bundle(bundle, run)
    latents, pictures = sample(bundle)
    (run / "expected.json").write_text(
        json.dumps(
            {
                "latents": latents.tolist(),
                "pictures": pictures.mean((1, 2, 3)).tolist(),
                "factors": bundle.concepts.joined(latents).tolist(),
            }
        )
    )


if __name__ == "__main__":
    main()
