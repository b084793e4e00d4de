//! The one form of an error: JSON with a sentence for people under `error`. What routes refuse by
//! themselves has it already. The router's own refusals, and those of what takes a request apart
//! before a route sees it, are text or have no body at all, and get it here.

use axum::{
    body::to_bytes,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};

use super::admin;

/// The longest text that is carried over, in bytes; ours are a line.
const TEXT_BYTES_MAX: usize = 4096;

/// Gives an error its form.
pub(super) async fn in_one_form(answer: Response) -> Response {
    let status = answer.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let kind = answer.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    // The form to sign in is for people. The text of a 503 is that of /readyz, which is no error:
    // it is what a supervisor asked for.
    let is_page = kind.is_some_and(|kind| kind.starts_with(b"text/html"));
    let has_form = kind.is_some_and(|kind| kind.starts_with(b"application/json"));
    if !is_error || is_page || has_form || status == StatusCode::SERVICE_UNAVAILABLE {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let text = to_bytes(body, TEXT_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let sentence = match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            "this path does not take this method; the header `Allow` names those that it takes"
                .to_owned()
        }
        _ if text.is_empty() => status.canonical_reason().unwrap_or("it failed").to_lowercase(),
        _ => text,
    };
    let mut told = admin::answer(status, Err(sentence));
    // What else a client is told, such as the methods that there are, it goes on being told.
    for (name, value) in &head.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CACHE_CONTROL].contains(name) {
            told.headers_mut().append(name, value.clone());
        }
    }
    told
}
