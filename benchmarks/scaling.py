"""Scaling on paper: 8B, 70B and 405B shapes on 1 to 4,096 devices, and what others measured beside it, as tables.

    python benchmarks/scaling.py

prints what stands in docs/guide/scale.md between its marks; `--write` puts it there. Nothing is loaded, and nothing is
measured here: published figures are those of torchtitan's own pages, with the settings that these state.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "guide" / "scale.md"
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"
BETWEEN = """\
The same shapes on H100s of 80 GB, a row of 8,192 tokens on each, all layers computed again, all weights trained by
`adamw`. Of the layouts that fit and that the recipe can be trained in here, the one that `plan` says to take."""
COUNTS = (1, 2, 4, 8, 64, 512, 4096)
GIB = 2**30
LOGIT_BYTES = {False: 12, True: 10}  # of torchtitan's loss: logarithms and two gradients in float32; compiled, a guess
HALF_AGAIN = 0.5  # its selective checkpoints compute every second product again
EVERY_SECOND = ("k_proj", "o_proj", "up_proj")  # which are these, in its order: q, k, v, o, gate, up, down


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them into the page")
    if not parser.parse_args().write:
        print(tables())
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{tables()}{END}{rest.partition(END)[2]}", encoding="utf-8")


def tables() -> str:
    """Both tables, as they stand in the page."""
    first, second = "\n".join(published()), "\n".join(paper())
    return f"\n\n{first}\n\n{BETWEEN}\n\n{second}\n\n"


def rows() -> dict[str, Any]:
    """The shapes and the published figures."""
    found: dict[str, Any] = yaml.safe_load((HERE / "scaling.yaml").read_text(encoding="utf-8"))
    return found


def published() -> Iterator[str]:
    """What torchtitan measured, and what the plan says of the same settings."""
    yield "| shape | devices | layout | compiled | tokens/s a device | predicted | error | GiB | predicted | error |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows()["published"]:
        rate, memory = compared(row)
        fitted = " (fitted)" if row.get("fitted") else ""
        cells = [row["shape"], row["devices"], row["says"], "yes" if row["compiled"] else "no"]
        if row["rate"]:
            cells += [f"{row['rate']:,}", f"{rate:,.0f}", f"{rate / row['rate'] - 1:+.0%}{fitted}"]
        else:
            cells += ["–", f"{rate:,.0f}", "–"]
        said = row["memory"]
        cells += [f"{said}", f"{memory:.1f}", f"{memory / said - 1:+.0%}"] if said else ["–", f"{memory:.1f}", "–"]
        yield f"| {' | '.join(map(str, cells))} |"


def compared(row: dict[str, Any]) -> tuple[float, float]:
    """Tokens a second of a device, and GiB, that the plan says of a published row's settings."""
    from tunesmith.planner.devices import Cluster, table
    from tunesmith.planner.layout import Layout
    from tunesmith.planner.pace import pace
    from tunesmith.planner.spread import share

    recipe, device = told(row["tokens"], row["batch"], row["checkpointing"], row["compiled"])
    shape = shape_of(row["shape"], recipe)
    layout = Layout("fsdp", fsdp=row["fsdp"], tensor=row.get("tensor", 1), sequence=True)
    cluster = Cluster(table()["H100-96GB"], 8, row["devices"] // 8)
    again = HALF_AGAIN if row["checkpointing"] == "selective" else None
    found = pace(recipe, shape, layout, cluster, again)
    whole = row["tokens"] * row["batch"]
    peaks = []
    for moment in share(recipe, shape, device, layout).moments:
        parts = dict(moment.parts)
        blocks = parts.pop("head blocks", None)  # ours: theirs is all logits at once
        if row["checkpointing"] == "selective" and "activations" in parts:
            parts["activations"] -= sum(outputs(layer) for layer in shape.layers) * whole // layout.tensor
        logits = whole * shape.vocabulary * LOGIT_BYTES[row["compiled"]] // layout.tensor
        peaks.append(sum(parts.values()) + (0 if blocks is None else logits) - parts.get("driver", 0))
    return found.tokens_per_second / layout.devices, max(peaks) / GIB


def outputs(layer: Any) -> int:
    """Bytes of a token's outputs of the products that its selective checkpoints keep less of than ours."""
    return 2 * sum(layer.linears[name].outputs for name in EVERY_SECOND)


def told(tokens: int, batch: int, checkpointing: Any, compiled: bool) -> tuple[Any, Any]:
    """A resolved recipe that trains all weights, and the device it is for."""
    from tunesmith.defaults import Device, resolve
    from tunesmith.recipe import Recipe

    device = Device("cuda", "a CUDA device", True)
    recipe = Recipe(
        model="builtin:tiny",  # whose config is replaced
        data={"train": "builtin:identity", "max_tokens": tokens},
        adapter="full",
        train={
            "device": "cuda",
            "row_tokens": tokens,
            "per_device_train_batch_size": batch,
            "activation_checkpointing": checkpointing,
            "compile": compiled,
        },
    )
    return resolve(recipe, device).recipe, device


def shape_of(name: str, recipe: Any, known: dict[str, Any] = {}) -> Any:  # noqa: B006
    """A model's shape, made once."""
    from transformers import AutoConfig

    from tunesmith.planner import shapes

    if name not in known:
        known[name] = shapes.shape_of(recipe, AutoConfig.for_model(**rows()["shapes"][name]))
    return known[name]


def paper() -> Iterator[str]:
    """The best layout that fits on so many devices, by shape."""
    from tunesmith.planner.devices import Cluster, table
    from tunesmith.planner.fleet import Fleet, choices

    tokens = 8192
    recipe, _ = told(tokens, 1, True, True)
    yield "| shape | devices | best layout that fits | GB a device | tokens/s a device | tokens a day | of peak |"
    yield "|---|---|---|---|---|---|---|"
    for name in rows()["shapes"]:
        for count in COUNTS:
            cluster = Cluster(table()["H100-80GB"], min(count, 8), -(-count // 8))
            found = choices(recipe, shape_of(name, recipe), cluster)
            best = Fleet(recipe, cluster, shape_of(name, recipe), tuple(found)).best
            if best is None:
                yield f"| {name} | {count:,} | none fits | – | – | – | – |"
                continue
            each = best.pace.tokens_per_second / cluster.devices
            yield (
                f"| {name} | {count:,} | {best.layout} | {best.share.peak.total / 1e9:.1f} | {each:,.0f} | "
                f"{best.tokens_per_day / 1e9:,.2f} billion | {best.of_peak:.0%} |"
            )


if __name__ == "__main__":
    main()
