"""Train the bundled language model into mlguide/bases, about eight minutes on one core.

    python scripts/train_language_model.py

It learns from the first nine tenths of what each large role says in Shakespeare's histories,
tragedies, Roman plays, problem plays and romances, 1.8 million characters, each seen three or four
times. No comedy is among them: those are what the book moves it to. The last tenth of each role is
kept from it too, and `language.csv` says how many bits per character it takes there, as the model
is stored, role by role; nothing was chosen by these numbers.
"""

from __future__ import annotations

import csv

import torch
from safetensors.torch import save_file

from mlguide import data
from mlguide.language import (
    LEARNED,
    UNSEEN,
    bits_per_character,
    generate,
    next_character_loss,
    windows,
)
from mlguide.models import BASES, CharTransformer, load_language_model
from mlguide.training import fit

RECIPE = {"steps": 6000, "learning_rate": 0.003, "batch_size": 8}


def examples(context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows the model learns from, inputs and labels (N, context)."""
    roles = [role for role in data.shakespeare() if role.genre != UNSEEN]
    return windows(data.encode("".join(data.cut(r.text, LEARNED)[0] for r in roles)), context)


def main() -> None:
    model = CharTransformer(seed=0)
    inputs, labels = examples(model.context)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(inputs):,} windows")
    generator = torch.Generator().manual_seed(0)
    history = fit(model, inputs, labels, generator=generator, loss=next_character_loss, **RECIPE)
    late = history.losses[-200:]
    print(f"{history.seconds:.0f} s, loss {sum(late) / len(late):.3f} nats at the end", flush=True)
    state = {key: value.half() for key, value in model.state_dict().items()}
    save_file(state, BASES / "language.safetensors")

    stored = load_language_model()
    rows: list[tuple[data.Role, int, float, float]] = []
    for role in data.shakespeare():
        ids = data.encode(data.cut(role.text, LEARNED)[1])
        bits = [bits_per_character(m, ids) for m in (stored, model)]
        rows.append((role, len(ids) - 1, *bits))
    with (BASES / "language.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("play", "genre", "name", "bits_per_character"))
        writer.writerows((*role[:3], f"{bits:.4f}") for role, _, bits, _ in rows)
    for what, unseen in (("seen", False), ("unseen", True)):
        chosen = [row[1:] for row in rows if (row[0].genre == UNSEEN) == unseen]
        total = sum(n for n, _, _ in chosen)
        bits, exact = (sum(row[0] * row[i] for row in chosen) / total for i in (1, 2))
        print(f"{what} roles, last tenth: {bits:.4f} bits per character ({exact:.4f} in float32)")
    print(generate(stored, "\n", 400, torch.Generator().manual_seed(0), temperature=0.7))


if __name__ == "__main__":
    main()
