//! Tables for people: columns without lines, as wide as their content needs and no wider than the terminal or 100 columns.
//! Where that is too narrow, cells are wrapped.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// How wide a table is at most, also where there is no terminal.
pub const MAX_WIDTH: u16 = 100;

/// Less than this is not used even on a terminal that is narrower.
const MIN_WIDTH: u16 = 30;

/// How wide tables on standard output are.
pub fn width() -> u16 {
    let terminal = terminal_size::terminal_size_of(std::io::stdout());
    terminal.map_or(MAX_WIDTH, |(width, _)| width.0.clamp(MIN_WIDTH, MAX_WIDTH))
}

/// A table for standard output. A heading that begins with a blank has numbers below it, which are aligned to the right.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    table_of_width(width(), head, rows)
}

fn table_of_width<const N: usize>(width: u16, head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.set_header(head.map(str::trim_start)).add_rows(rows);
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if n + 1 < N { 2 } else { 0 }));
        if head.get(n).is_some_and(|name| name.starts_with(' ')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// Text in lines that are no wider than standard output.
pub fn wrapped(text: &str) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width()).add_row([text]);
    table.column_iter_mut().for_each(|column| _ = column.set_padding((0, 0)));
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["a", "1"], ["bcd", "10"]].map(|row| row.map(str::to_owned));
        assert_eq!(table_of_width(100, ["NAME", " N"], rows), "NAME   N\na      1\nbcd   10\n");
        assert_eq!(table_of_width(100, ["NAME", " N"], []), "NAME  N\n");
    }

    #[test]
    fn a_table_fits_whatever_is_in_it() {
        let long = "a".repeat(63);
        let rows = || [[format!("{long}/{long}"), format!("{long}.{long} {long}"), "10 %".to_owned()]];
        for width in [MIN_WIDTH, 80, MAX_WIDTH] {
            let text = table_of_width(width, ["ROUTE", "DESTINATION", " WANTED"], rows());
            assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{text}");
            let letters = text.lines().skip(1).flat_map(str::chars).filter(|letter| *letter == 'a').count();
            assert_eq!(letters, 5 * long.len(), "{text}");
        }
    }
}
