"""`python -m figures.inference`: how often Dataset Inference claims models that never saw the source's images.

On scikit-learn's digits, with perceptrons of one hidden layer, on which a walk to the boundary is cheap. The source
learns 128 training images by heart, benign models 128 others; a third group learns the source's images from other
initial weights and asks the source nothing: Dataset Inference is right to claim it, and yet nothing was stolen.
A third of all labels, private and unseen, is drawn anew at random: digits are so easy that the true ones alone leave
no trace of what was learnt by heart. Prints a row a model and the shares claimed; all models are asked about the same
points, so where these happen to be uneven all are claimed together, and the interval of the share is too narrow.
"""

import argparse

import torch
from torch import nn

from figures.errors import InMemory, interval
from utils import data, losses, metrics
from utils.args import COUNT, Parser
from utils.fit import fit
from utils.inference import LAYOUTS, Inference
from utils.refuse import Refusal, plainly

IMAGES, HIDDEN, EPOCHS, REDRAWN = 128, 64, 200, 1 / 3


class Still(data.Batches):
    """Without crops and mirrors, which a perceptron cannot learn from so few images."""

    PAD = 0


@plainly
def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--walk", default="blind", choices=("blind", "mingd"), help="distances")
    parser.add_argument("--layout", default="image", choices=LAYOUTS, help="rows of the regressor")
    parser.add_argument("--points", type=COUNT, default=100, help="private and as many unseen images")
    parser.add_argument("--m", type=COUNT, default=10, help="points of one test")
    parser.add_argument("--benign", type=COUNT, default=12, help="models of other images")
    parser.add_argument("--same", type=COUNT, default=3, help="models of the source's images that are no copies")
    args = parser.parse_args(argv)
    if args.points % 2 or not 2 <= args.m <= args.points // 2 <= IMAGES // 2:
        raise Refusal(f"--points {args.points} --m {args.m}: pass an even number up to {IMAGES}, and an m from 2 to "
                      "half of it")
    torch.set_num_threads(1)
    digits = data.load("digits")
    draw = torch.Generator().manual_seed(0)

    def redrawn(images):
        y = images.labels
        anew = torch.rand(len(y), generator=draw) < REDRAWN
        return images._replace(labels=torch.where(anew, torch.randint(10, y.shape, generator=draw), y))

    test = redrawn(digits.test)
    parts = [redrawn(digits.train.pick(range(part * IMAGES, (part + 1) * IMAGES))) for part in (0, 1)]

    def learn(part, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
        fit(InMemory(), model, losses.Plain(), Still(parts[part], 32, flip=False), lambda _: {"val_accuracy": 0.0},
            lambda *_: {}, epochs=EPOCHS, lr=0.05, weight_decay=1e-4, seed=seed)
        model.eval().requires_grad_(False)
        return model, metrics.accuracy(model, digits.test.images, digits.test.labels)

    private, unseen = (part.pick(torch.randperm(len(part.labels), generator=draw)[:args.points])
                       for part in (parts[0], test))
    source, accuracy = learn(0, 0)
    inference = Inference(source, private, unseen, kind=args.walk, layout=args.layout, m=args.m)
    show("source", 0, accuracy, inference.source)
    for name, part, count in (("same data", 0, args.same), ("benign", 1, args.benign)):
        claims = 0
        for seed in range(1, count + 1):
            model, accuracy = learn(part, 1000 * part + seed)
            found = inference.test(model)
            claims += found["claim"]
            show(name, seed, accuracy, found)
        low, high = interval(claims, count)
        print(f"{name}: {claims} of {count} claimed (95 % interval {low:.3f} to {high:.3f})", flush=True)


def show(name, seed, accuracy, found) -> None:
    """One row."""
    number = lambda part: "-" if not part or part["log10_p"] is None else \
        f"{part['mean_difference']:+.3f}, log10 p {part['log10_p']:.2f}"
    print(f"{name:<10} {seed:>3}  test accuracy {100 * accuracy:.1f} %  {number(found)}; on correct points "
          f"{number(found['correct'])}  {'claim' if found['claim'] else 'inconclusive'}", flush=True)


if __name__ == "__main__":
    main()
