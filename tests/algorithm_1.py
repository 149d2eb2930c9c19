"""A slow, literal transcription of Algorithm 1, written from the paper and docs/differences.md.

It shares no code with utils/ or torch.nn: batch normalisation, its running averages, cross-entropy, the ascent, both
projections, the weighted sum and SGD are written out. It runs in float64.
"""

import torch
import torch.nn.functional as F

CLASSES, BATCH, M, TRIGGERS, K = 5, 8, 6, 9, 3
LR, DECAY, ETA, EPS = 0.1, 1e-4, 0.02, 0.05  # eps < K * eta, so that the projection on the ball does something
WEIGHT = 0.3


def o_cross_entropy(logits, y):
    """Per-sample losses, one by one."""
    each = []
    for row, label in zip(logits, y):
        top = row.max().detach()
        each.append(top + torch.log(torch.exp(row - top).sum()) - row[label])
    return torch.stack(each)


def o_norm(x, weight, bias, running, use_running):
    """Batch normalisation, channel by channel; returns the output and this batch's own statistics."""
    out, means, variances = [], [], []
    n = x.shape[0] * x.shape[2] * x.shape[3]
    for c in range(x.shape[1]):
        values = x[:, c]
        mean = values.sum() / n
        var = ((values - mean) ** 2).sum() / n
        means.append(mean.detach())
        variances.append(var.detach() * n / (n - 1))
        if use_running:
            mean, var = running[0][c], running[1][c]
        out.append((values - mean) / torch.sqrt(var + 1e-5) * weight[c] + bias[c])
    return torch.stack(out, dim=1), torch.stack(means), torch.stack(variances)


def o_forward(w, x, running=None, use_running=False):
    """The tiny model by hand; the batch's statistics enter every set of averages in the list `running`."""
    h = x - 0.5
    for layer, (conv, norm) in enumerate((("1.0", "1.1"), ("1.3", "1.4"))):
        h = F.conv2d(h, w[f"{conv}.weight"], padding=1, stride=2)
        first = running[0][layer] if running else None
        h, mean, var = o_norm(h, w[f"{norm}.weight"], w[f"{norm}.bias"], first, use_running)
        h = torch.where(h > 0, h, torch.zeros_like(h))
        for averages in running or []:
            if not use_running:
                averages[layer] = [0.9 * averages[layer][0] + 0.1 * mean, 0.9 * averages[layer][1] + 0.1 * var]
    return h.mean(dim=(2, 3)) @ w["1.8.weight"].T + w["1.8.bias"]


def o_ascent(w, x, y, steps, running, use_running):
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        loss = o_cross_entropy(o_forward(w, x + delta, running, use_running), y).sum() / len(y)
        gradient = torch.autograd.grad(loss, [delta, *w.values()])[0]
        moved = (delta + ETA * torch.sign(gradient)).detach()
        for i in range(len(x)):  # first the ball, then the cube
            ball = torch.clamp(moved[i], -EPS, EPS)
            moved[i] = torch.clamp(x[i] + ball, 0, 1) - x[i]
        delta = moved
    return (x + delta).detach()


def o_crop(image, row, column, flip):
    """Mirror, then a 32x32 window of the image in a zero border of 4."""
    if flip:
        image = image[:, :, list(range(31, -1, -1))]
    board = torch.zeros(3, 40, 40, dtype=torch.float64)
    board[:, 4:36, 4:36] = image
    return board[:, row : row + 32, column : column + 32]


def oracle(w, running, steps_data, *, reduction, bn_stats, ascent_steps, rate=LR):
    """Train for the given steps; changes `w` and returns losses, last gradients, and both sets of averages."""
    live = [[r.clone() for r in layer] for layer in running]
    clean = [[r.clone() for r in layer] for layer in running]
    losses, gradients = [], None
    for x, y, x_q, y_q in steps_data:
        for p in w.values():
            p.requires_grad_()
        if bn_stats == "shared":
            x_q = o_ascent(w, x_q, y_q, ascent_steps, [live], use_running=True)
            logits = o_forward(w, torch.cat([x, x_q]), [live])
            l_obj, l_wat = o_cross_entropy(logits[: len(x)], y), o_cross_entropy(logits[len(x) :], y_q)
        else:
            # triggers come after the clean batch: only so 90 % of the averages are theirs (docs/differences.md, row 2)
            l_obj = o_cross_entropy(o_forward(w, x, [live, clean]), y)
            seen = [] if bn_stats == "clean" else [live]
            x_q = o_ascent(w, x_q, y_q, ascent_steps, seen, use_running=bn_stats == "eval")
            l_wat = o_cross_entropy(o_forward(w, x_q, seen), y_q)
        if reduction == "joint":
            loss = (sum(l_obj) + sum(WEIGHT * one for one in l_wat)) / (len(l_obj) + len(l_wat))
        else:
            loss = l_obj.sum() / len(l_obj) + WEIGHT * l_wat.sum() / len(l_wat)
        gradients = dict(zip(w, torch.autograd.grad(loss, list(w.values()))))
        for name in w:
            w[name] = (w[name] - rate * (gradients[name] + DECAY * w[name])).detach()
        losses.append(loss.item())
    return losses, gradients, live, clean
