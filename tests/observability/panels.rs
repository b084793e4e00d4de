//! The dashboards: every panel, and its queries as Grafana would ask them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{assert_metrics_exist, read};

/// The dashboards of `deploy/grafana/dashboards/`.
pub(crate) const DASHBOARDS: [&str; 4] = ["chains", "instance", "overview", "raft"];

/// One query of a panel.
#[derive(Debug)]
pub(crate) struct Query {
    /// Dashboard and title of the panel.
    pub(crate) place: String,
    /// PromQL, with Grafana's variables.
    pub(crate) text: String,
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(&format!("grafana/dashboards/{name}.json"))).unwrap()
}

/// Every query of a dashboard.
pub(crate) fn queries(name: &str) -> Vec<Query> {
    let dashboard = dashboard(name);
    let panels = dashboard["panels"].as_array().unwrap();
    let of_panel = |panel: &Value| {
        let place = format!("{name}: {}", panel["title"].as_str().unwrap());
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let text = |target: &Value| target["expr"].as_str().unwrap().to_owned();
        targets.iter().map(|it| Query { place: place.clone(), text: text(it) }).collect::<Vec<_>>()
    };
    panels.iter().flat_map(of_panel).collect()
}

#[test]
fn dashboards_are_alike_and_name_metrics_that_exist() {
    let mut uids = BTreeSet::new();
    for name in DASHBOARDS {
        let page = dashboard(name);
        assert_eq!(page["uid"], format!("emnetchain-{name}"));
        assert!(uids.insert(page["uid"].to_string()));
        assert_eq!(page["schemaVersion"], 41, "{name}");
        let variables = page["templating"]["list"].as_array().unwrap();
        let names: Vec<_> = variables.iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names[..2], ["datasource", "job"], "{name}");
        for Query { place, text } in queries(name) {
            assert!(text.contains(r#"job="$job""#), "{place} mixes clusters: {text}");
            assert_metrics_exist(&text, &place);
            for variable in text.split('$').skip(1) {
                let end = variable.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap();
                let variable = &variable[..end];
                assert!(variable == "__rate_interval" || names.contains(&variable), "{place}");
            }
        }
    }
}

/// What is counted is shown, or warned of.
#[test]
fn every_metric_is_on_a_dashboard_or_in_an_alert() {
    let shown = DASHBOARDS.iter().flat_map(|name| queries(name)).map(|query| query.text);
    let text = shown.collect::<Vec<_>>().join("\n") + &read("prometheus/rules.yml");
    for metric in emnetchain::metrics::Metrics::TABLE {
        assert!(text.contains(metric.name), "no panel shows {}", metric.name);
    }
}

#[test]
fn panels_have_a_place_of_their_own_and_say_what_they_show() {
    for name in DASHBOARDS {
        let mut taken = BTreeSet::new();
        for panel in dashboard(name)["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{name}: {title} is too far right");
            for (x, y) in (at("x")..at("x") + at("w"))
                .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
            {
                assert!(taken.insert((x, y)), "{name}: {title} covers another panel");
            }
            if panel["type"] != "row" {
                assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
                let says = panel["description"].as_str().unwrap_or_default();
                assert!(says.ends_with('.'), "{name}: {title} does not say what it shows");
            }
        }
    }
}
