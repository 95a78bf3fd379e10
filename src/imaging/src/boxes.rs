//! The rectangles that the Crop strategy runs a model on.
//!
//! Does not: merge or sort boxes; their order is upstream's, and decides which of two overlapping crops wins.

use std::ops::Range;

use crate::image::Gray;

/// A half-open rectangle of pixels, never empty: rows `top..bottom`, columns `left..right`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// One past the last column.
    pub right: usize,
    /// One past the last row.
    pub bottom: usize,
}

impl Rect {
    pub(crate) fn whole(height: usize, width: usize) -> Self {
        Self { left: 0, top: 0, right: width, bottom: height }
    }

    pub(crate) fn width(&self) -> usize {
        self.right - self.left
    }

    pub(crate) fn height(&self) -> usize {
        self.bottom - self.top
    }
}

/// Pixels of one row of equal side of the threshold, and the label of the region they belong to.
#[derive(Debug)]
struct Run {
    start: u32,
    end: u32,
    white: bool,
    label: u32,
}

/// The bounds of a region so far; only the entry of its root is valid.
///
/// A hostile mask may have one for every other pixel, hence 32 bits for everything: sides are at most
/// `MAX_SIDE_PX` and labels fewer than `MAX_PIXELS`.
#[derive(Debug, Clone, Copy)]
struct Region {
    parent: u32,
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
    /// White: label of the black region above its first pixel; [`OUTSIDE`] if that is outside the mask.
    above: u32,
    white: bool,
    /// Black: touches the edge of the mask, so that it lies outside everything.
    open: bool,
}

/// The label of what surrounds the mask.
const OUTSIDE: u32 = u32::MAX;

/// Regions as a union-find whose roots are the lowest labels, i.e. those of the first pixel in raster order.
#[derive(Debug, Default)]
struct Regions(Vec<Region>);

impl Regions {
    fn at(&mut self, label: u32) -> &mut Region {
        &mut self.0[label as usize]
    }

    fn root(&mut self, mut label: u32) -> u32 {
        loop {
            let parent = self.at(label).parent;
            if parent == label {
                return label;
            }
            let above = self.at(parent).parent;
            self.at(label).parent = above;
            label = above;
        }
    }

    fn join(&mut self, a: u32, b: u32) -> u32 {
        let (a, b) = (self.root(a), self.root(b));
        let (low, high) = (a.min(b), a.max(b));
        if low != high {
            self.at(high).parent = low;
            let joined = *self.at(high);
            self.at(low).grow(&joined);
        }
        low
    }

    fn add(&mut self, region: Region) -> u32 {
        let label = self.0.len() as u32;
        self.0.push(Region { parent: label, ..region });
        label
    }

    /// Whether the white region lies in no other one's hole.
    fn is_outer(&mut self, region: &Region) -> bool {
        region.above == OUTSIDE || {
            let root = self.root(region.above);
            self.at(root).open
        }
    }
}

impl Region {
    fn grow(&mut self, by: &Region) {
        self.left = self.left.min(by.left);
        self.top = self.top.min(by.top);
        self.right = self.right.max(by.right);
        self.bottom = self.bottom.max(by.bottom);
        self.open |= by.open;
    }

    fn bounds(&self) -> Rect {
        let [left, top, right, bottom] =
            [self.left, self.top, self.right, self.bottom].map(|edge| edge as usize);
        Rect { left, top, right, bottom }
    }
}

/// Whether a mask value counts as masked: upstream thresholds at 127.
fn is_white(value: u8) -> bool {
    value > 127
}

/// Appends the runs of one mask row, not yet labelled.
fn find_runs(row: &[u8], runs: &mut Vec<Run>) {
    let mut push = |span: Range<usize>, white| {
        runs.push(Run { start: span.start as u32, end: span.end as u32, white, label: 0 });
    };
    // Most rows of most masks are black, and this finds out many samples at a time.
    if !is_white(row.iter().fold(0, |all, value| all | value)) {
        return push(0..row.len(), false);
    }
    let mut start = 0;
    while start < row.len() {
        let white = is_white(row[start]);
        let end = row[start..].iter().position(|v| is_white(*v) != white).map_or(row.len(), |n| start + n);
        push(start..end, white);
        start = end;
    }
}

/// Gives `run` of row `y` the label of the regions it touches in the row above, or a new one.
///
/// `above` starts with the run over `run`'s left neighbour, or one before; `size` is `(H, W)` of the mask.
fn label_run(regions: &mut Regions, above: &[Run], run: &mut Run, y: u32, size: (u32, u32)) {
    // White connects across corners (8 neighbours), and hence black does not (4).
    let reach = u32::from(run.white);
    let mut label = None;
    for other in above.iter().take_while(|other| other.start <= run.end) {
        if other.white == run.white && other.start < run.end + reach && run.start < other.end + reach {
            label = Some(label.map_or(other.label, |known| regions.join(known, other.label)));
        }
    }
    let here = Region {
        parent: 0,
        left: run.start,
        top: y,
        right: run.end,
        bottom: y + 1,
        above: above.iter().find(|other| other.end > run.start).map_or(OUTSIDE, |other| other.label),
        white: run.white,
        open: y == 0 || y + 1 == size.0 || run.start == 0 || run.end == size.1,
    };
    run.label = match label {
        Some(label) => {
            let root = regions.root(label);
            regions.at(root).grow(&here);
            root
        }
        None => regions.add(here),
    };
}

/// The bounding rectangles of the mask's outer blobs (mask > 127, 8-connected), in upstream's order.
///
/// That order is the reverse raster order of each blob's first pixel. A blob inside the hole of another gives
/// no rectangle. There may be as many as a quarter of the pixels: upstream has no limit either.
///
/// Source: Lama Cleaner `helper.boxes_from_mask`, 1.2.5 (`cv2.findContours` with `RETR_EXTERNAL` and
/// `CHAIN_APPROX_SIMPLE`); parity: `tests/golden`.
pub fn boxes_from_mask(mask: &Gray) -> Vec<Rect> {
    let size = (mask.height() as u32, mask.width() as u32);
    let mut regions = Regions::default();
    let (mut above, mut runs): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
    for (y, row) in (0..size.0).zip(mask.data().chunks_exact(mask.width())) {
        runs.clear();
        find_runs(row, &mut runs);
        let mut skip = 0;
        for run in &mut runs {
            while above.get(skip).is_some_and(|other| other.end < run.start) {
                skip += 1;
            }
            label_run(&mut regions, &above[skip..], run, y, size);
        }
        std::mem::swap(&mut above, &mut runs);
    }
    let mut boxes = Vec::new();
    for label in (0..regions.0.len() as u32).rev() {
        let region = *regions.at(label);
        if region.parent == label && region.white && regions.is_outer(&region) {
            boxes.push(region.bounds());
        }
    }
    boxes
}

/// The rectangle around `blob` that the model sees, in a picture of `height` x `width` pixels.
///
/// `margin` (pixels, any value) is added on each side; where that leaves the picture, the other side grows
/// instead. An odd width or height loses one pixel. None if nothing is left, which takes a negative margin.
/// A right or bottom edge below 0 counts from the far side, because upstream slices with it.
///
/// Exact for every margin; upstream's int64 wraps around for margins beyond 2^62.
///
/// Source: Lama Cleaner `model/base.py` `_crop_box`, 1.2.5; parity: `tests/golden`.
pub fn crop_box(blob: &Rect, height: usize, width: usize, margin: i64) -> Option<Rect> {
    let (left, right) = crop_span(blob.left, blob.right, width, margin)?;
    let (top, bottom) = crop_span(blob.top, blob.bottom, height, margin)?;
    Some(Rect { left, top, right, bottom })
}

/// [`crop_box`] along one axis of `side` pixels.
fn crop_span(start: usize, end: usize, side: usize, margin: i64) -> Option<(usize, usize)> {
    let (first, last, side) = (start as i128, end as i128, side as i128);
    let half = (last - first + 2 * i128::from(margin)).div_euclid(2);
    let centre = (first + last).div_euclid(2);
    let (wanted_low, wanted_high) = (centre - half, centre + half);
    let (mut low, mut high) = (wanted_low.max(0), wanted_high.min(side));
    if wanted_low < 0 {
        high -= wanted_low;
    }
    if wanted_high > side {
        low -= wanted_high - side;
    }
    (low, high) = (low.max(0), high.min(side));
    if high < 0 {
        high += side;
    }
    if high <= low {
        return None;
    }
    // 0 <= low < high <= side, and side came from a usize.
    Some((usize::try_from(low).ok()?, usize::try_from(high).ok()?))
}
