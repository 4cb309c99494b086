//! How much room text takes on a terminal, where a character may have no cell, one or two.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// The cells that it takes. What is escaped has no control characters.
pub fn width(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    text.width()
}

/// Cut where its room ends, and marked so.
pub fn cut(text: &str, room: usize) -> Cow<'_, str> {
    if width(text) <= room {
        return Cow::Borrowed(text);
    }
    let mut left = room.saturating_sub(1);
    let fits = |character: &char| {
        let cells = character.width().unwrap_or(0);
        let fits = cells <= left;
        left = left.saturating_sub(cells);
        fits
    };
    let mut kept: String = text.chars().take_while(fits).collect();
    kept.push('+');
    kept.into()
}

/// With spaces behind it, up to so many cells.
pub fn pad(text: &str, cells: usize) -> String {
    format!("{text}{:1$}", "", cells.saturating_sub(width(text)))
}

#[cfg(test)]
mod tests {
    use super::{cut, pad, width};

    #[test]
    fn wide_characters_take_two_cells() {
        assert_eq!(width("名前"), 4);
        assert_eq!(width("e\u{301}"), 1);
        assert_eq!(cut("名前", 4), "名前");
        assert_eq!(cut("名前です", 5), "名前+");
        assert_eq!(cut("名前です", 6), "名前+");
        assert_eq!(cut("name", 3), "na+");
        assert_eq!(pad("名前", 6), "名前  ");
        assert_eq!(pad("name", 3), "name");
    }
}
