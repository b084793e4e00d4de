//! The page for people: the cluster, its members and its chains, live. It is plain HTML, CSS and
//! JavaScript, made by this program alone, and asks this instance alone.
//!
//! Repair ids and chain names on it are chosen by strangers. The page sets them as text only, and
//! should that ever fail, its policy lets a browser run no script but ours and ask no one else.

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};

use super::{HttpSources, fresh};

/// What a browser may do with the page: our scripts, our styles, our answers, and nothing else; in
/// no other page's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// The page and its parts. The parts have paths below the page's own, so that all of it works below
/// any path that a proxy gives it.
pub(super) fn routes() -> Router<HttpSources> {
    Router::new()
        .route("/", get(async || part(HTML, include_str!("page/index.html"))))
        .route("/page/main.js", get(async || part(SCRIPT, include_str!("page/main.js"))))
        .route("/page/draw.js", get(async || part(SCRIPT, include_str!("page/draw.js"))))
        .route("/page/words.js", get(async || part(SCRIPT, include_str!("page/words.js"))))
        .route("/page/style.css", get(async || part(STYLE, include_str!("page/style.css"))))
}

/// No part may be kept: after an upgrade they must fit each other.
fn part(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    fresh((headers, text).into_response())
}
