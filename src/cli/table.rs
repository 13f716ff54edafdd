//! Tables for people: columns without lines, as wide as their content and at most as wide as the terminal, or 100
//! columns without one. Cells that do not fit are wrapped.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// The maximum width of a table, also without a terminal.
pub(crate) const MAX_WIDTH: u16 = 100;

/// The minimum width, even on a narrower terminal.
pub(crate) const MIN_WIDTH: u16 = 30;

/// Marks where a cell may be wrapped, see [`breakable`]. It is never printed.
pub(crate) const BREAK: char = '\u{200b}';

/// How wide tables on standard output are.
pub(crate) fn width() -> u16 {
    let terminal = terminal_size::terminal_size_of(std::io::stdout());
    terminal.map_or(MAX_WIDTH, |(width, _)| width.0.clamp(MIN_WIDTH, MAX_WIDTH))
}

/// A table for standard output. A heading that begins with a blank marks a column of numbers, aligned to the right.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    table_of_width(width(), head, rows)
}

fn table_of_width<const N: usize>(
    width: u16,
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = empty(width);
    table.set_header(head.map(str::trim_start)).add_rows(rows);
    for (column, name) in table.column_iter_mut().zip(head) {
        if name.starts_with(' ') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    print(table)
}

/// Text in lines of at most this width, broken after one of these.
pub(crate) fn wrapped(text: &str, after: &[char], width: u16) -> String {
    let mut table = empty(width);
    table.add_row([breakable(text, after)]);
    table.column_iter_mut().for_each(|column| _ = column.set_delimiter(BREAK));
    print(table)
}

/// A table without rows, for [`print`].
pub(crate) fn empty(width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table
}

/// The table as text, with two blanks between its columns.
pub(crate) fn print(mut table: Table) -> String {
    let last = table.column_count().saturating_sub(1);
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if n < last { 2 } else { 0 }));
    }
    table.trim_fmt().replace(BREAK, "") + "\n"
}

/// Text that may be wrapped after each of the characters `after`, in a column whose delimiter is [`BREAK`].
pub(crate) fn breakable(text: &str, after: &[char]) -> String {
    text.chars()
        .flat_map(|letter| [Some(letter), after.contains(&letter).then_some(BREAK)])
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_content() {
        let rows = [["a", "1"], ["bcd", "10"]].map(|row| row.map(str::to_owned));
        assert_eq!(table_of_width(100, ["NAME", " N"], rows), "NAME   N\na      1\nbcd   10\n");
        assert_eq!(table_of_width(100, ["NAME", " N"], []), "NAME  N\n");
    }

    #[test]
    fn a_table_fits_its_width_with_any_content() {
        let long = "a".repeat(63);
        let rows = [[format!("{long}/{long}"), format!("{long}.{long} {long}"), "10 %".to_owned()]];
        for width in [MIN_WIDTH, 80, MAX_WIDTH] {
            let text = table_of_width(width, ["ROUTE", "DESTINATION", " WANTED"], rows.clone());
            assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
            let letters =
                text.lines().skip(1).flat_map(str::chars).filter(|letter| *letter == 'a').count();
            assert_eq!(letters, 5 * long.len(), "{text}");
        }
    }

    #[test]
    fn lines_are_wrapped_at_the_allowed_places() {
        assert_eq!(wrapped("one two three", &[' '], 9), "one two\nthree\n");
        assert_eq!(wrapped("spec.http[0].route[0]", &['.'], 12), "spec.\nhttp[0].\nroute[0]\n");
        assert_eq!(wrapped("abcdefgh", &[' '], 3), "abc\ndef\ngh\n");
    }
}
