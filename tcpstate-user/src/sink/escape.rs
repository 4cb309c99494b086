//! Names from strangers (processes, cgroups) made harmless: nothing in them can move a cursor, end a line, turn the
//! direction of writing, or pass for a column of its own.

use std::{borrow::Cow, fmt::Write as _, path::Path};

/// Characters that a terminal or a reader may act upon instead of showing them.
#[must_use]
pub fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// Text for a terminal or a CSV cell: hostile characters become `\u{1b}`.
#[must_use]
pub fn text(name: &str) -> Cow<'_, str> {
    escape(name, is_hostile)
}

/// The same for a message, which may have lines and tabs of its own.
#[must_use]
pub fn message(text: &str) -> Cow<'_, str> {
    escape(text, |character| {
        is_hostile(character) && !matches!(character, '\n' | '\t')
    })
}

/// The name of a file, which may have been picked by somebody else (`tcpstate info *`).
#[must_use]
pub fn path(path: &Path) -> String {
    text(&path.to_string_lossy()).into_owned()
}

/// The same for a column that others follow: white space is escaped too.
#[must_use]
pub fn word(name: &str) -> Cow<'_, str> {
    escape(name, |character| {
        is_hostile(character) || character.is_whitespace()
    })
}

fn escape(name: &str, hostile: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !name.contains(&hostile) {
        return Cow::Borrowed(name);
    }
    let mut escaped = String::with_capacity(name.len() + 16);
    for character in name.chars() {
        if hostile(character) {
            // Writing to a string does not fail.
            let _ = write!(escaped, "\\u{{{:x}}}", u32::from(character));
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{message, path, text, word};

    #[test]
    fn hostile_characters_are_spelled_out() {
        assert_eq!(text("a\u{1b}[2Jb\r\nc"), "a\\u{1b}[2Jb\\u{d}\\u{a}c");
        assert_eq!(text("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(text("\u{202e}evil"), "\\u{202e}evil");
        assert_eq!(text("two words, \"three\""), "two words, \"three\"");
        assert_eq!(word("two words"), "two\\u{20}words");
        assert_eq!(text("naïve 名"), "naïve 名");
        assert_eq!(message("a\n\tb\u{1b}[31m"), "a\n\tb\\u{1b}[31m");
        assert_eq!(path(Path::new("a\n/b")), "a\\u{a}/b");
    }
}
