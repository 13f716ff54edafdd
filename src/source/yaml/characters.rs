//! The characters of a text for the parser, with kubectl's rule for where plain scalars end.
//!
//! In YAML 1.2 a colon before a comma or bracket ends a plain scalar within `[]` or `{}`. In kubectl's parser only a
//! colon before a blank does, as everywhere else. Source: go-yaml, `yaml_parser_scan_plain_scalar`.

use granit_parser::input::{is_blank_or_breakz, is_flow};
use granit_parser::{BorrowedInput, Input, StrInput};

/// A text, and how far it is read.
pub(super) struct Characters<'a> {
    text: &'a str,
    read: StrInput<'a>,
}

impl<'a> Characters<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, read: StrInput::new(text) }
    }

    /// The next part of a plain scalar, up to a blank or the scalar's end.
    fn plain(&self, in_flow: bool) -> &'a str {
        let rest =
            self.read.byte_offset().and_then(|start| self.text.get(start..)).unwrap_or_default();
        let mut characters = rest.char_indices().peekable();
        while let Some((at, character)) = characters.next() {
            let next = characters.peek().map(|(_, next)| *next);
            if is_blank_or_breakz(character) || ends_plain(character, next, in_flow) {
                return rest.get(..at).unwrap_or_default();
            }
        }
        rest
    }
}

/// Whether a character ends a plain scalar, given the character after it.
fn ends_plain(character: char, next: Option<char>, in_flow: bool) -> bool {
    match character {
        ':' => next.is_none_or(is_blank_or_breakz),
        character => in_flow && is_flow(character),
    }
}

impl Input for Characters<'_> {
    fn next_can_be_plain_scalar(&self, in_flow: bool) -> bool {
        // The end of the text reads as a zero, which counts as a blank.
        !ends_plain(self.peek(), Some(self.peek_nth(1)), in_flow)
    }

    fn fetch_plain_scalar_chunk(
        &mut self,
        out: &mut String,
        count: usize,
        in_flow: bool,
    ) -> (bool, usize) {
        out.push_str(self.plain(in_flow));
        self.skip_plain_scalar_chunk(count, in_flow)
    }

    fn skip_plain_scalar_chunk(&mut self, _count: usize, in_flow: bool) -> (bool, usize) {
        let count = self.plain(in_flow).chars().count();
        self.read.skip_n(count);
        (true, count)
    }

    // The rest is the text's own.

    fn lookahead(&mut self, count: usize) {
        self.read.lookahead(count);
    }

    fn buflen(&self) -> usize {
        self.read.buflen()
    }

    fn bufmaxlen(&self) -> usize {
        self.read.bufmaxlen()
    }

    fn raw_read_ch(&mut self) -> char {
        self.read.raw_read_ch()
    }

    fn raw_read_non_breakz_ch(&mut self) -> Option<char> {
        self.read.raw_read_non_breakz_ch()
    }

    fn skip(&mut self) {
        self.read.skip();
    }

    fn skip_n(&mut self, count: usize) {
        self.read.skip_n(count);
    }

    fn peek(&self) -> char {
        self.read.peek()
    }

    fn peek_nth(&self, n: usize) -> char {
        self.read.peek_nth(n)
    }

    fn byte_offset(&self) -> Option<usize> {
        self.read.byte_offset()
    }

    fn slice_bytes(&self, start: usize, end: usize) -> Option<&str> {
        self.read.slice_bytes(start, end)
    }

    fn skip_while_non_breakz(&mut self) -> usize {
        self.read.skip_while_non_breakz()
    }

    fn fetch_block_scalar_line(&mut self, out: &mut String) -> usize {
        self.read.fetch_block_scalar_line(out)
    }

    fn take_quoted_scalar_chunk(&mut self, single: bool) -> (&str, usize) {
        self.read.take_quoted_scalar_chunk(single)
    }
}

impl<'a> BorrowedInput<'a> for Characters<'a> {
    fn slice_borrowed(&self, start: usize, end: usize) -> Option<&'a str> {
        self.text.get(start..end)
    }
}
