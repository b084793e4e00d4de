//! The facts of a request that show where it comes from.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, Uri, header},
};

use super::{AdminToken, Caller};

/// The cookie with the token.
const COOKIE: &str = "emnetchain-token";

/// The token, as a request carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Missing,
    /// In a header, and it is another one.
    Wrong,
    /// In a cookie, and it is another one. It counts as none: it may be of yesterday.
    Stale,
    InCookie,
    InHeader,
}

/// The facts that decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// It comes from a loopback address.
    pub(super) is_local: bool,
    /// A proxy says that it is another's request.
    pub(super) is_forwarded: bool,
    /// It is for this machine by a loopback name or address.
    pub(super) names_us: bool,
    pub(super) token: Token,
    /// A browser sends it for a page of another site.
    pub(super) is_cross_site: bool,
    /// A person follows a link with it.
    pub(super) is_followed_link: bool,
}

impl Facts {
    pub(super) fn of(request: &Request, token: &AdminToken) -> Self {
        let headers = request.headers();
        let caller = request.extensions().get::<Caller>();
        Self {
            is_local: caller.is_some_and(|caller| caller.0.to_canonical().is_loopback()),
            is_forwarded: headers.keys().any(is_of_a_proxy),
            names_us: names_us(request.uri(), headers),
            token: carried(headers, token),
            is_cross_site: is_cross_site(headers),
            is_followed_link: is(headers, "sec-fetch-mode", "navigate")
                && is(headers, "sec-fetch-dest", "document"),
        }
    }
}

fn is(headers: &HeaderMap, name: &str, value: &str) -> bool {
    headers.get(name).is_some_and(|it| it.as_bytes() == value.as_bytes())
}

/// RFC 7239, RFC 9110 section 7.6.3, and what proxies send by custom.
fn is_of_a_proxy(name: &HeaderName) -> bool {
    const NAMES: [&str; 7] = [
        "cf-connecting-ip",
        "forwarded",
        "true-client-ip",
        "via",
        "x-client-ip",
        "x-forwarded",
        "x-real-ip",
    ];
    NAMES.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-")
}

/// The headers in which proxies name the address for which they ask.
const NAMING: [&str; 6] = [
    "cf-connecting-ip",
    "forwarded",
    "true-client-ip",
    "x-client-ip",
    "x-forwarded-for",
    "x-real-ip",
];

/// Returns the addresses for which the last proxy may ask: what each header names last. A client
/// can write these headers too. What it wrote stands before what the proxy appends, or in a header
/// that the proxy leaves alone, and which one that is cannot be told from here.
pub(super) fn forwarded_for(headers: &HeaderMap) -> Vec<IpAddr> {
    NAMING.iter().filter_map(|name| named_last(headers, name)).collect()
}

fn named_last(headers: &HeaderMap, name: &str) -> Option<IpAddr> {
    let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    let last = line.rsplit(',').next()?;
    let said = match name {
        // RFC 7239 section 4: `for=192.0.2.7;proto=https`, and quotes around what has colons.
        "forwarded" => last.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim().eq_ignore_ascii_case("for").then_some(value)
        })?,
        _ => last,
    };
    let said = said.trim().trim_matches('"');
    let bare = said.trim_matches(['[', ']']);
    bare.parse().ok().or_else(|| said.parse().ok().map(|socket: SocketAddr| socket.ip()))
}

/// Tells whether each name that the request gives its receiver is a loopback one; it gives one at
/// the least. A target with a host of its own overrules the header (RFC 9112 section 3.2.2), and a
/// server in between may have gone by either.
fn names_us(uri: &Uri, headers: &HeaderMap) -> bool {
    let target = uri.authority().map(|authority| Some(authority.as_str()));
    let hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().ok());
    let mut names = target.into_iter().chain(hosts).peekable();
    names.peek().is_some() && names.all(|name| name.is_some_and(is_loopback_name))
}

fn is_loopback_name(authority: &str) -> bool {
    // The brackets of an IPv6 address have colons between them, which are of no port.
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        Some(_) | None => authority,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse().ok().map(IpAddr::V6),
        None => name.parse().ok().map(IpAddr::V4),
    };
    match address {
        Some(address) => address.to_canonical().is_loopback(),
        None => name.eq_ignore_ascii_case("localhost"),
    }
}

/// Tells whether a browser sends this for a page of another origin. Newer browsers say so
/// (`Sec-Fetch-Site`, which no page can set); older ones name the page's origin, and it is ours if
/// it is the host that they ask.
fn is_cross_site(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    origin.map(|(_, authority)| authority) != host || host.is_none()
}

fn carried(headers: &HeaderMap, token: &AdminToken) -> Token {
    let credentials = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some((scheme, given)) = credentials.and_then(|value| value.split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return if token.is(given.trim_start()) { Token::InHeader } else { Token::Wrong };
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut cookies = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| {
        let (name, value) = cookie.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    });
    // One request is one guess, however many cookies it has.
    let Some(cookie) = cookies.next_back() else { return Token::Missing };
    let expected = token.0.as_deref().map(|token| AdminToken(Some(escaped(token).into())));
    let is_right = expected.is_some_and(|expected| expected.is(cookie));
    if is_right { Token::InCookie } else { Token::Stale }
}

/// Returns the cookie that a browser is to keep until it is closed. It has no path of its own: so
/// it goes with the path that a proxy has the page below.
pub(in crate::ops::http) fn cookie(token: &str, headers: &HeaderMap) -> String {
    let secure = if is(headers, "x-forwarded-proto", "https") { "; Secure" } else { "" };
    format!("{COOKIE}={}; HttpOnly; SameSite=Strict{secure}", escaped(token))
}

/// Returns a token with nothing in it that ends the value of a cookie (RFC 6265 section 4.1.1).
pub(super) fn escaped(token: &str) -> String {
    let escape = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '~' | '+' | '/' | '=' => {
            c.to_string()
        }
        c => format!("%{:02X}", u32::from(c)),
    };
    token.chars().map(escape).collect()
}
