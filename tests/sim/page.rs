//! `proto-docs/simulation.md` names every planted mistake and the promise that finds it.

use crate::planted::TABLE;

#[test]
fn the_page_names_every_planted_mistake() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/proto-docs/simulation.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let named: Vec<(String, String)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[3].to_owned())
        })
        .collect();
    let planted: Vec<(String, String)> = TABLE
        .iter()
        .map(|(planted, promise)| (format!("{planted:?}"), promise.trim().to_owned()))
        .collect();
    assert_eq!(named, planted);
}
