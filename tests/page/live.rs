//! What the page shows of a real service while its chain grows, breaks and heals, and how it finds
//! its way in a long one.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    browser::Browser,
    crowd::{chain_of, join, sockets},
    may_look,
    support::{Client, Member, Service, chain, reconnect, repaired, told},
};

/// Runs in the page: how each client that is drawn is joined with the next one.
const KINDS: &str = "return [...document.querySelectorAll('.client')].map((it) => it.dataset.kind)";

/// Runs in the page: the heads of the clients that are drawn.
const HEADS: &str = "return [...document.querySelectorAll('button.head')].map((it) => it.value)";

/// Opens the page of an instance.
pub(crate) fn look_at(service: &Service) -> Browser {
    Browser::open(&format!("http://{}/", service.address("HTTP")))
}

/// A repair id that would be a script if it were not text.
const HOSTILE: &str = "<img src=x onerror='document.title=1'><script>document.title=2</script>";

#[test]
fn privileged_a_chain_is_drawn_while_it_grows_breaks_and_heals() {
    if !may_look("privileged_a_chain_is_drawn_while_it_grows_breaks_and_heals") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "a word; that operators know").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let data = dir.path().join("data");
    let service = Service::start(&data, &["--admin-token-file", token.to_str().unwrap()]);
    // Repair ids are shown to a reader that has signed in.
    let browser = Browser::open(&format!("http://{}/sign-in", service.address("HTTP")));
    browser.write("input[name=token]", "a word; that operators know");
    browser.click("#sign-in button");
    browser.until_text("#state", &["Serving", "alone"]);
    browser.until_text("#chain", &["No chain", "Clients that connect appear here"]);
    browser.assert_readable_everywhere("empty");

    let members: Vec<Member> = (1..=5).map(Member).collect();
    let tip = chain(&service, &members[..3]);
    browser.until(HEADS, &heads(&members[..3]));
    browser.until(KINDS, &json!(["link", "link", "tip"]));
    browser.until_text(
        "#path",
        &[
            "linked for",
            "as a newcomer",
            "instance 1",
            "ago",
            "The newest: it waits for a newcomer",
        ],
    );
    browser.until_text("#begin", &["The oldest"]);
    browser.assert_readable_everywhere("three");

    // From here on nothing may be drawn again: what a hand holds stays there.
    browser.run("document.querySelector('button.head').focus(); document.body.dataset.mine = 1");
    let tip = add(&service, (members[2], tip), members[3]);
    let _tip = add(&service, (members[3], tip), members[4]);
    browser.until(HEADS, &heads(&members));

    // The third one dies. Its neighbour before it asks, and then hears no more itself.
    let mut before = Client::say(service.repair(), reconnect(HOSTILE, &members[1].head()));
    browser.until(HEADS, &heads(&members));
    browser.until(KINDS, &json!(["link", "gap", "link", "link", "tip"]));
    let gap = ".client[data-kind=gap] .join";
    let words = ["under repair", "waits for", "left", "RECONNECT through instance 1", HOSTILE];
    browser.until_text(gap, &words);
    browser.until_text(gap, &["Tail is silent"]);
    before.half_close();
    browser.until_text(gap, &["its connection is half closed"]);
    browser.until_text("#figures .warn", &["1", "gaps"]);
    browser.assert_readable_everywhere("broken");
    let injected = "return document.querySelectorAll('#path img, #path script').length";
    assert_eq!(browser.run(injected), json!(0));

    let mut after = Client::say(service.repair(), reconnect(HOSTILE, &members[3].tail()));
    assert_eq!(before.rest(), repaired(&members[3].tail()));
    assert_eq!(after.rest(), repaired(&members[1].head()));
    browser.until(HEADS, &heads(&[members[0], members[1], members[3], members[4]]));
    browser.until(KINDS, &json!(["link", "link", "link", "tip"]));
    browser.until_text("#path", &["by repair"]);
    browser.picture("healed");
    let kept = "return [document.body.dataset.mine, document.activeElement.value]";
    assert_eq!(browser.run(kept), json!(["1", members[0].head()]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// One more client for a chain.
fn add(service: &Service, (before, mut waiting): (Member, Client), member: Member) -> Client {
    let mut client = Client::say(service.chain(), member.connect());
    assert_eq!(client.object(), told("tail", &before.head()));
    assert_eq!(waiting.rest(), told("head", &member.tail()));
    client
}

fn heads(members: &[Member]) -> Value {
    members.iter().map(|member| member.head()).collect()
}

#[test]
fn privileged_a_client_is_explained_and_the_view_can_be_shared() {
    if !may_look("privileged_a_client_is_explained_and_the_view_can_be_shared") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let members: Vec<Member> = (1..=3).map(Member).collect();
    let _tip = chain(&service, &members);
    let browser = look_at(&service);
    browser.until(HEADS, &heads(&members));
    browser.click(&format!("button.head[value='{}']", members[1].head()));
    browser.until_text("#explanation", &[&members[1].head(), &members[2].tail(), "ago"]);
    browser.assert_readable_everywhere("explained");

    // A reader with the address of the page sees the same.
    let url = browser.run("return location.href");
    let second = Browser::open(url.as_str().unwrap());
    second.until_text("#explanation", &[&members[1].head()]);
    second.until(
        "return document.querySelector('.client.found .head').value",
        &json!(members[1].head()),
    );

    browser.run("history.back()");
    browser.until("return document.getElementById('explanation').hidden", &json!(true));
    browser.write("#address", "nobody");
    browser.click("#search button");
    browser.until_text("#says", &["nobody"]);
    browser.write("#address", "127.0.0.1:9");
    browser.click("#search button");
    browser.until_text("#explained", &["127.0.0.1:9"]);
    browser.click("#close");
    browser.until("return document.getElementById('explanation').hidden", &json!(true));
}

#[test]
fn privileged_a_long_chain_is_shown_in_part_and_searched() {
    if !may_look("privileged_a_long_chain_is_shown_in_part_and_searched") {
        return;
    }
    let asked = std::env::var("EMNETCHAIN_PAGE_CLIENTS");
    let count: usize = asked.map_or(5000, |count| count.parse().unwrap());
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let began = emnetchain::clock::now();
    let tip = chain_of(&service, count);
    eprintln!("{count} clients joined in {:?}", emnetchain::clock::now() - began);

    let browser = look_at(&service);
    browser.until_text("#summary", &[&format!("{} clients", with_commas(count))]);
    assert!(nodes(&browser) < 2000, "{} nodes", nodes(&browser));
    let sought = sockets(count / 2).0;
    let took = time_to_find(&browser, &sought);
    eprintln!("found among {count} after {took} ms");
    assert!(took < 1000.0, "{took} ms");
    browser.until_text("#explanation", &[&sought]);
    browser.picture("long-found");

    // The strip, the buttons and the keys lead anywhere.
    browser.click("[data-go=newest]");
    browser.until(
        "return document.querySelector('.client:last-child .head').value",
        &json!(sockets(count - 1).0),
    );
    let _tip = {
        let client = join(&service, count);
        let mut tip = tip;
        tip.rest();
        client
    };
    let newest = "return document.querySelector('.client:last-child .head').value";
    browser.until(newest, &json!(sockets(count).0));
    browser.click("[data-go=oldest]");
    browser.until_text("#begin", &["The oldest"]);
    let first = "return Number(document.querySelector('.client .serial').innerText.slice(1))";
    let oldest = browser.run(first).as_u64().unwrap();
    browser.click("[data-go=later]");
    browser.until_text("#begin", &["earlier clients"]);
    browser.click("[data-go=earlier]");
    browser.until(first, &json!(oldest));
    browser.run(
        "const strip = document.getElementById('strip'); strip.focus();
         strip.value = (Number(strip.min) + Number(strip.max)) / 2;
         strip.dispatchEvent(new Event('input', { bubbles: true }))",
    );
    browser.until_text("#begin", &["earlier clients"]);

    // Two gaps, far from each other.
    let mut waiting = Vec::new();
    for number in [count / 3, 2 * count / 3] {
        let dead = sockets(number).0;
        time_to_find(&browser, &dead);
        let neighbour = "return document.querySelector('.client.found').previousElementSibling
            .querySelector('.head').value";
        let neighbour = browser.run(neighbour).as_str().unwrap().to_owned();
        waiting.push(Client::say(service.repair(), reconnect(&dead, &neighbour)));
        browser.until_text(".client[data-kind=gap]", &[&neighbour]);
    }
    browser.click("#close");
    browser.click("[data-go=oldest]");
    browser.until_text("#begin", &["The oldest"]);
    for _ in 0..2 {
        browser.click("[data-go=gap]");
        browser.until_text(".client[data-kind=gap]", &["under repair"]);
    }
    browser.assert_readable_everywhere("long");
    assert!(nodes(&browser) < 2000, "{} nodes", nodes(&browser));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// How many elements the page has.
fn nodes(browser: &Browser) -> u64 {
    browser.run("return document.querySelectorAll('*').length").as_u64().unwrap()
}

/// Searches a socket, and returns after how many milliseconds its client is drawn and in sight.
fn time_to_find(browser: &Browser, socket: &str) -> f64 {
    browser.write("#address", socket);
    // Measured in the page itself, for to ask it takes time as well.
    browser.run(&format!(
        "const began = performance.now();
         window.took = null;
         const look = () => {{
             const box = document.querySelector('button.found')?.getBoundingClientRect();
             const isFound = document.querySelector('button.found')?.value === '{socket}';
             if (isFound && box.top >= 0 && box.bottom <= innerHeight) {{
                 window.took = performance.now() - began;
             }} else requestAnimationFrame(look);
         }};
         document.getElementById('search').requestSubmit();
         look();"
    ));
    browser.until("return window.took !== null", &json!(true));
    browser.run("return window.took").as_f64().unwrap()
}

fn with_commas(count: usize) -> String {
    match count {
        0..1000 => count.to_string(),
        _ => format!("{},{:03}", count / 1000, count % 1000),
    }
}
