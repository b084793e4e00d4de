//! `proto-docs/simulation.md` names every planted mistake, the promise that finds it, and where it
//! is looked for.

use crate::planted::TABLE;

#[test]
fn the_page_names_every_planted_mistake() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/proto-docs/simulation.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let named: Vec<[String; 3]> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            [cells[1].trim_matches('`'), cells[3], cells[4]].map(str::to_owned)
        })
        .collect();
    let planted: Vec<[String; 3]> = TABLE
        .iter()
        .map(|(planted, search, promise)| {
            [format!("{planted:?}"), promise.trim().to_owned(), search.to_string()]
        })
        .collect();
    assert_eq!(named, planted);
}
