//! The table of what a request may do, and how requests are told apart.

use axum::{body::Body, http::HeaderMap};

use super::{facts::escaped, *};

fn token() -> AdminToken {
    AdminToken(Some("secret; of \"them\"".into()))
}

/// Returns a request as it comes in.
fn asked(from: &str, headers: &[(&str, &str)]) -> Request {
    let mut request = Request::builder().uri("/").extension(Caller(from.parse().unwrap()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

fn facts(headers: &[(&str, &str)]) -> Facts {
    Facts::of(&asked("127.0.0.1", headers), &token())
}

/// Every combination, and what must come of it; written down as rules that do not follow the code.
#[test]
fn the_table() {
    let kinds = [Kind::Open, Kind::View, Kind::SignIn, Kind::Change];
    let tokens = [Token::Missing, Token::Wrong, Token::InCookie, Token::InHeader];
    let mut passed = [0; 4];
    for case in 0..4 * 4 * 64 {
        let (kind, token) = (kinds[case % 4], tokens[case / 4 % 4]);
        let bit = |n: usize| case >> (4 + n) & 1 == 1;
        let [is_local, is_forwarded, names_us, is_cross_site, is_followed_link, has_token] =
            std::array::from_fn(bit);
        if !has_token && matches!(token, Token::InCookie | Token::InHeader) {
            continue; // there is no token to show
        }
        let facts =
            Facts { is_local, is_forwarded, names_us, token, is_cross_site, is_followed_link };
        let is_direct = is_local && !is_forwarded && names_us && token != Token::Wrong;
        let in_header = token == Token::InHeader;
        let shows_token = in_header || token == Token::InCookie;
        let expected = match kind {
            Kind::Open => true,
            Kind::SignIn => !is_cross_site,
            Kind::View => (!is_cross_site || is_followed_link) && (is_direct || shows_token),
            Kind::Change if has_token => !is_cross_site && in_header,
            Kind::Change => !is_cross_site && is_direct,
        };
        let decided = decide(kind, facts, has_token);
        assert_eq!(decided.is_ok(), expected, "{kind:?} {facts:?} {has_token}: {decided:?}");
        if decided.is_ok_and(|reader| reader.sees_ids) {
            assert!(shows_token, "{kind:?} {facts:?} {has_token}");
        }
        if let Err(refusal) = decided {
            for asker in [Asker::Command, Asker::Program] {
                let says = refusal.sentence(has_token, asker);
                let is_way_out = ["--admin-token-file", "open the status page"];
                assert!(is_way_out.iter().any(|way| says.contains(way)), "{says}");
                let is_of_http = ["Authorization", "Bearer", "sign in"];
                let is_of_http = is_of_http.iter().any(|word| says.contains(word));
                assert!(
                    asker == Asker::Program || !is_of_http,
                    "a command sends no header: {says}"
                );
            }
        }
        passed[case % 4] += usize::from(expected);
    }
    // Of 192 cases each: 32 by each of four tokens, and 32 by the two that there are without one.
    assert_eq!(passed, [192, 3 + 3 + 24 + 24, 96, 2 + 16]);
}

#[test]
fn each_route_has_its_kind() {
    let kind = |method: Method, route| Kind::of(&method, route, Open::default());
    for route in ["/livez", "/readyz", "/metrics", "/page/style.css"] {
        assert_eq!(kind(Method::GET, route), Kind::Open, "{route}");
        assert_eq!(kind(Method::POST, route), Kind::Change, "{route}");
    }
    for route in ["/", "/status", "/api/v1/chain", "/api/v1/chains", "/api/v1/explain", ""] {
        assert_eq!(kind(Method::GET, route), Kind::View, "{route}");
        assert_eq!(kind(Method::HEAD, route), Kind::View, "{route}");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            assert_eq!(kind(method, route), Kind::Change, "{route}");
        }
    }
    for method in [Method::GET, Method::HEAD, Method::POST] {
        assert_eq!(kind(method, "/api/v1/backup"), Kind::Change);
    }
    assert_eq!(kind(Method::POST, "/api/v1/cluster/drain"), Kind::Change);
    assert_eq!(kind(Method::POST, "/sign-in"), Kind::SignIn);
}

#[test]
fn what_is_open_is_a_setting() {
    let kind = |open: &str, route| Kind::of(&Method::GET, route, Open::parse(open).unwrap());
    assert_eq!(Open::parse("livez, readyz,metrics"), Ok(Open::default()));
    assert_eq!(kind("none", "/livez"), Kind::View);
    assert_eq!(kind("livez", "/metrics"), Kind::View);
    assert_eq!(kind("livez", "/livez"), Kind::Open);
    assert_eq!(kind("views", "/api/v1/explain"), Kind::Open);
    assert_eq!(kind("views", "/"), Kind::Open);
    assert_eq!(kind("views", "/api/v1/backup"), Kind::Change);
    for wrong in ["", "all", "livez,", "none,livez"] {
        assert!(Open::parse(wrong).unwrap_err().contains("livez, readyz"), "{wrong}");
    }
}

#[test]
fn this_machine_has_loopback_names_only() {
    let ours = ["127.0.0.1:9180", "127.0.0.1", "127.8.9.1:1", "[::1]:9180", "[::1]", "LocalHost:1"];
    for host in ours {
        assert!(facts(&[("host", host)]).names_us, "{host}");
    }
    let others = [
        "203.0.113.9",
        "10.0.0.1:9180",
        "[2001:db8::1]:9180",
        "[::]:9180",
        "0.0.0.0:9180",
        "evil.example:9180",
        "localhost.evil.example",
        "127.0.0.1.evil",
        "evil@127.0.0.1",
        "::1",
        "[::1",
        "127.0.0.1:80:evil",
        "",
    ];
    for host in others {
        assert!(!facts(&[("host", host)]).names_us, "{host}");
    }
    assert!(!facts(&[]).names_us, "no name at all");
    assert!(!facts(&[("host", "localhost"), ("host", "evil.example")]).names_us, "two names");
    let mut request = asked("127.0.0.1", &[("host", "localhost")]);
    *request.uri_mut() = "http://evil.example/".parse().unwrap();
    assert!(!Facts::of(&request, &token()).names_us, "the target's name overrules the header");
}

#[test]
fn what_came_through_a_proxy_says_so() {
    let general = ["Forwarded", "Via", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-Anything"];
    let of_products = ["X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP"];
    for name in general.into_iter().chain(of_products) {
        assert!(facts(&[(name, "x")]).is_forwarded, "{name}");
    }
    assert!(!facts(&[("host", "localhost"), ("x-request-id", "7")]).is_forwarded);
    for (from, is_local) in
        [("127.0.0.1", true), ("::1", true), ("::ffff:127.0.0.2", true), ("10.0.0.1", false)]
    {
        assert_eq!(Facts::of(&asked(from, &[]), &token()).is_local, is_local, "{from}");
    }
}

/// The last proxy is the operators' own: what it appends is true, and what came before is not.
#[test]
fn a_proxy_says_for_which_address_it_asks() {
    let said = |headers: &[(&str, &str)]| forwarded_for(asked("127.0.0.1", headers).headers());
    let one: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap()];
    for headers in [
        &[("x-forwarded-for", "192.0.2.7")][..],
        &[("x-forwarded-for", "198.51.100.1, 192.0.2.7")],
        &[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "192.0.2.7:4711")],
        &[("x-client-ip", "192.0.2.7")],
        &[("x-real-ip", "192.0.2.7")],
        &[("forwarded", "for=198.51.100.1;proto=http, proto=https;For=\"192.0.2.7:80\"")],
    ] {
        assert_eq!(said(headers), one, "{headers:?}");
    }
    let v6 = said(&[("forwarded", "for=\"[2001:db8::1]:80\"")]);
    assert_eq!(v6, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
    let pair = [("x-real-ip", "192.0.2.7"), ("x-forwarded-for", "198.51.100.1")];
    for both in [pair, [pair[1], pair[0]]] {
        assert_eq!(said(&both).len(), 2, "either may be the client's own words");
    }
    for none in [("via", "1.1 x"), ("x-forwarded-for", "unknown"), ("forwarded", "for=_hidden")] {
        assert!(said(&[none]).is_empty(), "{none:?}");
    }
}

#[test]
fn browsers_say_for_which_page_they_ask() {
    let host = ("host", "ops.example:8443");
    for (other, is_cross_site) in [
        (("origin", "http://evil.example"), true),
        (("origin", "null"), true),
        (("origin", "https://ops.example"), true),
        (("origin", "https://ops.example:8443"), false),
        (("sec-fetch-site", "cross-site"), true),
        (("sec-fetch-site", "same-site"), true),
        (("sec-fetch-site", "same-origin"), false),
        (("sec-fetch-site", "none"), false),
    ] {
        assert_eq!(facts(&[host, other]).is_cross_site, is_cross_site, "{other:?}");
    }
    assert!(facts(&[("origin", "http://evil.example")]).is_cross_site, "no host to compare with");
    assert!(!facts(&[host]).is_cross_site, "no browser");
    let link = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    assert!(facts(&link).is_followed_link);
    assert!(!facts(&[link[0], ("sec-fetch-dest", "iframe")]).is_followed_link);
}

#[test]
fn the_token_comes_in_a_header_or_a_cookie() {
    let all = token();
    let secret = all.0.as_deref().unwrap();
    let shown = |name: &str, value: &str| facts(&[(name, value)]).token;
    assert_eq!(shown("authorization", &format!("Bearer {secret}")), Token::InHeader);
    for wrong in [&secret[1..], &secret[..3], "", &format!("{secret}s")] {
        assert_eq!(shown("authorization", &format!("Bearer {wrong}")), Token::Wrong, "{wrong}");
    }
    assert_eq!(shown("authorization", secret), Token::Missing, "it is of another scheme");
    let given = cookie(secret, &HeaderMap::new());
    let (given, attributes) = given.split_once("; ").unwrap();
    assert_eq!(attributes, "HttpOnly; SameSite=Strict");
    assert_eq!(shown("cookie", &format!("a=b; {given}; c=d")), Token::InCookie);
    assert_eq!(shown("cookie", &given[..given.len() - 1]), Token::Stale);
    assert_eq!(shown("cookie", &format!("other={}", escaped(secret))), Token::Missing);
    let none = Facts::of(&asked("::1", &[("authorization", "Bearer ")]), &AdminToken(None));
    assert_eq!(none.token, Token::Wrong, "nothing is no token");
    let secure =
        HeaderMap::from_iter([("x-forwarded-proto".parse().unwrap(), "https".parse().unwrap())]);
    assert!(cookie("x", &secure).ends_with("; Secure"));
    assert!(!format!("{all:?}").contains("secret"));
}
