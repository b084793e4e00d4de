//! Finds the end of a message byte by byte, and never looks at a byte twice.
//!
//! A string begins only where a key or a value may begin; anywhere else a quote is mere text.
//! For well-formed JSON this is JSON's own rule. It also bounds what broken text can do: a
//! message that lost its end does not swallow the next one if it was cut outside a string, because
//! an opening brace where no value may begin is taken as the start of a new message.

use crate::limits::MESSAGE_DEPTH_MAX;

/// The meaning of one byte of a message for its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Behind a key of the outermost object.
    Colon,
    /// Behind a field of the outermost object.
    Comma,
    /// The brace that closes the message.
    End,
    /// A brace that opens a new message, because the one so far has lost its end.
    Restart,
    /// A bracket that opens one level more than may be. The scanner cannot follow any further.
    TooDeep,
    /// Anything else.
    Within,
}

/// Where in a message the next byte lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In a string, behind a backslash.
    Escape,
    /// Where a key or a value may begin.
    Start,
    /// In a string.
    String,
    /// In an unquoted key or value, or behind a complete one.
    Text,
}

/// The state between two bytes of a message. It stands behind the opening brace at first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scanner {
    place: Place,
    /// Whether the key of a field is still to come or to end.
    in_key: bool,
    /// One bit for each open bracket, the innermost lowest: 1 for an object, 0 for an array.
    open: u32,
    /// The number of open brackets.
    depth: usize,
}

const _: () = assert!(MESSAGE_DEPTH_MAX <= u32::BITS as usize, "each open bracket has its bit");

impl Scanner {
    /// Returns the state behind the brace that opens a message.
    pub(super) fn new() -> Self {
        Self { place: Place::Start, in_key: true, open: 1, depth: 1 }
    }

    /// Takes the next byte.
    pub(super) fn step(&mut self, byte: u8) -> Step {
        let outermost = self.depth == 1;
        match (self.place, byte) {
            (Place::Escape, _) => self.place = Place::String,
            (Place::String, b'\\') => self.place = Place::Escape,
            (Place::String, b'"') => self.place = Place::Text,
            (Place::String, _) | (Place::Start, b' ' | b'\t' | b'\n' | b'\r') => {}
            (Place::Start, b'"') => self.place = Place::String,
            (Place::Start, b'{') if !self.in_key => return self.open(true),
            (Place::Start, b'[') if !self.in_key => return self.open(false),
            (Place::Start | Place::Text, b'{') => return Step::Restart,
            (Place::Start | Place::Text, b'}') => return self.close_object(),
            (Place::Start | Place::Text, b']') if !self.in_object() => self.close(),
            (Place::Start | Place::Text, b':') if self.in_key => {
                (self.place, self.in_key) = (Place::Start, false);
                return if outermost { Step::Colon } else { Step::Within };
            }
            (Place::Start | Place::Text, b',') => {
                (self.place, self.in_key) = (Place::Start, self.in_object());
                return if outermost { Step::Comma } else { Step::Within };
            }
            (Place::Start | Place::Text, _) => self.place = Place::Text,
        }
        Step::Within
    }

    fn in_object(&self) -> bool {
        self.open & 1 == 1
    }

    fn open(&mut self, object: bool) -> Step {
        if self.depth == MESSAGE_DEPTH_MAX {
            return Step::TooDeep;
        }
        self.depth += 1;
        self.open = self.open << 1 | u32::from(object);
        (self.place, self.in_key) = (Place::Start, object);
        Step::Within
    }

    /// Closes the innermost bracket; what follows stands behind a value.
    fn close(&mut self) {
        self.depth -= 1;
        self.open >>= 1;
        (self.place, self.in_key) = (Place::Text, false);
    }

    /// Closes the innermost object, and with it the arrays that were left open inside.
    fn close_object(&mut self) -> Step {
        while !self.in_object() {
            self.close(); // ends at the latest at the outermost bracket, which is an object
        }
        self.close();
        if self.depth == 0 { Step::End } else { Step::Within }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the steps of a message behind its opening brace that mean something.
    fn steps(text: &str) -> Vec<Step> {
        let mut scanner = Scanner::new();
        let steps = text.bytes().map(|byte| scanner.step(byte));
        steps.filter(|step| *step != Step::Within).collect()
    }

    #[test]
    fn a_bracket_opens_a_value_and_no_key() {
        assert_eq!(steps(r#""a":[1,2],"b":{"c":[3,4]}}"#), {
            [Step::Colon, Step::Comma, Step::Colon, Step::End]
        });
        // Where a key is expected, it is a part of the text of one.
        assert_eq!(steps("[,a:1}"), [Step::Comma, Step::Colon, Step::End]);
        let many = "[".repeat(2 * MESSAGE_DEPTH_MAX);
        assert_eq!(steps(&format!("{many}}}")), [Step::End]);
        assert_eq!(steps(&format!("a:{many}")).last(), Some(&Step::TooDeep));
        assert_eq!(steps("{"), [Step::Restart]);
    }
}
