//! The alert rules: what they name exists, and each of them is tested.

use super::{assert_metrics_exist, read};

/// The values of all lines `key: value` in a YAML page.
fn values<'a>(page: &'a str, key: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.trim_start_matches([' ', '-']).strip_prefix(key);
    page.lines().filter_map(value).map(|value| value.trim_matches([':', ' ', '"'])).collect()
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_alert_leads_to_a_page_of_the_runbook_and_is_tested() {
    let (rules, tests, runbook) =
        (read("prometheus/rules.yml"), read("prometheus/tests.yml"), read("RUNBOOK.md"));
    assert_metrics_exist(&rules, "rules.yml");
    assert_metrics_exist(&tests, "tests.yml");
    let alerts = values(&rules, "alert:");
    let pages = values(&rules, "runbook_url:");
    assert!(alerts.len() >= 10 && alerts.len() == pages.len(), "{alerts:?}");
    let headings: Vec<String> =
        runbook.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    for page in pages {
        let heading = page.strip_prefix("deploy/RUNBOOK.md#").expect("a page of the runbook");
        assert!(headings.iter().any(|known| known == heading), "no heading for {page}");
    }
    let tested = values(&tests, "alertname:");
    for alert in alerts {
        assert!(tested.contains(&alert), "{alert} has no test in tests.yml");
    }
}

#[test]
fn links_within_the_runbook_lead_somewhere() {
    let runbook = read("RUNBOOK.md");
    let headings: Vec<String> =
        runbook.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    for link in runbook.split("](#").skip(1) {
        let heading = link.split(')').next().unwrap();
        assert!(headings.iter().any(|known| known == heading), "no heading for #{heading}");
    }
}
