//! Formats times and amounts for people.
//!
//! Does not: read a clock.

const SECOND_MS: u64 = 1_000;
const DAY_S: u64 = 86_400;
/// 9999-12-31T23:59:59.999Z, the last instant that RFC 3339 can express.
const LAST_MS: u64 = 253_402_300_799_999;

/// Formats milliseconds since the Unix epoch as RFC 3339 in UTC, with milliseconds.
pub(crate) fn rfc3339(wall_ms: u64) -> String {
    let wall_ms = wall_ms.min(LAST_MS);
    let (seconds, ms) = (wall_ms / SECOND_MS, wall_ms % SECOND_MS);
    let (year, month, day) = civil(seconds / DAY_S);
    let of_day = seconds % DAY_S;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day in the Gregorian calendar, from days since 1970-01-01.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`. Its years begin
/// in March, so that the leap day is the last day of a year.
fn civil(days: u64) -> (u64, u64, u64) {
    let from_march_0000 = days + 719_468;
    let (era, day_of_era) = (from_march_0000 / 146_097, from_march_0000 % 146_097); // 400 years
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

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
    fn dates_are_right_around_leap_days() {
        for (seconds, stamp) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_735_689_600, "2025-01-01T00:00:00"),
            (4_107_542_399, "2100-02-28T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000 + 7), format!("{stamp}.007Z"));
        }
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn consecutive_days_have_consecutive_dates() {
        let days_in = |year: u64, month: u64| match month {
            2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(civil(days), expected, "day {days}");
            let (year, month, day) = expected;
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                _ if day == days_in(year, month) => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }

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
