"""The 2-D experiment of Figures 1 and 2: `python -m figures.toy` writes figures/figure2.png and figure2.json.

Two classes in the plane, one trigger (a held-out point of class 2 under the label class 1), a small network. A source
is trained by ERM (Eq. 3), another with the margin (Eq. 4), and each is extracted with soft labels (Eq. 2) on its own
training points, which do not include the trigger. The claim: only the surrogate of the margin source keeps the
trigger. The seed that is drawn is the first one, whatever it shows; the JSON counts all seeds.
"""

import math
from functools import partial
from pathlib import Path

import torch
from torch import nn

from figures.shared import HERE, figure_parser
from utils.attacks.stealing import ExtractionObjective, soft_loss
from utils.system.files import write_atomically, write_json
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import COUNT, refuse_in_one_sentence
from utils.training.loop import fit
from utils.watermark.margin import WatermarkObjective, ascend

POINTS, TEST, BATCH, EPOCHS, RATE, DECAY = 1000, 1000, 100, 80, 0.1, 1e-4
WIDTH, STEPS, EPS, WEIGHT, TRIGGERS = 100, 5, 0.06, 0.15, 25  # margin: K steps of eps / K; lambda of Eqs. 3 and 4
TITLES = {"source_erm": "Source, ERM", "surrogate_erm": "Surrogate of ERM",
          "source_margin": "Source, margin (the paper's)", "surrogate_margin": "Surrogate of margin"}
COLOURS, TINTS, STAR = ("#0072B2", "#D55E00"), ("#CFE3F2", "#FBE0CF"), "#F0E442"  # Okabe and Ito's colours


class Net(nn.Module):
    """A small network, x (N, 2) in [0, 1] -> logits (N, 2), whose last hidden layer has two units."""

    def __init__(self):
        super().__init__()
        sizes = (2, WIDTH, WIDTH, WIDTH)
        layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.hidden = nn.Sequential(*layers, nn.Linear(WIDTH, 2))
        self.linear = nn.Linear(2, 2)

    def features(self, x):
        return self.hidden((x - 0.5) / 0.15)

    def forward(self, x):
        return self.linear(self.features(x))


class InMemoryRun:
    """In place of a `RunFolder` for `training.loop.fit`: it stores, reads and prints nothing."""

    load = save = write_rows = log = lambda *_: None
    rows = list


def train_in_memory(model, objective, batches, **training):
    """The model, trained without a folder in seconds and frozen; `training` are keyword arguments of `fit`."""
    fit(InMemoryRun(), model, objective, batches, lambda _: {"val_accuracy": 0.0}, lambda *_: {}, **training)
    return model.eval().requires_grad_(False)


class PointBatches:
    """Batches of inputs x (N, ...) as they are, with labels y (N,): the interface of `utils.data.batches.Batches`."""

    def __init__(self, x, y, batch_size: int):
        self.x, self.y, self.steps, self.batch_size, self.device = x, y, len(y) // batch_size, batch_size, x.device

    def plan(self, generator):
        """The order of an epoch's inputs, (steps, batch_size); a partial batch is dropped."""
        order = torch.randperm(len(self.y), generator=generator)[: self.steps * self.batch_size]
        return (order.view(self.steps, self.batch_size),)

    def batch(self, order):
        return self.x[order], self.y[order]


def moons(n: int, generator):
    """Two interleaved half circles with noise: x (n, 2) in [0, 1], y (n,) in {0, 1}."""
    y = torch.arange(n) % 2
    angle = math.pi * torch.rand(n, generator=generator)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    x[y == 1] = torch.tensor([1.0, 0.5]) - x[y == 1]
    x = x + 0.075 * torch.randn(n, 2, generator=generator)
    return ((x - torch.tensor([0.5, 0.25])) * 0.26 + 0.5).clamp(0, 1), y


def experiment(seed: int) -> dict:
    """Train the four models of `TITLES` with one seed: {"row": for the JSON, "models", "x", "y", "x_q"}."""
    generator = torch.Generator().manual_seed(seed)
    (x, y), (x_test, y_test) = moons(POINTS, generator), moons(TEST, generator)
    x_q, _ = moons(2, generator)  # the second point is of class 2
    x_q, y_q = x_q[1:], torch.zeros(1, dtype=torch.long)

    def train(objective_of, seed):
        torch.manual_seed(seed)
        model = Net()
        return train_in_memory(model, objective_of(model), PointBatches(x, y, BATCH), epochs=EPOCHS, lr=RATE,
                               weight_decay=DECAY, seed=seed)

    models = {}
    for name, ascent in (("erm", None), ("margin", partial(ascend, steps=STEPS, step_size=EPS / STEPS, eps=EPS))):
        objective = lambda model, ascent=ascent: WatermarkObjective(
            model, x_q, y_q, weight=WEIGHT, reduction="sum", batch=TRIGGERS, bn_stats="clean", ascent=ascent)
        source = models[f"source_{name}"] = train(objective, seed)
        copy = ExtractionObjective(source, soft_loss, False)
        models[f"surrogate_{name}"] = train(lambda _, copy=copy: copy, seed + 1000)
    panels = {name: {"trigger_correct": bool(model(x_q).argmax(1) == y_q),
                     "trigger_probability": round(float(model(x_q).softmax(1)[0, 0]), 4),
                     "test_accuracy": round(float((model(x_test).argmax(1) == y_test).float().mean()), 4)}
              for name, model in models.items()}
    shows = [panel["trigger_correct"] for panel in panels.values()] == [True, False, True, True]
    row = {"seed": seed, "claim_shows": shows, "panels": panels}
    return {"row": row, "models": models, "x": x, "y": y, "x_q": x_q}


def draw(result: dict) -> bytes:
    """A PNG of the paper's eight panels, input space above and hidden layer below; `result` is of `experiment`."""
    x, y, x_q = result["x"][:400], result["y"][:400], result["x_q"]
    figure, axes = new_figure(11, 5.9, 2, 4)
    for column, (name, title) in enumerate(TITLES.items()):
        model, panel = result["models"][name], result["row"]["panels"][name]
        verdict = "trigger kept" if panel["trigger_correct"] else "trigger lost"
        title = f"({'abcd'[column]}) {title}\n{verdict}, test {100 * panel['test_accuracy']:.1f} %"
        _draw_panel(axes[column], model, x, y, x_q, title)
        _draw_panel(axes[4 + column], model.linear, model.features(x), y, model.features(x_q),
                    f"({'efgh'[column]}) hidden representation")
        for row, (across, up) in enumerate((("$x_1$", "$x_2$"), ("hidden unit 1", "hidden unit 2"))):
            axes[4 * row + column].set_xlabel(across, fontsize=9)
            if column == 0:
                axes[4 * row].set_ylabel(up, fontsize=9)
    box = axes[0]
    handles = [box.scatter([], [], s=40, marker=m, color=c, label=f"class {i + 1}")
               for i, (m, c) in enumerate(zip("o^", COLOURS))]
    handles.append(box.scatter([], [], s=190, marker="*", color=STAR, edgecolors="black",
                               label="trigger: a point of class 2 labelled class 1"))
    handles += box.plot([], [], color="black", label="decision boundary")
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    return figure_png(figure, dpi=130)


def _draw_panel(ax, model, points, y, star, title: str) -> None:
    """The halves of the plane that `model` separates, points (N, 2) by their labels y (N,), and the trigger (1, 2)."""
    both = torch.cat([points, star])
    pad = 0.06 * (both.max(0).values - both.min(0).values)
    low, high = (both.min(0).values - pad).tolist(), (both.max(0).values + pad).tolist()
    grid = torch.stack(torch.meshgrid(*(torch.linspace(a, b, 300) for a, b in zip(low, high)), indexing="xy"))
    logits = model(grid.flatten(1).T)
    margin = (logits[:, 1] - logits[:, 0]).view(300, 300)
    ax.contourf(*grid, margin, levels=(-math.inf, 0, math.inf), colors=TINTS)
    ax.contour(*grid, margin, levels=(0,), colors="black", linewidths=1.2)
    for label, marker in enumerate("o^"):
        ax.scatter(*points[y == label].T, s=11, marker=marker, color=COLOURS[label], linewidths=0, alpha=0.75)
    ax.scatter(*star.T, s=230, marker="*", color=STAR, edgecolors="black", linewidths=1.1, zorder=5)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)


@refuse_in_one_sentence
def main(argv=None):
    parser = figure_parser("toy", __doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of figure2.png and figure2.json")
    parser.add_argument("--seeds", type=COUNT, default=10, help="how many seeds are run (default: 10); seed 0 is drawn")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows, picture = [], None
    for seed in range(args.seeds):
        result = experiment(seed)
        picture = picture or draw(result)
        rows.append(result["row"])
        kept = {name: panel["trigger_correct"] for name, panel in rows[-1]["panels"].items()}
        print(f"seed {seed}: claim {'shows' if rows[-1]['claim_shows'] else 'does not show'}; trigger kept: {kept}")
    of = lambda name, key: [row["panels"][name][key] for row in rows]
    content = {
        "figure": "2", "command": "python -m figures.toy",
        "settings": {"points": POINTS, "batch": BATCH, "epochs": EPOCHS, "lr": RATE, "weight_decay": DECAY,
                     "width": WIDTH, "K": STEPS, "eps": EPS, "lambda": WEIGHT, "triggers_a_step": TRIGGERS},
        "claim": "both sources keep the trigger; the surrogate keeps it under the margin and loses it under ERM",
        "claim_shows_in_the_drawn_seed": rows[0]["claim_shows"],
        "claim_shows": f"{sum(row['claim_shows'] for row in rows)} of {len(rows)} seeds",
        "trigger_kept": {name: sum(of(name, "trigger_correct")) for name in TITLES},
        "mean_test_accuracy": {name: round(sum(of(name, "test_accuracy")) / len(rows), 4) for name in TITLES},
        "seeds": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "figure2.png", picture)
    write_json(args.out / "figure2.json", content)
    print(f"the claim shows in {content['claim_shows']}; wrote {args.out / 'figure2.png'} and figure2.json")


if __name__ == "__main__":
    main()
