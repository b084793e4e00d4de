//! The dates of certificates. rustls refuses an expired one in the middle of a handshake; an
//! operator has to know days before.

use std::fmt;

use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::clock;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, which the first version lacks.
const VERSION: u8 = 0xa0;

const SECONDS_OF_A_DAY: i64 = 86_400;

/// When certificates are good, in seconds since 1970, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dates {
    /// From here.
    pub(super) from: i64,
    /// Until here.
    pub(super) until: i64,
}

impl Dates {
    /// Returns the dates in a certificate (RFC 5280, 4.1.2.5); `None` if it is not of that form.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate, _) = take(certificate, Some(SEQUENCE))?;
        let (_, mut rest, _) = take(certificate, Some(SEQUENCE))?;
        if let Some((_, _, behind)) = take(rest, Some(VERSION)) {
            rest = behind;
        }
        // The serial number, the algorithm and the issuer stand before.
        for _ in 0..3 {
            rest = take(rest, None)?.2;
        }
        let (_, dates, _) = take(rest, Some(SEQUENCE))?;
        let (kind, from, behind) = take(dates, None)?;
        let from = moment(kind, from)?;
        let (kind, until, _) = take(behind, None)?;
        Some(Self { from, until: moment(kind, until)? })
    }

    /// Returns the time in which both are good.
    pub(super) fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), until: self.until.min(other.until) }
    }

    /// Returns why they are out of date at a moment; `None` if they are good.
    pub(super) fn fault(self, now: i64) -> Option<String> {
        let days = |seconds: i64| seconds / SECONDS_OF_A_DAY;
        if now > self.until {
            return Some(format!("it has expired, {} days ago", days(now - self.until)));
        }
        (now < self.from).then(|| {
            let hours = (self.from - now) / 3600;
            format!("it is not valid yet, for {hours} h more; is the clock of this host right?")
        })
    }

    /// Returns the news at a moment.
    pub(super) fn stage(self, now: i64) -> Stage {
        match self.days_left(now) {
            _ if now > self.until => Stage::Expired,
            days @ 0..7 => Stage::Days(days),
            days if days < 30 => Stage::Month,
            _ => Stage::Good,
        }
    }

    /// Whole days that are left at a moment.
    pub(super) fn days_left(self, now: i64) -> i64 {
        (self.until - now) / SECONDS_OF_A_DAY
    }
}

/// The news about the time that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing.
    Good,
    /// Less than a month.
    Month,
    /// Less than a week: this number of whole days.
    Days(i64),
    /// None.
    Expired,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let renew = "put new ones in place and send SIGHUP";
        match self {
            Self::Good => f.write_str("the certificates are good"),
            Self::Month => write!(f, "the certificates expire within 30 days; {renew}"),
            Self::Days(0) => write!(f, "the certificates expire within a day; {renew}"),
            Self::Days(1) => write!(f, "the certificates expire in 1 day; {renew}"),
            Self::Days(days) => write!(f, "the certificates expire in {days} days; {renew}"),
            Self::Expired => write!(
                f,
                "the certificates have expired: open connections go on, and no new one between \
                 instances can be opened; {renew}"
            ),
        }
    }
}

/// Returns the time of this host, in seconds since 1970.
pub(super) fn now() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

/// Takes one element of DER off the front: its tag, what is in it and what is behind it.
fn take(der: &[u8], wanted: Option<u8>) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    if wanted.is_some_and(|wanted| wanted != tag) {
        return None;
    }
    // A length of up to 127, or how many bytes it has: at most three here, for 16 MiB.
    let (length, rest) = match first.checked_sub(0x80) {
        None => (usize::from(first), rest),
        Some(bytes @ 1..=3) => {
            let (bytes, rest) = rest.split_at_checked(usize::from(bytes))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        Some(_) => return None,
    };
    let (inside, behind) = rest.split_at_checked(length)?;
    Some((tag, inside, behind))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, the only forms that RFC 5280 allows.
fn moment(kind: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    let number = |at: std::ops::Range<usize>| {
        let digits = digits.get(at)?;
        let is_number = digits.iter().all(u8::is_ascii_digit);
        is_number.then(|| digits.iter().fold(0, |n, digit| n * 10 + i64::from(digit - b'0')))
    };
    let (year, rest) = match (kind, digits.len()) {
        (UTC_TIME, 12) => (number(0..2).map(|year| year + if year < 50 { 2000 } else { 1900 })?, 2),
        (GENERALIZED_TIME, 14) => (number(0..4)?, 4),
        _ => return None,
    };
    let part = |nth: usize| number(rest + 2 * nth..rest + 2 * nth + 2);
    let (month, day) = (part(0)?, part(1)?);
    // Days since 1970 in the calendar of Gregory, with years that begin in March.
    let march = if month > 2 { month - 3 } else { month + 9 };
    let year = if month > 2 { year } else { year - 1 };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * march + 2) / 5 + day - 1;
    Some((days - 719_468) * SECONDS_OF_A_DAY + part(2)? * 3600 + part(3)? * 60 + part(4)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (kind, text, expected) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "491231235959Z", 2_524_607_999),
            (UTC_TIME, "500101000000Z", -631_152_000),
            (UTC_TIME, "000229120000Z", 951_825_600),
            (GENERALIZED_TIME, "20500101000000Z", 2_524_608_000),
            (GENERALIZED_TIME, "40960101000000Z", 67_090_118_400),
            (GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(moment(kind, text.as_bytes()), Some(expected), "{text}");
        }
        for text in ["700101000000", "70010100000Z", "7001010000x0Z", ""] {
            assert_eq!(moment(UTC_TIME, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_out_of_date_says_so() {
        let dates = Dates { from: 1_000_000, until: 2_000_000 };
        assert_eq!(dates.fault(1_000_000), None);
        assert_eq!(dates.fault(2_000_000), None);
        assert!(dates.fault(999_999).unwrap().contains("not valid yet"));
        assert!(dates.fault(2_000_001 + 2 * SECONDS_OF_A_DAY).unwrap().contains("2 days ago"));
        assert_eq!(dates.days_left(1_000_000), 11);
        let stages: Vec<Stage> = [40, 30, 29, 7, 6, 1, 0]
            .map(|days| dates.stage(dates.until - days * SECONDS_OF_A_DAY - 1))
            .into();
        let expected = [
            Stage::Good,
            Stage::Good,
            Stage::Month,
            Stage::Month,
            Stage::Days(6),
            Stage::Days(1),
            Stage::Days(0),
        ];
        assert_eq!(stages, expected);
        assert_eq!(dates.stage(dates.until), Stage::Days(0));
        assert_eq!(dates.stage(dates.until + 1), Stage::Expired);
    }
}
