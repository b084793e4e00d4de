//! The kinds of values, and the text that an operator writes for each.

use std::{net::SocketAddr, num::NonZeroUsize, ops::RangeInclusive, path::PathBuf, time::Duration};

use crate::{
    ids::InstanceId,
    logging::{LogFormat, LogLevel, OtlpEndpoint},
    ops::http::{HttpAddr, gate::Open},
    storage::ClusterId,
    wire::AddressPolicy,
};

/// Something that a key can hold.
pub trait Value: Sized {
    /// The form of the text, in one word for `--help`.
    const PLACEHOLDER: &'static str;

    /// Whether a flag of this kind may stand without a value, which says `true`.
    const IS_SWITCH: bool = false;

    /// Whether a value is a list, separated by commas.
    const IS_LIST: bool = false;

    /// Reads the text, without white space around it.
    ///
    /// # Errors
    /// The fault of the text, and the form to write instead.
    fn parse(text: &str) -> Result<Self, String>;
}

/// Returns whether the value lies in the range; if not, says so.
pub(super) fn within<T>(value: &T, range: &RangeInclusive<T>) -> Result<(), String>
where
    T: PartialOrd + Shown,
{
    if range.contains(value) {
        return Ok(());
    }
    let (value, least, most) = (value.shown(), range.start().shown(), range.end().shown());
    Err(format!("{value} is out of range; write {least} to {most}"))
}

/// The form of a value in a message about its range.
pub(super) trait Shown {
    /// Returns the text, as an operator would write it.
    fn shown(&self) -> String;
}

impl Value for SocketAddr {
    const PLACEHOLDER: &'static str = "ADDR";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!(
                "{text:?} is not an address; write ip:port or [ip]:port, such as 127.0.0.1:8081 \
                 (names are not looked up)"
            )
        })
    }
}

impl Value for Option<SocketAddr> {
    const PLACEHOLDER: &'static str = "ADDR";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" { Ok(None) } else { SocketAddr::parse(text).map(Some) }
    }
}

/// Where a server listens: one address, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addrs(pub Vec<SocketAddr>);

impl Value for Addrs {
    const PLACEHOLDER: &'static str = "ADDR";
    const IS_LIST: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let addresses = text.split(',').map(|part| SocketAddr::parse(part.trim()));
        addresses.collect::<Result<_, _>>().map(Self)
    }
}

/// Where EMUDP and STUN answer; empty for nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpAddrs(pub Vec<SocketAddr>);

impl Value for UdpAddrs {
    const PLACEHOLDER: &'static str = "ADDR";
    const IS_LIST: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::default());
        }
        Addrs::parse(text).map(|Addrs(addresses)| Self(addresses))
    }
}

impl Value for HttpAddr {
    const PLACEHOLDER: &'static str = "ADDR";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            address => SocketAddr::parse(address).map(Self::At),
        }
    }
}

impl Value for Open {
    const PLACEHOLDER: &'static str = "NAMES";

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl Value for AddressPolicy {
    const PLACEHOLDER: &'static str = "POLICY";

    fn parse(text: &str) -> Result<Self, String> {
        choose(text, &[("auto", Self::Auto), ("source-ip", Self::SourceIp), ("any", Self::Any)])
    }
}

impl Value for LogFormat {
    const PLACEHOLDER: &'static str = "FORMAT";

    fn parse(text: &str) -> Result<Self, String> {
        choose(text, &[("text", Self::Text), ("json", Self::Json)])
    }
}

fn choose<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    Err(format!("{text:?} is not known; write one of {}", names.join(", ")))
}

impl Value for LogLevel {
    const PLACEHOLDER: &'static str = "LEVEL";

    fn parse(text: &str) -> Result<Self, String> {
        Self::new(text)
    }
}

impl Value for Option<OtlpEndpoint> {
    const PLACEHOLDER: &'static str = "URL";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(None) } else { OtlpEndpoint::new(text).map(Some) }
    }
}

impl Value for PathBuf {
    const PLACEHOLDER: &'static str = "DIR";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the name of a directory is empty".to_owned());
        }
        Ok(Self::from(text))
    }
}

impl Value for Option<PathBuf> {
    const PLACEHOLDER: &'static str = "FILE";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("the name of a file is empty".to_owned()),
            "none" => Ok(None),
            path => Ok(Some(PathBuf::from(path))),
        }
    }
}

impl Value for bool {
    const PLACEHOLDER: &'static str = "true|false";
    const IS_SWITCH: Self = true;

    fn parse(text: &str) -> Result<Self, String> {
        choose(text, &[("true", true), ("false", false)])
    }
}

impl Value for Option<ClusterId> {
    const PLACEHOLDER: &'static str = "ID";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(None),
            digits if digits.len() == 32 => u128::from_str_radix(digits, 16)
                .map(|id| Some(ClusterId(id)))
                .map_err(|_| format!("{text:?} is not a cluster id; it has 32 digits of 0-9, a-f")),
            _ => Err(format!("{text:?} is not a cluster id; it has 32 digits of 0-9, a-f")),
        }
    }
}

macro_rules! whole_numbers {
    ($($type:ty),+) => {$(
        impl Value for $type {
            const PLACEHOLDER: &'static str = "N";

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("{text:?} is not a whole number in range"))
            }
        }

        impl Shown for $type {
            fn shown(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

whole_numbers!(u32, u64, usize);

impl Value for Option<usize> {
    const PLACEHOLDER: &'static str = "N";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(None);
        }
        match text.parse::<NonZeroUsize>() {
            Ok(number) => Ok(Some(number.get())),
            Err(_) => Err(format!("{text:?} is neither a whole number from 1 nor auto")),
        }
    }
}

impl Value for InstanceId {
    const PLACEHOLDER: &'static str = "N";

    fn parse(text: &str) -> Result<Self, String> {
        match u64::parse(text)? {
            0 => Err("instances are numbered from 1".to_owned()),
            number => Ok(Self(number)),
        }
    }
}

/// The units of time, the longest first.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];

impl Value for Duration {
    const PLACEHOLDER: &'static str = "TIME";

    /// Parses a whole number and a unit; without a unit, seconds.
    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim_start());
        let unit_ms = match unit {
            "" => Some(1000),
            "m" => Some(60_000),
            _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms),
        };
        let ms = number.parse::<u64>().ok().zip(unit_ms).and_then(|(n, ms)| n.checked_mul(ms));
        ms.map(Self::from_millis).ok_or_else(|| {
            format!("{text:?} is not a time; write a whole number and ms, s, min, h or d, as 10s")
        })
    }
}

impl Shown for Duration {
    fn shown(&self) -> String {
        let ms = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        let unit = UNITS.iter().find(|(_, unit)| ms >= *unit && ms % unit == 0);
        unit.map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", ms / unit))
    }
}

/// Returns this number of seconds.
pub(super) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Returns this number of hours.
pub(super) const fn hours(n: u64) -> Duration {
    seconds(n * 3600)
}

/// Returns this number of days.
pub(super) const fn days(n: u64) -> Duration {
    hours(n * 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let cases = [
            ("10s", 10_000),
            ("10 s", 10_000),
            ("10", 10_000),
            ("0", 0),
            ("500ms", 500),
            ("5m", 300_000),
            ("5min", 300_000),
            ("24h", 86_400_000),
            ("30d", 2_592_000_000),
        ];
        for (text, ms) in cases {
            assert_eq!(Duration::parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "10 weeks", "10ss", "18446744073709551615d", "１s"] {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_may_be_left_to_the_service() {
        assert_eq!(Option::<usize>::parse("auto"), Ok(None));
        assert_eq!(Option::<usize>::parse("7"), Ok(Some(7)));
        for text in ["0", "", "-1", "many"] {
            assert!(Option::<usize>::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_shown_as_they_are_read() {
        for text in ["10s", "1500ms", "5min", "24h", "30d"] {
            let time = Duration::parse(text).unwrap();
            assert_eq!(Duration::parse(&time.shown()), Ok(time), "{text}");
        }
        assert_eq!(hours(24).shown(), "1d");
        assert_eq!(Duration::ZERO.shown(), "0");
    }

    #[test]
    fn only_addresses_are_addresses() {
        for text in ["127.0.0.1:0", "0.0.0.0:8081", "[::1]:65535", "[::]:1"] {
            assert!(SocketAddr::parse(text).is_ok(), "{text}");
        }
        for text in
            ["", "127.0.0.1", "localhost:80", "::1:80", "1.2.3.4:65536", "01.2.3.4:1", ":80"]
        {
            assert!(SocketAddr::parse(text).unwrap_err().contains("ip:port"), "{text}");
        }
    }

    #[test]
    fn some_servers_have_a_list_of_addresses() {
        let of = |text| UdpAddrs::parse(text).map(|UdpAddrs(all)| all.len());
        for (text, count) in [
            ("off", 0),
            ("0.0.0.0:3478", 1),
            ("192.0.2.1:3478, [::1]:3478", 2),
            ("[::]:0,[::]:0", 2),
        ] {
            assert_eq!(of(text), Ok(count), "{text}");
        }
        for text in ["", ",", "192.0.2.1:1,", "off,192.0.2.1:1"] {
            assert!(of(text).is_err(), "{text}");
        }
        let chains = |text| Addrs::parse(text).map(|Addrs(all)| all.len());
        assert_eq!(chains("192.0.2.1:8081, [::1]:8081"), Ok(2));
        for text in ["off", "", "192.0.2.1:1,off"] {
            assert!(chains(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_says_its_ends() {
        let told = within(&seconds(0), &(seconds(1)..=hours(1))).unwrap_err();
        assert_eq!(told, "0 is out of range; write 1s to 1h");
        assert_eq!(within(&5, &(1..=5_u64)), Ok(()));
    }
}
