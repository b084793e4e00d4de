//! The sources of values: flags, then the environment, then the configuration file. The first that
//! gives a key wins; the others are not even read for it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{
    Config, Fault, Faults, Key, Value,
    given::{Given, Place, key},
    near,
    page::page,
};

/// Everything that can give values. It can be read again while the process runs, and then tells
/// what the file says by now.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    flags: BTreeMap<&'static str, OsString>,
    environment: BTreeMap<&'static str, OsString>,
    file: Option<PathBuf>,
}

impl Sources {
    /// Adds a value from the command line.
    pub fn give_flag(&mut self, key: &'static Key, value: OsString) {
        self.flags.insert(key.name, value);
    }

    /// Adds the variables that are keys. An empty one counts as not given, because that is how
    /// service managers and containers leave one out.
    pub fn give_environment(&mut self, variable: impl Fn(&str) -> Option<OsString>) {
        for key in Config::KEYS {
            if let Some(value) = variable(&key.env()).filter(|value| !value.is_empty()) {
                self.environment.insert(key.name, value);
            }
        }
    }

    /// Sets the configuration file; `-` is standard input, which can be read once only.
    pub fn give_file(&mut self, path: PathBuf) {
        self.file = Some(path);
    }

    /// Reads everything into a configuration.
    ///
    /// # Errors
    /// All faults at once.
    pub fn read(&self) -> Result<Config, Faults> {
        let mut given = self.collect();
        match read(&mut given) {
            Some(config) if given.faults.is_empty() => Ok(config),
            Some(_) | None => Err(Faults(given.faults)),
        }
    }

    /// Reads everything as [`Self::read`] does, opens the files that it names, and looks for slips
    /// among the names of the environment's variables.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check<'a>(&self, variables: impl Iterator<Item = &'a str>) -> Result<Config, Faults> {
        let mut given = self.collect();
        let config = read(&mut given);
        given.check_files();
        let mut faults = given.faults;
        let known: Vec<String> = Config::KEYS.iter().map(Key::env).collect();
        for name in variables.filter(|name| name.starts_with("EMNETCHAIN_")) {
            if name != "EMNETCHAIN_CONFIG" && !known.iter().any(|known| known == name) {
                let hint = near(name, known.iter().map(String::as_str));
                faults.push(Fault::UnknownVariable { name: name.to_owned(), hint });
            }
        }
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            Some(_) | None => Err(Faults(faults)),
        }
    }

    /// Reads one key alone, for commands that need nothing else. The file is read if neither a flag
    /// nor the environment gives the key.
    ///
    /// # Errors
    /// If its value is not good, or the file is at fault.
    pub fn read_key<T: Value>(&self, name: &str) -> Result<T, Faults> {
        let is_given = self.flags.contains_key(name) || self.environment.contains_key(name);
        let mut given = if is_given { self.collect_from(None) } else { self.collect() };
        // What is wrong with another key is no matter here.
        given.faults.retain(
            |fault| !matches!(fault, Fault::BadValue { place, .. } if place.key().name != name),
        );
        match given.read(name, T::parse) {
            Some(value) if given.faults.is_empty() => Ok(value),
            Some(_) | None => Err(Faults(given.faults)),
        }
    }

    /// Writes the configuration file that says what these sources say; keys that must be given
    /// may be missing.
    ///
    /// # Errors
    /// All other faults at once.
    pub fn page(&self) -> Result<String, Faults> {
        let mut given = self.collect();
        Config::read(&mut given);
        given.check_addresses();
        given.faults.retain(|fault| !matches!(fault, Fault::Missing { .. }));
        if given.faults.is_empty() { Ok(page(&given)) } else { Err(Faults(given.faults)) }
    }

    /// Returns whether the command line gives the key.
    pub fn is_flag(&self, key: &Key) -> bool {
        self.flags.contains_key(key.name)
    }

    /// Returns whether some source gives the key.
    pub fn gives(&self, key: &Key) -> bool {
        self.collect().text(key).is_some()
    }

    /// Collects what is given, each key from the source that decides it.
    pub(super) fn collect(&self) -> Given {
        self.collect_from(self.file.as_deref())
    }

    fn collect_from(&self, file: Option<&Path>) -> Given {
        let mut given = Given::default();
        if let Some(path) = file {
            given.add_file(path);
        }
        for (name, value) in &self.environment {
            given.add(Place::Environment(key(name)), value.clone());
        }
        for (name, value) in &self.flags {
            given.add(Place::Flag(key(name)), value.clone());
        }
        given
    }
}

/// Reads a configuration, and leaves all faults in `given`.
fn read(given: &mut Given) -> Option<Config> {
    let config = Config::read(given);
    given.check_addresses();
    if let Some(config) = &config {
        config.check_cluster(given);
    }
    config
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn from_file(text: &str) -> (Sources, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let mut sources = Sources::default();
        sources.give_file(file.path().to_owned());
        (sources, file)
    }

    const ADDRS: &str = "chain_addr = '127.0.0.1:8081'\ndis_addr = '127.0.0.1:8080'\n";

    #[test]
    fn a_flag_beats_the_environment_and_that_the_file() {
        let (mut sources, _file) = from_file(&format!("{ADDRS}node_id = 2\npeers_max = 1_000\n"));
        assert_eq!(sources.read().unwrap().node_id.0, 2);
        sources.give_environment(|name| (name == "EMNETCHAIN_NODE_ID").then(|| "3".into()));
        assert_eq!(sources.read().unwrap().node_id.0, 3);
        sources.give_flag(key("node_id"), "4".into());
        let config = sources.read().unwrap();
        assert_eq!((config.node_id.0, config.peers_max), (4, 1000));
    }

    #[test]
    fn an_empty_variable_is_not_given() {
        let (mut sources, _file) = from_file(&format!("{ADDRS}node_id = 2\n"));
        sources.give_environment(|_| Some(OsString::new()));
        assert_eq!(sources.read().unwrap().node_id.0, 2);
    }

    #[test]
    fn the_file_is_read_again_each_time() {
        let (sources, file) = from_file(ADDRS);
        assert_eq!(sources.read().unwrap().node_id.0, 1);
        fs::write(file.path(), format!("{ADDRS}node_id = 9\n")).unwrap();
        assert_eq!(sources.read().unwrap().node_id.0, 9);
    }

    #[test]
    fn faults_of_the_file_name_their_lines() {
        let (sources, _file) =
            from_file(&format!("{ADDRS}shutdown_dedline = '5s'\nnode_id = []\ngather = 'x'\n"));
        let told = sources.read().unwrap_err().to_string();
        assert!(told.contains(":3: there is no key shutdown_dedline; did you mean shutdown_deadl"));
        assert!(told.contains(":4: node_id: a value of type array"), "{told}");
        assert!(told.contains(":5: gather: \"x\" is not a time"), "{told}");
    }

    #[test]
    fn what_is_not_toml_is_said_with_its_line() {
        for (text, line) in [("a = 1\nb = = 2\n", ":2:"), ("node_id = 1\nnode_id = 2\n", ":2:")] {
            let (sources, _file) = from_file(text);
            let told = sources.read().unwrap_err().to_string();
            assert!(told.contains(line), "{told}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_told() {
        let mut sources = Sources::default();
        sources.give_file("/nonexistent/emnetchain.toml".into());
        let told = sources.read().unwrap_err().to_string();
        assert!(told.starts_with("/nonexistent/emnetchain.toml: the configuration file"), "{told}");
    }
}
