//! Formats times and amounts for people.
//!
//! Does not: read a clock.

pub(crate) use lamagrid_domain::rfc3339;

const SECOND_MS: u64 = 1_000;
const DAY_S: u64 = 86_400;

/// Formats an instant and its age: `2026-07-31 09:05:00 UTC (3 min 5 s ago)`.
pub(crate) fn ago(wall_ms: u64, now_ms: u64) -> String {
    let stamp = rfc3339(wall_ms);
    let (date, time) = (&stamp[..10], &stamp[11..19]);
    match now_ms.saturating_sub(wall_ms) / SECOND_MS {
        0 => format!("{date} {time} UTC (just now)"),
        seconds => format!("{date} {time} UTC ({} ago)", duration_ms((seconds * SECOND_MS) as f64)),
    }
}

/// Formats a time span with two or three significant digits: `4.2 ms`, `310 ms`, `12.3 s`, `3 min 5 s`, `2 h
/// 10 min`, `4 d 3 h`.
pub(crate) fn duration_ms(ms: f64) -> String {
    let seconds = (ms / 1_000.0).round() as u64;
    match ms {
        ms if !ms.is_finite() || ms <= 0.0 => "0 ms".to_owned(),
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 59_950.0 => format!("{:.1} s", ms / 1_000.0),
        _ if seconds < 3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ if seconds < DAY_S => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / DAY_S, seconds / 3_600 % 24),
    }
}

/// Formats bytes in binary units: `512 MiB`, `15.7 GiB`.
pub(crate) fn memory(bytes: u64) -> String {
    const MIB: f64 = 1_048_576.0;
    match bytes as f64 / MIB {
        mib if mib < 1_023.5 => format!("{mib:.0} MiB"),
        mib => format!("{:.1} GiB", mib / 1_024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_and_sizes_are_formatted_briefly() {
        let shown: Vec<_> = [
            f64::NAN,
            -1.0,
            0.0,
            0.04,
            9.94,
            9.96,
            999.4,
            999.6,
            59_949.0,
            59_951.0,
            3_599_499.0,
            3_599_501.0,
        ]
        .map(duration_ms)
        .into();
        assert_eq!(
            shown,
            [
                "0 ms",
                "0 ms",
                "0 ms",
                "0.0 ms",
                "9.9 ms",
                "10 ms",
                "999 ms",
                "1.0 s",
                "59.9 s",
                "1 min 0 s",
                "59 min 59 s",
                "1 h 0 min"
            ]
        );
        assert_eq!(duration_ms(86_400_000.0 * 4.125), "4 d 3 h");
        assert_eq!(duration_ms(f64::MAX), duration_ms(f64::MAX), "no overflow");
        assert_eq!((memory(512 << 20), memory(139 << 30)), ("512 MiB".to_owned(), "139.0 GiB".to_owned()));
        assert_eq!(ago(1_000, 1_999), "1970-01-01 00:00:01 UTC (just now)");
        assert_eq!(ago(5_000, 1_000), "1970-01-01 00:00:05 UTC (just now)", "clocks differ");
        assert_eq!(ago(0, 185_000), "1970-01-01 00:00:00 UTC (3 min 5 s ago)");
    }
}
