"""Commands of those who look around: a simulated event, and the whole job on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catalog.paths import expand_home
from flows.analyst import run_detect
from flows.terminal import err_console, out_console, print_scores, progress


def simulate(
    out: Annotated[Path, typer.Option(help="Folder for pre.tif post.tif dem.tif event.json truth.gpkg.")],
    size: Annotated[int, typer.Option(help="Width and height, px.")] = 2048,
    gsd: Annotated[float, typer.Option(help="Pixel size, m.")] = 10.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    sensor: Annotated[str, typer.Option(help="Sensor whose pixels are written.")] = "rgb8",
) -> None:
    """A simulated earthquake with landslides, for demonstration and tests. Last line on stdout: the folder."""
    from tasks.review import simulate_event

    out = Path(expand_home(str(out)))
    with progress() as follow:
        paths = simulate_event(out, size_px=size, gsd_m=gsd, seed=seed, sensor=sensor, report=follow)
    for path in paths.values():
        err_console.print(f"  {path}", markup=False, soft_wrap=True)
    typer.echo(out)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for scene, store and product.")] = Path("demo"),
    size: Annotated[int, typer.Option(help="Width and height of the simulated scene, px.")] = 1536,
) -> None:
    """Simulate an earthquake, detect its landslides, score them: the main job on one machine."""
    from tasks.review import evaluate_product, simulate_event

    out = Path(expand_home(str(out)))
    folder = out / f"scene-{size}"
    names = {"pre": "pre.tif", "post": "post.tif", "dem": "dem.tif", "event": "event.json", "truth": "truth.gpkg"}
    scene = {role: folder / name for role, name in names.items()}
    if all(path.is_file() for path in scene.values()):
        err_console.print(f"using the scene of an earlier demo: {folder}", markup=False)
    else:
        with progress() as follow:
            scene = simulate_event(folder, size_px=size, gsd_m=10.0, seed=7, sensor="rgb8", report=follow)
    values = {
        "post": [str(scene["post"])], "pre": [str(scene["pre"])], "dem": str(scene["dem"]),
        "event": str(scene["event"]), "sensor": "rgb8", "root": str(out / "store"), "out": str(out / "products"),
        "block_px": 512,
    }  # fmt: skip
    product = run_detect(values)
    result = evaluate_product(product, truth=f"{scene['truth']}:landslides", aoi=None, valid=None)
    out_console.print("Simulated truth: these scores say that the pipeline works, not how it does on a real event.")
    print_scores(result)
    typer.echo(product)
