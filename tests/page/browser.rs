//! A real browser, driven through WebDriver. The few requests that it takes are plain HTTP with
//! JSON, so the sockets of the other tests do; a client library would bring more crates than the
//! program has.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{PATIENCE, eventually};

/// Runs in the page: the visible texts with less contrast than 4.5 to 1 (WCAG 2, level AA). What
/// cannot be used now is left out, as there.
const FAINT: &str = "
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const parts = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    };
    const light = (colour) => {
        const linear = [...parts(colour)].slice(0, 3).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (parts(colour)[3] === 255) return colour;
        }
        return 'white';
    };
    const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
    const hasText = (node) => [...node.childNodes].some(isText);
    return [...document.body.querySelectorAll('*')]
        .filter((node) => node.checkVisibility() && hasText(node) && !node.closest(':disabled'))
        .map((node) => {
            const lights = [getComputedStyle(node).color, ground(node)].map(light).sort();
            const [dark, bright] = lights.sort((a, b) => a - b);
            return [(bright + 0.05) / (dark + 0.05), node.textContent.trim()];
        })
        .filter(([contrast]) => contrast < 4.5)
        .map(([contrast, text]) => `${contrast.toFixed(1)}: ${text}`);";

/// One window of a browser of its own.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Opens a page.
    pub(crate) fn open(url: &str) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("started successfully on port ")?;
            rest.trim_end_matches('.').parse().ok()
        });
        // What it says later must not fill the pipe.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let address = (Ipv4Addr::LOCALHOST, port.expect("the driver says its port")).into();
        let profile = TempDir::new().unwrap();
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
        let arguments: Vec<&str> = arguments.into_iter().chain([profile.as_str()]).collect();
        let wishes = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let wishes = json!({ "capabilities": { "alwaysMatch": wishes } });
        let begun = browser.call("POST", "/session", &wishes);
        browser.session = format!("/session/{}", begun["sessionId"].as_str().unwrap());
        browser.resize(1280, 900);
        browser.paint("light");
        browser.go(url);
        browser
    }

    /// Goes to another address.
    pub(crate) fn go(&self, url: &str) {
        self.ask("url", &json!({ "url": url }));
    }

    /// Another size of the window, in pixels; a narrow one is a phone's.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        let is_phone = width < 600;
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone,
        });
        self.command("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Whether people prefer "light" or "dark".
    pub(crate) fn paint(&self, scheme: &str) {
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.command("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// What a piece of script returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.ask("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until a piece of script returns this.
    pub(crate) fn until(&self, script: &str, wanted: &Value) {
        let mut last = Value::Null;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("{script} is {wanted}"), || {
                last = self.run(script);
                (last == *wanted).then_some(())
            });
        }));
        if let Err(panic) = found {
            eprintln!("it is {last}\n{}", self.run("return document.body.innerText"));
            std::panic::resume_unwind(panic);
        }
    }

    /// The text that is seen of the first element that a selector finds.
    pub(crate) fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({selector:?}).innerText");
        self.run(&script).as_str().unwrap().to_owned()
    }

    /// Waits until an element's text has all these words in it.
    pub(crate) fn until_text(&self, selector: &str, words: &[&str]) {
        let words = json!(words);
        let has_all = format!(
            "const text = document.querySelector({selector:?})?.innerText ?? '';
             const missing = {words}.filter((word) => !text.includes(word));
             return missing.length ? `${{missing}} is not in: ${{text}}` : '';"
        );
        self.until(&has_all, &json!(""));
    }

    /// Clicks the first element that a selector finds.
    pub(crate) fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.ask(&format!("element/{element}/click"), &json!({}));
    }

    /// Types a text into an element.
    pub(crate) fn write(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.ask(&format!("element/{element}/clear"), &json!({}));
        self.ask(&format!("element/{element}/value"), &json!({ "text": text }));
    }

    fn find(&self, selector: &str) -> String {
        let wanted = json!({ "using": "css selector", "value": selector });
        let found = self.ask("element", &wanted);
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    /// What the browser complained of since the last question, as far as it is our fault.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let lines = self.ask("se/log", &json!({ "type": "browser" }));
        let lines = lines.as_array().unwrap().iter();
        lines.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Fails if the page needs scrolling sideways, or has text that is hard to read.
    pub(crate) fn assert_readable(&self) {
        let width =
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(self.run(width), json!(0), "it is too wide");
        assert_eq!(self.run(FAINT), json!([]), "too little contrast");
    }

    /// As [`Self::assert_readable`], on a desk and on a phone, light and dark; with pictures.
    pub(crate) fn assert_readable_everywhere(&self, name: &str) {
        for (place, width, height) in [("phone", 360, 740), ("desk", 1280, 900)] {
            self.resize(width, height);
            for scheme in ["dark", "light"] {
                self.paint(scheme);
                self.assert_readable();
                self.picture(&format!("{name}-{place}-{scheme}"));
            }
        }
    }

    /// Keeps a picture of what is in sight.
    pub(crate) fn picture(&self, name: &str) {
        let below_target = || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
        let folder = std::env::var_os("EMNETCHAIN_SCREENSHOTS");
        let folder = folder.map_or_else(below_target, PathBuf::from);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.png"));
        let taken = self.call("GET", &format!("{}/screenshot", self.session), &Value::Null);
        fs::write(&path, from_base64(taken.as_str().unwrap())).unwrap();
        eprintln!("picture: {}", path.display());
    }

    /// A command of the browser's own, beyond WebDriver.
    fn command(&self, name: &str, parameters: &Value) {
        self.ask("goog/cdp/execute", &json!({ "cmd": name, "params": parameters }));
    }

    fn ask(&self, what: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}/{what}", self.session), body)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request(self.address, method, path, &body);
        let answer = exchange(self.address, &request);
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let (status, mut answer) = answer;
        assert!(status.starts_with("HTTP/1.1 200 "), "{method} {path}: {answer}");
        answer["value"].take()
    }
}

fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Sends a request, and reads the status line and the body of its answer. The driver keeps the
/// connection open, for every request.
fn exchange(address: SocketAddr, request: &str) -> io::Result<(String, Value)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (mut status, mut length) = (String::new(), 0);
    reader.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().expect("a length");
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, serde_json::from_slice(&body)?))
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser is the driver's child, and ends with its session.
        let end = request(self.address, "DELETE", &self.session, "");
        let ended = (!self.session.is_empty()).then(|| exchange(self.address, &end));
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let is_left = matches!(ended, Some(Err(_)));
        assert!(!is_left || thread::panicking(), "a browser is left over: {ended:?}");
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for letters in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = letters.iter().fold(0u32, |bits, letter| bits << 6 | u32::from(digit(*letter)));
        let bits = bits << (6 * (4 - letters.len()) + 8);
        bytes.extend(&bits.to_be_bytes()[..letters.len() - 1]);
    }
    bytes
}
