//! The page for people: the cluster, its members and its chains, live. It is plain HTML, CSS and
//! JavaScript, made by this program alone, and asks this instance alone.
//!
//! A reader that needs the token is asked for it by a form, and gets a cookie for it.
//!
//! Repair ids and chain names on it are chosen by strangers. The page sets them as text only, and
//! should that ever fail, its policy lets a browser run no script but ours and ask no one else.

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;

use super::{HttpSources, fresh, gate};

/// The rights of the page in a browser: our scripts, our styles, our answers, and nothing else; in
/// no other page's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// As above, for the form, which has no script.
const FORM_POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; \
    form-action 'self'; frame-ancestors 'none'";

/// The longest form, in bytes: a token with each character escaped.
const FORM_BYTES_MAX: usize = 16 * 1024;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Returns the page and its parts. The parts have paths below the page's own, so that all of it
/// works below any path that a proxy gives it.
pub(super) fn routes() -> Router<HttpSources> {
    Router::new()
        .route("/", get(async || part(HTML, include_str!("index.html"))))
        .route("/page/main.js", get(async || part(SCRIPT, include_str!("main.js"))))
        .route("/page/draw.js", get(async || part(SCRIPT, include_str!("draw.js"))))
        .route("/page/words.js", get(async || part(SCRIPT, include_str!("words.js"))))
        .route("/page/style.css", get(async || part(STYLE, include_str!("style.css"))))
        .route("/sign-in", get(form).post(sign_in).layer(DefaultBodyLimit::max(FORM_BYTES_MAX)))
}

#[derive(Deserialize)]
struct Form {
    token: String,
}

/// Shows the form to a reader that could do without it, and wants to see repair ids.
async fn form(State(sources): State<HttpSources>) -> Response {
    let has_token = sources.token.borrow().0.is_some();
    let why = if has_token {
        "with the token, repair ids are shown as well"
    } else {
        "this instance has no operators' token; start it with --admin-token-file"
    };
    sign_in_form(StatusCode::OK, why, has_token)
}

/// Takes the token from the form, and gives a cookie for it.
async fn sign_in(
    State(sources): State<HttpSources>,
    Extension(guess): Extension<gate::Guess>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let token = sources.token.borrow().clone();
    let form: Option<Form> = serde_urlencoded::from_bytes(&body).ok();
    let right = form.filter(|form| token.is(form.token.trim()));
    if let Some(wait) = guess.take_form(right.is_some()) {
        return gate::too_many(wait);
    }
    match right {
        Some(form) => {
            let cookie = gate::cookie(form.token.trim(), &headers);
            // Back to where the page is, by a path that holds below that of a proxy.
            let headers = [(header::LOCATION, "./".to_owned()), (header::SET_COOKIE, cookie)];
            fresh((StatusCode::SEE_OTHER, headers))
        }
        None => {
            let why = "this is not the operators' token; it is in the file of --admin-token-file";
            sign_in_form(StatusCode::FORBIDDEN, why, token.0.is_some())
        }
    }
}

/// Returns the form for the token, and why it is needed. Without a token there is nothing to fill
/// in.
pub(super) fn sign_in_form(status: StatusCode, why: &str, has_token: bool) -> Response {
    let form = if has_token { include_str!("sign-in.html") } else { "" };
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>EMNetChain</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"stylesheet\" href=\"page/style.css\">\
         <h1>EMNetChain</h1><p class=\"notice\">{why}.</p>{form}</html>\n"
    );
    let headers = [
        (header::CONTENT_TYPE, HTML),
        (header::CONTENT_SECURITY_POLICY, FORM_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    fresh((status, headers, text))
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
