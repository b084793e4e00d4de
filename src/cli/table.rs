//! Columns of text for a terminal.

use std::fmt::Write as _;

/// Rows below a head, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let rows: Vec<[String; N]> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column).unwrap_or(0);
            format!("{cell:width$}")
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A cell that may be empty.
pub(super) trait OrDash {
    /// Returns its text, or a dash.
    fn or_dash(self) -> String;
}

impl<T: ToString> OrDash for Option<T> {
    fn or_dash(self) -> String {
        self.map_or_else(|| "-".to_owned(), |it| it.to_string())
    }
}
