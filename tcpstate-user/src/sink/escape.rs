//! Names from strangers (processes, cgroups) made harmless: nothing in them can move a cursor, end a line, turn the
//! direction of writing, or pass for a column of its own.

use std::{borrow::Cow, ffi::OsStr, fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path};

/// Characters that a terminal or a reader may act upon instead of showing them.
#[must_use]
pub fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// Text for a terminal or a CSV cell: hostile characters become `\u{1b}`. A backslash that would make one of what is none becomes
/// `\u{5c}`; others stay, since systemd's names have many (`\x2d`).
#[must_use]
pub fn text(name: &str) -> Cow<'_, str> {
    escape(name, is_hostile, true)
}

/// What is left of hostile characters in a sentence, whose names have been escaped.
#[must_use]
pub fn sentence(text: &str) -> Cow<'_, str> {
    escape(text, is_hostile, false)
}

/// The same for a message, which may have lines and tabs of its own.
#[must_use]
pub fn message(text: &str) -> Cow<'_, str> {
    let hostile = |character| is_hostile(character) && !matches!(character, '\n' | '\t');
    escape(text, hostile, false)
}

/// The name of a file, which may have been picked by somebody else (`tcpstate info *`).
#[must_use]
pub fn path(path: &Path) -> String {
    text(&path.to_string_lossy()).into_owned()
}

/// The same for a column that others follow: white space is escaped too.
#[must_use]
pub fn word(name: &str) -> Cow<'_, str> {
    let hostile = |character| is_hostile(character) || char::is_whitespace(character);
    escape(name, hostile, true)
}

/// A word of a command that a shell reads as exactly that; hostile bytes, and those that are no text, as bash, zsh and others have
/// them (`$'\033'`).
#[must_use]
pub fn shell(word: &OsStr) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./,:=@%+".contains(byte);
    let bytes = word.as_bytes();
    match word.to_str() {
        Some(text) if !bytes.is_empty() && bytes.iter().all(plain) => text.to_owned(),
        Some(text) if !text.contains(is_hostile) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let mut quoted = String::from("$'");
            for byte in bytes {
                match byte {
                    b' '..=b'~' if !matches!(byte, b'\'' | b'\\') => quoted.push(char::from(*byte)),
                    // Writing to a string does not fail.
                    _ => drop(write!(quoted, "\\{byte:03o}")),
                }
            }
            quoted.push('\'');
            quoted
        }
    }
}

/// Spells out what is hostile; `exactly` so that what is read back is what was there.
fn escape(name: &str, hostile: impl Fn(char) -> bool, exactly: bool) -> Cow<'_, str> {
    const ESCAPE: &str = "\\u{";
    // As nearly all are.
    if name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    {
        return Cow::Borrowed(name);
    }
    let plain = !(name.contains(&hostile) || exactly && name.contains(ESCAPE));
    if plain {
        return Cow::Borrowed(name);
    }
    let mut escaped = String::with_capacity(name.len() + 16);
    for (at, character) in name.char_indices() {
        if hostile(character) || exactly && name[at..].starts_with(ESCAPE) {
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
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path, process::Command};

    use super::{is_hostile, message, path, sentence, shell, text, word};

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
        assert_eq!(text("a\\x2db\\n"), "a\\x2db\\n");
        assert_eq!(text("\\u{1b}"), "\\u{5c}u{1b}");
        assert_eq!(text("\\\u{1b}"), "\\\\u{1b}");
        // What was escaped is not escaped again.
        let again = text("\u{1b}").into_owned();
        assert_eq!(message(&again), again);
        assert_eq!(sentence(&again), again);
    }

    #[test]
    fn a_shell_reads_what_was_meant() {
        let words: [&[u8]; 8] = [
            b"incident.tcps",
            b"",
            b"two words",
            b"it's; rm -rf $HOME `x` !\\",
            "naïve 名".as_bytes(),
            b"a\x1b[2J\n'\\7",
            "\u{202e}evil".as_bytes(),
            b"no text: \xff",
        ];
        for bytes in words {
            let quoted = shell(OsStr::from_bytes(bytes));
            assert!(!quoted.contains(is_hostile), "{quoted}");
            let script = format!("printf %s. {quoted}");
            let Ok(read) = Command::new("bash").args(["-c", &script]).output() else {
                // No bash here.
                continue;
            };
            assert_eq!(read.stdout, [bytes, b"."].concat(), "{quoted}");
        }
        assert_eq!(shell(OsStr::new("./a-1.tcps")), "./a-1.tcps");
        assert_eq!(shell(OsStr::new("\x1b'")), r"$'\033\047'");
    }

    /// What `\u{...}` stands for.
    fn read(text: &str) -> String {
        let mut parts = text.split("\\u{");
        let mut read = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (code, rest) = part.split_once('}').unwrap_or_default();
            read.extend(u32::from_str_radix(code, 16).ok().and_then(char::from_u32));
            read.push_str(rest);
        }
        read
    }

    #[test]
    fn no_two_names_look_the_same() {
        const PIECES: [&str; 8] = ["\\", "u", "{", "1b", "5c", "}", "\u{1b}", "\u{202e}"];
        for number in 0..8_usize.pow(6) {
            let piece = |place| PIECES[number / 8_usize.pow(place) % 8];
            let name: String = (0..6).map(piece).collect();
            assert_eq!(read(&text(&name)), name);
            assert_eq!(read(&word(&name)), name);
        }
    }
}
