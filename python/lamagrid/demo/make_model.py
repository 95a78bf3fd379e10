"""Writes ``demo.pt``: a TorchScript model of lama's signature that needs no trained weights.

    forward(image: f32 1x3xHxW in 0..1, mask: i64 1x1xHxW) -> f32 1x3xHxW

It fills the hole with pieces of the picture around it:

1. A pyramid of the picture is built; a coarse pixel is known only when all pixels under it are.
2. On the coarsest level the hole is peeled from its rim inwards: each pixel takes the centre of the source
   patch that agrees best with what is known around it. Then search and averaging alternate until they agree.
3. Each finer level starts from the matches of the level below. While a level is small, its matches are
   improved by propagation and random search, and what they get wrong on the known rim is evened out inside.
   Above that only the fine detail of the matches is copied, on top of the coarser fill: no seams.
4. Where there is nothing to copy from (few pixels, or nearly all masked), colours flow in from the rim.

Patches are 7x7 (radius 3). Every number that decides anything is a whole number below 2**24 held in float32,
so that sums are exact in any order: the result is the same bits for any number of threads.

usage: python -m lamagrid.demo.make_model [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Size(NamedTuple):
    """Of a level."""

    height: int
    width: int


class Half(NamedTuple):
    """A picture of half the size.

    Attributes:
        mean: Of the known pixels.
        whole: Where all four pixels are known.
        some: Where one of them is.
    """

    mean: Tensor
    whole: Tensor
    some: Tensor


class Matches(NamedTuple):
    """For each patch of a level, flat: the source patch that it resembles, and how much it counts."""

    source: Tensor
    weight: Tensor


class Filled(NamedTuple):
    """A level with its hole filled, and the source patch of each patch."""

    picture: Tensor
    match: Tensor


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow a bool plane by a square of the given radius."""
    size = 2 * radius + 1
    return F.max_pool2d(mask.float()[None, None], [size, size], [1, 1], [radius, radius])[0, 0] > 0.5


def erode(mask: Tensor, radius: int) -> Tensor:
    """Shrink a bool plane; pixels outside the picture count as unset."""
    padded = F.pad(mask.float()[None, None], [radius, radius, radius, radius], "constant", 0.0)
    size = 2 * radius + 1
    return -F.max_pool2d(-padded, [size, size], [1, 1], [0, 0])[0, 0] > 0.5


def halve(image: Tensor, known: Tensor) -> Half:
    """Halve the size."""
    bottom = image.shape[1] % 2
    right = image.shape[2] % 2
    k = F.pad(known.float()[None, None], [0, right, 0, bottom], "replicate")
    x = F.pad((image * known.float())[None], [0, right, 0, bottom], "replicate")
    total = F.avg_pool2d(x, [2, 2]) * 4.0
    count = F.avg_pool2d(k, [2, 2]) * 4.0
    mean = torch.round(total / torch.clamp(count, min=1.0))
    return Half(mean[0], count[0, 0] > 3.5, count[0, 0] > 0.5)


def enlarge(image: Tensor, height: int, width: int) -> Tensor:
    """Twice the size, bilinear (weights are quarters, hence exact), cut to height x width."""
    h, w = image.shape[1], image.shape[2]
    p = F.pad(image[None], [1, 1, 1, 1], "replicate")[0]
    near = p[:, 1 : h + 1] * 3.0
    rows = torch.stack([near + p[:, 0:h], near + p[:, 2 : h + 2]], 2).reshape(3, 2 * h, w + 2)
    near = rows[:, :, 1 : w + 1] * 3.0
    both = torch.stack([near + rows[:, :, 0:w], near + rows[:, :, 2 : w + 2]], 3).reshape(3, 2 * h, 2 * w)
    return torch.round(both[:, :height, :width] / 16.0)


def flow(image: Tensor, known: Tensor) -> Tensor:
    """Fill by averages of averages: down until all is known, then up again with smoothing."""
    images: list[Tensor] = [image]
    knowns: list[Tensor] = [known]
    while not bool(knowns[-1].all()) and max(images[-1].shape[1], images[-1].shape[2]) > 1:
        half = halve(images[-1], knowns[-1])
        images.append(half.mean)
        knowns.append(half.some)
    out = images[-1]
    for i in range(len(images) - 1):
        level = len(images) - 2 - i
        fine = images[level]
        keep = knowns[level]
        out = torch.where(keep, fine, enlarge(out, fine.shape[1], fine.shape[2]))
        for _ in range(4):
            p = F.pad(out[None], [1, 1, 1, 1], "replicate")
            out = torch.where(keep, fine, torch.round(F.avg_pool2d(p, [3, 3], [1, 1])[0]))
    return out


def rings(hole: Tensor, most: int) -> Tensor:
    """Steps to the nearest known pixel, at most ``most``."""
    depth = hole.float()
    inner = hole
    for _ in range(most - 1):
        inner = erode(inner, 1)
        if not bool(inner.any()):
            break
        depth = depth + inner.float()
    return depth


def patches(image: Tensor, radius: int) -> Tensor:
    """All patches as rows of a matrix, centred around zero."""
    p = F.pad(image[None] - 128.0, [radius, radius, radius, radius], "replicate")
    return F.unfold(p, (2 * radius + 1, 2 * radius + 1))[0].t().contiguous()


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Two more samples per patch: its place. So of two that fit alike, the nearer one wins."""
    y = torch.arange(height, device=device).float() * 3.0
    x = torch.arange(width, device=device).float() * 3.0
    both = torch.stack([y[:, None].expand(height, width), x[None, :].expand(height, width)], 2)
    return both.reshape(height * width, 2)


def noise(index: Tensor, salt: int) -> Tensor:
    """Repeatable pseudo-random numbers in 0..2**16."""
    x = (index * 40503 + salt * 69069 + 12345) % 2147483647
    x = (x * 48271 + salt) % 2147483647
    x = (x * 48271 + 11) % 2147483647
    return torch.div(x, 16, rounding_mode="floor") % 65536


def vote(source: Tensor, matches: Matches, spots: Tensor, size: Size, radius: int) -> Tensor:
    """Average the pixels of the matches of all patches over each spot; Nx3, exact before the division."""
    height, width = size.height, size.width
    y = torch.div(spots, width, rounding_mode="floor")
    x = spots % width
    total = torch.zeros([spots.shape[0], 3], device=source.device)
    sums = torch.zeros([spots.shape[0], 1], device=source.device)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            inside = (y >= dy) & (y < height + dy) & (x >= dx) & (x < width + dx)
            centre = torch.where(inside, spots - (dy * width + dx), spots)
            share = (matches.weight[centre] * inside.float())[:, None]
            there = torch.where(inside, matches.source[centre] + (dy * width + dx), spots)
            total = total + source[there] * share
            sums = sums + share
    return torch.round(total / torch.clamp(sums, min=1.0))


def meet(current: Tensor, source: Tensor, known: Tensor, matches: Matches) -> Tensor:
    """Spread the error of the fill on the known rim inwards: beside the rim it is about the same."""
    size = Size(known.shape[0], known.shape[1])
    band = dilate(~known, 1) & known
    rim = band.reshape(-1).nonzero()[:, 0]
    flat = source.reshape(3, -1).t().contiguous()
    error = torch.zeros_like(flat)
    error[rim] = torch.clamp(flat[rim] - vote(flat, matches, rim, size, 2), -48.0, 48.0)
    change = flow(error.t().reshape(3, size.height, size.width), band)
    return torch.where(known, source, torch.clamp(current + change, 0.0, 255.0))


def nearest(rows: Tensor, weights: Tensor, sources: Tensor, squares: Tensor) -> Tensor:
    """The source patch with the least sum of squares over the samples of weight one."""
    found: list[Tensor] = []
    step = max(1, 8000000 // max(1, sources.shape[0]))
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step] * weights[start : start + step]
        cost = torch.mm(weights[start : start + step], squares.t()) - 2.0 * torch.mm(part, sources.t())
        found.append(torch.min(cost, 1)[1])
    return torch.cat(found)


def weights_of(cost: Tensor, depth: Tensor) -> Tensor:
    """Whole numbers 1..512: good matches near the rim count most."""
    near = torch.clamp(9.0 - depth, min=1.0)
    poor = torch.floor(cost / 1000.0)
    return torch.clamp(torch.floor(512.0 * near / (9.0 + poor * poor)), 1.0, 512.0)


def peel(image: Tensor, known: Tensor) -> Tensor:
    """Fill the hole of a small level from its rim inwards, each pixel from the best source patch."""
    height, width = known.shape[0], known.shape[1]
    usable = erode(known, 3).reshape(-1).nonzero()[:, 0]
    place = places(height, width, image.device)
    sources = torch.cat([patches(image, 3), place], 1)[usable]
    squares = sources * sources
    current = image
    done = known
    while not bool(done.all()):
        rim = (dilate(done, 1) & ~done).reshape(-1).nonzero()[:, 0]
        rows = torch.cat([patches(current, 3), place], 1)[rim]
        plane = done.float()[None].expand(3, height, width) + 128.0
        seen = torch.cat([patches(plane, 3), torch.ones_like(place)], 1)[rim]
        best = nearest(rows, seen, sources, squares)
        flat = current.reshape(3, -1).clone()
        flat[:, rim] = flat[:, usable[best]]
        current = flat.reshape(3, height, width)
        reached = done.reshape(-1).clone()
        reached[rim] = True
        done = reached.reshape(height, width)
    return current


def settle(image: Tensor, current: Tensor, known: Tensor, match: Tensor, rounds: int) -> Filled:
    """A small level: every patch of the hole is compared with every patch of the picture."""
    height, width = known.shape[0], known.shape[1]
    hole = ~known
    usable = erode(known, 3).reshape(-1).nonzero()[:, 0]
    targets = dilate(hole, 3).reshape(-1).nonzero()[:, 0]
    spots = hole.reshape(-1).nonzero()[:, 0]
    depth = rings(hole, 8).reshape(-1)
    place = places(height, width, image.device)
    sources = torch.cat([patches(image, 3), place], 1)[usable]
    squares = sources * sources
    everywhere = torch.ones([1, 1], device=image.device).expand(targets.shape[0], sources.shape[1])
    weight = torch.zeros([height * width], device=image.device)
    for _ in range(rounds):
        rows = torch.cat([patches(current, 3), place], 1)[targets]
        best = nearest(rows, everywhere, sources, squares)
        gap = rows - sources[best]
        cost = (gap * gap).sum(1)
        match = match.clone()
        match[targets] = usable[best]
        weight = torch.zeros([height * width], device=image.device)
        weight[targets] = weights_of(cost, depth[targets])
        flat = current.reshape(3, -1).t().contiguous()
        flat[spots] = vote(flat, Matches(match, weight), spots, Size(height, width), 3)
        current = flat.t().reshape(3, height, width)
    return Filled(meet(current, image, known, Matches(match, weight)), match)


def improve(image: Tensor, current: Tensor, known: Tensor, match: Tensor, rounds: int) -> Filled:
    """A middle level: matches spread to neighbours and try random places nearby."""
    height, width = known.shape[0], known.shape[1]
    hole = ~known
    usable = erode(known, 3).reshape(-1)
    targets = dilate(hole, 3).reshape(-1).nonzero()[:, 0]
    spots = hole.reshape(-1).nonzero()[:, 0]
    depth = rings(hole, 8).reshape(-1)
    sources = patches(image, 3)
    ty = torch.div(targets, width, rounding_mode="floor")
    tx = targets % width
    weight = torch.zeros([height * width], device=image.device)
    match = match.clone()
    for turn in range(rounds):
        rows = patches(current, 3)[targets]
        best = match[targets]
        gap = rows - sources[best]
        cost = (gap * gap).sum(1)
        cost = torch.where(usable[best], cost, torch.full_like(cost, 16000000.0))
        for trial in range(10):
            if trial < 6:
                reach = 1 if trial < 4 else 3
                dy = [0, 0, 1, -1, 1, -1][trial] * reach
                dx = [1, -1, 0, 0, 1, -1][trial] * reach
                ny = torch.clamp(ty + dy, 0, height - 1)
                nx = torch.clamp(tx + dx, 0, width - 1)
                other = match[ny * width + nx]
                sy = torch.div(other, width, rounding_mode="floor") - (ny - ty)
                sx = other % width - (nx - tx)
            else:
                reach = [24, 8, 3, 1][trial - 6]
                sy = torch.div(best, width, rounding_mode="floor")
                sy = sy + noise(targets, turn * 20 + trial * 2) % (2 * reach + 1) - reach
                sx = best % width + noise(targets, turn * 20 + trial * 2 + 1) % (2 * reach + 1) - reach
            sy = torch.clamp(sy, 0, height - 1)
            sx = torch.clamp(sx, 0, width - 1)
            offer = sy * width + sx
            gap = rows - sources[offer]
            price = (gap * gap).sum(1)
            better = usable[offer] & (price < cost)
            cost = torch.where(better, price, cost)
            best = torch.where(better, offer, best)
            match[targets] = best
        weight = torch.zeros([height * width], device=image.device)
        weight[targets] = weights_of(cost, depth[targets]) * usable[best].float()
        flat = current.reshape(3, -1).t().contiguous()
        flat[spots] = vote(flat, Matches(match, weight), spots, Size(height, width), 3)
        current = flat.t().reshape(3, height, width)
    return Filled(meet(current, image, known, Matches(match, weight)), match)


def spread(match: Tensor, size: Size, fine: Size, hole: Tensor) -> Tensor:
    """Matches of a level with twice the size; pixels that need none match themselves."""
    device = match.device
    width, fine_height, fine_width = size.width, fine.height, fine.width
    y = torch.arange(fine_height, device=device)
    x = torch.arange(fine_width, device=device)
    own = (y[:, None] * fine_width + x[None, :]).reshape(-1)
    need = dilate(hole, 3).reshape(-1).nonzero()[:, 0]
    fy = torch.div(need, fine_width, rounding_mode="floor")
    fx = need % fine_width
    below = match[torch.div(fy, 2, rounding_mode="floor") * width + torch.div(fx, 2, rounding_mode="floor")]
    sy = torch.clamp(torch.div(below, width, rounding_mode="floor") * 2 + fy % 2, 0, fine_height - 1)
    sx = torch.clamp(below % width * 2 + fx % 2, 0, fine_width - 1)
    own[need] = sy * fine_width + sx
    return own


def copy_detail(image: Tensor, base: Tensor, known: Tensor, match: Tensor, radius: int) -> Tensor:
    """The coarser fill plus the fine detail of the matches."""
    height, width = known.shape[0], known.shape[1]
    flat = image.reshape(3, -1).t().contiguous()
    ground = base.reshape(3, -1).t().contiguous()
    known_flat = known.reshape(-1)
    detail = (flat - ground) * known_flat.float()[:, None]
    spots = (~known_flat).nonzero()[:, 0]
    weight = torch.ones([1], device=image.device).expand(height * width)
    step = 1000000
    for start in range(0, spots.shape[0], step):
        part = spots[start : start + step]
        fine = vote(detail, Matches(match, weight), part, Size(height, width), radius)
        flat[part] = torch.clamp(ground[part] + fine, 0.0, 255.0)
    return flat.t().reshape(3, height, width)


def fill(image: Tensor, known: Tensor) -> Tensor:
    """Whole numbers 0..255 in, the same with the hole filled out."""
    if int(erode(known, 3).sum()) < 32:
        return flow(image, known)
    images: list[Tensor] = [image]
    knowns: list[Tensor] = [known]
    while True:
        h, w = knowns[-1].shape[0], knowns[-1].shape[1]
        half = halve(images[-1], knowns[-1])
        if (min(h, w) < 72 and h * w <= 6000) or int(erode(half.whole, 3).sum()) < 200:
            break
        if max(h, w) <= 96 and int(erode(~knowns[-1], 3).sum()) == 0:
            break
        images.append(half.mean)
        knowns.append(half.whole)
    top = len(images) - 1
    out = flow(images[top], knowns[top])
    match = torch.arange(images[top].shape[1] * images[top].shape[2], device=image.device)
    for i in range(top + 1):
        level = top - i
        here = images[level]
        keep = knowns[level]
        h, w = keep.shape[0], keep.shape[1]
        if i > 0:
            below = images[level + 1]
            base = enlarge(out, h, w)
            match = spread(match, Size(below.shape[1], below.shape[2]), Size(h, w), ~keep)
            out = copy_detail(here, base, keep, match, 1 if h * w <= 2000000 else 0)
        if i == 0 and h * w > 40000:
            continue
        if h * w <= 6000:
            start = here if i == 0 else torch.where(keep, here, out)
            current = peel(start, keep) if i == 0 else start
            filled = settle(start, current, keep, match, 6 if i == 0 else 3)
            out, match = torch.where(keep, here, filled.picture), filled.match
        elif h * w <= 70000:
            filled = improve(here, out, keep, match, 3 if h * w <= 20000 else 1)
            out, match = filled.picture, filled.match
    return out


class Demo(nn.Module):
    """Lama's signature around :func:`fill`."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        hole = mask[0, 0] != 0
        if not bool(hole.any()):
            return image
        if bool(hole.all()):
            return torch.full_like(image, 0.5)
        height, width = hole.shape[0], hole.shape[1]
        rows = hole.any(1).nonzero()[:, 0]
        columns = hole.any(0).nonzero()[:, 0]
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        margin = max(96, (max(bottom - top, right - left) * 3) // 4)
        top, bottom = max(0, top - margin), min(height, bottom + margin)
        left, right = max(0, left - margin), min(width, right + margin)
        part = torch.clamp(torch.round(image[0, :, top:bottom, left:right].float() * 255.0), 0.0, 255.0)
        inner = hole[top:bottom, left:right]
        filled = fill(part, ~inner)
        # Callers cut off the fraction of 255 * x: half a step keeps the whole number.
        value = torch.clamp((filled + 0.5) / 255.0, 0.0, 1.0).to(image.dtype)
        out = image.clone()
        out[0, :, top:bottom, left:right] = torch.where(inner, value, image[0, :, top:bottom, left:right])
        return out


def main() -> None:
    """Script the model and write it."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("demo.pt")
    model = torch.jit.script(Demo().eval())
    torch.jit.save(model, str(out))
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
