//! Feeds the decoders frames and messages that are nearly valid, and some that are not (X8).
//!
//! `LAMAGRID_HOSTILE` sets the number; `make chaos` runs ten million.

#![expect(clippy::unwrap_used, reason = "a failed test panics at the line that failed")]
#![expect(clippy::print_stdout, reason = "the counts are part of what is shown")]

#[expect(dead_code, reason = "what the samples say of themselves is for the stored ones")]
mod samples;

use std::time::{Duration, Instant};

use bytes::Bytes;
use samples::samples;

use lamagrid_protocol::frame::{Frame, FrameError};
use lamagrid_protocol::message::{
    AdminReply, AdminRequest, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage, Message,
    NodeEvent, ResultReply, ResultRequest,
};

const DEFAULT: usize = 200_000;
/// Time limit for one message; the slowest is a list that fills a header.
const AT_MOST: Duration = Duration::from_secs(1);
const GROWTH_KIB: u64 = 10 * 1024;

/// A small deterministic generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }
}

/// MessagePack prefixes that announce huge lengths: strings, arrays, maps and bytes of four billion, and deep nesting.
const CLAIMS: [&[u8]; 7] = [
    &[0xdb, 0xff, 0xff, 0xff, 0xff],
    &[0xdd, 0xff, 0xff, 0xff, 0xff],
    &[0xdf, 0xff, 0xff, 0xff, 0xff],
    &[0xc6, 0xff, 0xff, 0xff, 0xff],
    &[0x91; 64],
    &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 1],
];

fn spoil(dice: &mut Dice, part: &mut Vec<u8>) {
    for _ in 0..=dice.below(3) {
        let at = dice.below(part.len() + 1).min(part.len());
        match dice.below(6) {
            0 if at < part.len() => part[at] ^= 1 << dice.below(8),
            1 if at < part.len() => part[at] = dice.next() as u8,
            2 => part.truncate(at),
            3 => {
                let claim = CLAIMS[dice.below(CLAIMS.len())];
                part.splice(at..(at + claim.len()).min(part.len()), claim.iter().copied());
            }
            4 => part.insert(at, dice.next() as u8),
            _ => {
                let end = (at + dice.below(64)).min(part.len());
                let piece = part[at..end].to_vec();
                let to = dice.below(part.len() + 1).min(part.len());
                part.splice(to..to, piece);
            }
        }
    }
}

/// Decodes the frame as a message of every channel; true if one channel accepts it.
fn read(frame: &Frame) -> bool {
    fn one<M: Message>(frame: &Frame) -> bool {
        match M::from_frame(frame) {
            Ok(_) => true,
            Err(FrameError::Header { reason, .. }) => {
                assert!(reason.len() <= 1_024, "a peer does not fill the log: {}", reason.len());
                false
            }
            Err(_) => false,
        }
    }
    let channels = [
        one::<ClientRequest>,
        one::<ClientReply>,
        one::<ControlRequest>,
        one::<ControlReply>,
        one::<ResultRequest>,
        one::<ResultReply>,
        one::<NodeEvent>,
        one::<LaneMessage>,
        one::<AdminRequest>,
        one::<AdminReply>,
    ];
    // `filter` visits every channel; `any` would stop at the first that accepts.
    channels.iter().filter(|read| read(frame)).count() > 0
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn hostile_frames_and_messages_are_judged_in_bounded_time_and_memory() {
    let wanted = std::env::var("LAMAGRID_HOSTILE").map_or(DEFAULT, |text| text.parse().unwrap());
    let seeds: Vec<Vec<Bytes>> = samples().into_iter().map(|sample| sample.parts).collect();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut understood, mut refused, mut resident) = (0, 0, 0);
    let began = Instant::now();
    for number in 0..wanted {
        if number == wanted / 20 {
            resident = resident_kib();
        }
        let mut parts: Vec<Vec<u8>> =
            seeds[dice.below(seeds.len())].iter().map(|part| part.to_vec()).collect();
        match dice.below(8) {
            0 => parts.push(vec![0; dice.below(300_000)]),
            1 => drop(parts.pop()),
            2 => parts.insert(0, Vec::new()),
            3 => parts = (0..dice.below(9)).map(|_| vec![dice.next() as u8; dice.below(40)]).collect(),
            _ => {}
        }
        for _ in 0..dice.below(3) {
            let at = dice.below(parts.len());
            if let Some(part) = parts.get_mut(at) {
                spoil(&mut dice, part);
            }
        }
        let one = Instant::now();
        match Frame::from_parts(parts.into_iter().map(Bytes::from).collect()) {
            Ok(frame) if read(&frame) => understood += 1,
            Ok(_) | Err(_) => refused += 1,
        }
        assert!(one.elapsed() < AT_MOST, "message {number} took {:?}", one.elapsed());
    }
    let growth = resident_kib().saturating_sub(resident);
    println!(
        "hostile: {wanted} messages in {:.1} s, understood {understood}, refused {refused}, growth {growth} KiB",
        began.elapsed().as_secs_f64()
    );
    assert!(understood > wanted / 20 && refused > wanted / 20, "they are nearly right, and some are right");
    assert!(growth < GROWTH_KIB, "{growth} KiB");
}
