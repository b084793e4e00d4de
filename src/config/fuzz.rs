//! Hostile text for the configuration, from the file and from single values.

use std::path::Path;

use super::{Config, Key, Place, given::Given, page::page};
use crate::fuzz::Target;

/// Reads all that is given; the configuration, if there is nothing wrong with it.
fn read(given: &mut Given) -> Option<Config> {
    let config = Config::read(given);
    given.check_addresses();
    if let Some(config) = &config {
        config.check_cluster(given);
    }
    config.filter(|_| given.faults.is_empty())
}

fn from_text(text: &str) -> Given {
    let mut given = Given::default();
    given.add_text(Path::new("emnetchain.toml"), text);
    given
}

#[test]
fn config() {
    // Of broken text the parser tells each fault, some hundred bytes for one of text.
    Target::new("config", 2 << 20).inputs_below(2048).run(2000, |input, _| {
        let text = String::from_utf8_lossy(input);
        let mut given = from_text(&text);
        let Some(config) = read(&mut given) else {
            for fault in given.faults {
                let line = fault.to_string();
                assert!(!line.is_empty() && line.len() < 40 * 1024, "{line}");
            }
            return false;
        };
        let printed = page(&given);
        let again = read(&mut from_text(&printed)).expect("what is printed is read");
        assert_eq!(format!("{again:?}"), format!("{config:?}"), "{printed}");
        true
    });
}

#[test]
fn values() {
    let keys: Vec<&'static Key> = Config::KEYS.iter().collect();
    let corpus = keys.iter().map(|key| match key.preset {
        super::Preset::Default(text) | super::Preset::Required(text) => text.into(),
    });
    let target = Target::new("values", 512 * 1024).with(corpus).inputs_below(512);
    target.run(5000, |input, chance| {
        let key = chance.pick(&keys);
        let mut given = from_text("chain_addr='127.0.0.1:1'\ndis_addr='127.0.0.1:2'\n");
        given.add(Place::Flag(key), String::from_utf8_lossy(input).into_owned().into());
        read(&mut given).is_some()
    });
}
