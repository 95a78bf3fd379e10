use lamagrid_protocol::frame::MAX_MESSAGE_BYTES;
use lamagrid_transport::zmtp::{COMMAND, LONG, MAX_WIRE_FRAMES, MORE, greeting as our_greeting};

use super::*;

fn greeting() -> Vec<u8> {
    our_greeting().to_vec()
}

fn short(flags: u8, body: &[u8]) -> Vec<u8> {
    [&[flags, body.len() as u8][..], body].concat()
}

fn long(flags: u8, len: u64, body: &[u8]) -> Vec<u8> {
    [&[flags | LONG][..], &len.to_be_bytes(), body].concat()
}

fn property(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[name.len() as u8][..], name, &(value.len() as u32).to_be_bytes(), value].concat()
}

fn ready_of(kind: &[u8], identity: &[u8]) -> Vec<u8> {
    let body =
        [&b"\x05READY"[..], &property(b"Socket-Type", kind), &property(b"Identity", identity)].concat();
    short(COMMAND, &body)
}

/// Number of frame streams, and of handshakes; `LAMAGRID_HOSTILE` sets their sum.
fn generated() -> usize {
    std::env::var("LAMAGRID_HOSTILE").map_or(200_000, |text| text.parse().unwrap()) / 2
}

/// A small deterministic generator, so that the tests do not depend on the clock.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }
}

#[test]
fn a_handshake_in_any_pieces_gets_the_gates_identity() {
    let whole = [greeting(), ready_of(b"DEALER", b"admin"), short(0, b"hi")].concat();
    let wanted = [&greeting()[..], &ready(b"DEALER", b"gpu-1/7")].concat();
    for cut in 0..whole.len() {
        let mut handshake = Handshake::new(DIALLING, Bytes::from_static(b"gpu-1/7"));
        let (first, rest) = handshake.push(&whole[..cut]).unwrap();
        assert_eq!(
            first.len() >= GREETING_BYTES,
            cut >= GREETING_BYTES,
            "the other side waits for the greeting"
        );
        let (passed, rest) = match rest {
            Some(rest) => (first.to_vec(), [&rest[..], &whole[cut..]].concat()),
            None => {
                let (second, rest) = handshake.push(&whole[cut..]).unwrap();
                ([first, second].concat(), rest.expect("whole now").to_vec())
            }
        };
        assert_eq!((passed, rest), (wanted.clone(), short(0, b"hi")), "cut at {cut}");
    }
}

#[test]
fn an_invalid_handshake_is_rejected_at_its_first_invalid_byte() {
    let mut plain = greeting();
    plain[12..17].copy_from_slice(b"PLAIN");
    let mut old = greeting();
    old[10] = 2;
    let after = |frame: Vec<u8>| [greeting(), frame].concat();
    for (bytes, breach) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), Breach::Greeting),
        (plain, Breach::Greeting),
        (old, Breach::Greeting),
        (after(short(0, b"hi")), Breach::Ready),
        (after(short(COMMAND, b"\x04PING")), Breach::Ready),
        (after(ready_of(b"ROUTER", b"x")), Breach::Ready),
        (after(short(COMMAND, b"\x05READY\x0bSocket-Type\xff\xff\xff\xff")), Breach::Ready),
        (after(long(COMMAND, 1 << 62, b"")), Breach::Ready),
        (after(long(COMMAND, 1_025, b"")), Breach::Ready),
        (after(short(COMMAND | MORE, b"")), Breach::Ready),
    ] {
        assert_eq!(
            Handshake::new(DIALLING, Bytes::from_static(b"n")).push(&bytes).unwrap_err(),
            breach,
            "{bytes:?}"
        );
    }
}

#[test]
fn valid_messages_pass_in_any_pieces() {
    let most = vec![7; MAX_MESSAGE_BYTES - 300];
    let whole = [
        short(MORE, b""),
        short(MORE, &[1; 255]),
        long(0, most.len() as u64, &most),
        short(0, b""),
        short(0, b"x"),
    ]
    .concat();
    for step in [1, 2, 9, 10, 64 * 1024, whole.len()] {
        let mut guard = Guard::default();
        for piece in whole.chunks(step) {
            guard.pass(piece).unwrap();
        }
        assert_eq!((guard.header_len, guard.body, guard.message.is_last, guard.own), (0, 0, true, 0));
    }
}

#[test]
fn messages_beyond_the_limits_are_rejected_by_their_headers() {
    let most = MAX_MESSAGE_BYTES as u64;
    let crowd = short(MORE, b"").repeat(MAX_WIRE_FRAMES + 1);
    let halves = [long(MORE, most, &vec![0; MAX_MESSAGE_BYTES]), short(0, b"x")].concat();
    for (bytes, breach) in [
        (long(0, 1 << 62, b""), Breach::Long(1 << 62)),
        (long(0, u64::MAX, b""), Breach::Long(u64::MAX)),
        (long(0, most + 1, b""), Breach::Long(most + 1)),
        (crowd, Breach::Frames),
        (halves, Breach::Bytes),
        (short(COMMAND, b"\x04PING"), Breach::Command),
        (vec![0x88], Breach::Flags(0x88)),
    ] {
        assert_eq!(Guard::default().pass(&bytes).unwrap_err(), breach);
    }
}

/// Any bytes in any pieces cause no panic, and pass or fail as they do in one piece.
#[test]
fn generated_bytes_are_judged_alike_in_any_pieces() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..generated() {
        let mut bytes = Vec::new();
        for _ in 0..dice.below(12) {
            let body = vec![0; dice.below(300).min(255)];
            bytes.extend(match dice.below(8) {
                0 => long(dice.below(2) as u8, dice.next() >> dice.below(64), &body),
                1 => long(dice.below(2) as u8, body.len() as u64, &body),
                2 => short(dice.next() as u8, &body),
                _ => short(dice.below(2) as u8, &body),
            });
        }
        let whole = Guard::default().pass(&bytes);
        let (mut guard, mut pieces, mut rest) = (Guard::default(), Ok(()), &bytes[..]);
        while pieces.is_ok() && !rest.is_empty() {
            let (now, later) = rest.split_at(1 + dice.below(rest.len()));
            (pieces, rest) = (guard.pass(now), later);
        }
        assert_eq!(whole, pieces);
        if whole.is_ok() { passed += 1 } else { refused += 1 }
    }
    assert!(passed > 1_000 && refused > 1_000, "{passed} passed, {refused} were refused");
    for _ in 0..generated() {
        let mut bytes = [greeting(), ready_of(b"REQ", b"me")].concat();
        for _ in 0..dice.below(4) {
            let at = dice.below(bytes.len());
            bytes[at] = dice.next() as u8;
        }
        let mut handshake = Handshake::new(DIALLING, Bytes::from_static(b"n"));
        let cut = dice.below(bytes.len());
        let first = handshake.push(&bytes[..cut]);
        let second = if let Ok((_, None)) = first { handshake.push(&bytes[cut..]) } else { first };
        if let Ok((passed, Some(_))) = second {
            assert!(passed.ends_with(b"\x08Identity\0\0\0\x01n"));
        }
    }
}

#[test]
fn incomplete_messages_are_counted_over_all_connections_of_a_peer() {
    let unfinished_bytes = UnfinishedBytes::default();
    let half = long(0, 1_000_000, &[7; 900_000]);
    let mut guards: Vec<Guard> = (0..9).map(|_| Guard::new(Arc::clone(&unfinished_bytes))).collect();
    assert!(guards.iter_mut().all(|guard| guard.pass(&half).is_ok()));
    let mut last = Guard::new(Arc::clone(&unfinished_bytes));
    assert_eq!(last.pass(&half), Err(Breach::Unfinished));
    drop(last);
    // Completing a message, or disconnecting, makes room.
    assert_eq!(guards[0].pass(&[7; 100_000]), Ok(()));
    guards.truncate(7);
    assert_eq!(unfinished_bytes.load(Ordering::Relaxed), 6 * 900_000);
    assert_eq!(Guard::new(Arc::clone(&unfinished_bytes)).pass(&half), Ok(()));
    drop(guards);
    assert_eq!(unfinished_bytes.load(Ordering::Relaxed), 0);
}
