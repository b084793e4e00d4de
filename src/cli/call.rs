//! One HTTP request to a running instance.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{Method, Request, Response, StatusCode, header},
};
use futures_util::StreamExt as _;
use hyper::{body::Body as _, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    config::{Faults, Sources, Value},
    ops::{
        api::Sentence,
        http::{DEFAULT_ADDR, gate::COMMAND},
    },
};

/// Longest wait for an answer: longer than the service lets a change of the cluster take.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Longest pause of a download.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An instance's HTTP, and what opens it.
#[derive(Debug)]
pub(super) struct Instance {
    /// `HOST:PORT`, looked up at each call.
    address: String,
    token: Option<String>,
}

/// The meaning of `--http-addr`.
enum Where {
    At(String),
    Auto,
    Off,
}

impl Value for Where {
    const PLACEHOLDER: &'static str = "HOST:PORT";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let is_host = !host.is_empty() && (!host.contains(':') || host.starts_with('['));
        match is_host && port.parse::<u16>().is_ok_and(|port| port > 0) {
            true => Ok(Self::At(text.to_owned())),
            false => Err(format!(
                "{text:?} is not the address of an instance; write HOST:PORT, such as \
                 localhost:9180, or ip:port or [ip]:port"
            )),
        }
    }
}

/// Returns the `Host` of the request. A receiver on this machine is called by its address: it knows
/// its own operators by that.
fn host(given: &str, reached: Option<SocketAddr>) -> String {
    match reached {
        Some(reached) if reached.ip().to_canonical().is_loopback() => reached.to_string(),
        Some(_) | None => given.to_owned(),
    }
}

impl Instance {
    /// Returns the instance that the settings name.
    pub(super) fn of(sources: &Sources) -> Result<Self, String> {
        let faults = |faults: Faults| faults.to_string();
        let address = match sources.read_key("http_addr").map_err(faults)? {
            Where::At(address) => address,
            Where::Auto => DEFAULT_ADDR.to_string(),
            Where::Off => {
                return Err("--http-addr is off; name that of an instance".to_owned());
            }
        };
        let token_file: Option<PathBuf> = sources.read_key("admin_token_file").map_err(faults)?;
        let read = |path: &Path| {
            let text = fs::read_to_string(path)
                .map_err(|error| format!("--admin-token-file {}: {error}", path.display()))?;
            Ok::<_, String>(text.trim().to_owned())
        };
        Ok(Self { address, token: token_file.as_deref().map(read).transpose()? })
    }

    /// Returns the answer to GET.
    pub(super) fn get(&self, path: &str) -> Result<Answer, String> {
        let json = self.call(Method::GET, path, Body::empty())?;
        Ok(Answer { address: self.address.clone(), json })
    }

    /// Returns the sentence that answers POST.
    pub(super) fn post(&self, path: &str, body: &impl Serialize) -> Result<String, String> {
        let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
        let json = self.call(Method::POST, path, Body::from(body))?;
        match (Answer { address: self.address.clone(), json }).read()? {
            Sentence::Done(done) => Ok(done),
            Sentence::Error(why) => Err(why),
        }
    }

    fn call(&self, method: Method, path: &str, body: Body) -> Result<Json, String> {
        let request = self.request(method, path, body)?;
        let asking = self.ask(request, ANSWER_MAX, async |answer| self.read(answer).await);
        runtime()?.block_on(asking)
    }

    /// Has what it sends to GET taken piece by piece, however much it is. It may take
    /// `answer_max` to begin; when `stop` ends, so does this.
    pub(super) fn download<E: From<String>>(
        &self,
        path: &str,
        answer_max: Duration,
        stop: impl Future<Output = String>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let request = self.request(Method::GET, path, Body::empty())?;
        let read = async |answer: Response<Body>| {
            if answer.status() != StatusCode::OK {
                return Ok(self.read(answer).await.map(drop)?);
            }
            let all = answer.body().size_hint().exact().unwrap_or(0);
            let (mut body, mut taken) = (answer.into_body().into_data_stream(), 0);
            let broken = |taken: u64, why: &str| {
                format!("{} broke off after {taken} of {all} bytes: {why}", self.address)
            };
            loop {
                let piece = timeout(PAUSE_MAX, body.next()).await;
                match piece.map_err(|_| broken(taken, "nothing comes any more"))? {
                    Some(piece) => {
                        let piece = piece.map_err(|error| broken(taken, &error.to_string()))?;
                        take(&piece)?;
                        taken += piece.len() as u64;
                    }
                    None if taken < all => Err(broken(taken, "the connection was closed"))?,
                    None => return Ok(()),
                }
            }
        };
        runtime()?.block_on(async {
            tokio::select! {
                done = self.ask(request, answer_max, read) => done,
                why = stop => Err(why.into()),
            }
        })
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, format!("{COMMAND}{}", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(body).map_err(|error| error.to_string())
    }

    /// Sends a request, and has the answer read by `read`.
    async fn ask<T, E: From<String>>(
        &self,
        mut request: Request<Body>,
        answer_max: Duration,
        read: impl AsyncFnOnce(Response<Body>) -> Result<T, E>,
    ) -> Result<T, E> {
        let unreachable = |error: std::io::Error| {
            format!(
                "no instance answers at {}: {error}; start it, or name another by --http-addr",
                self.address
            )
        };
        let late = |_| self.late();
        let stream = timeout(answer_max, TcpStream::connect(&self.address)).await.map_err(late)?;
        let stream = stream.map_err(unreachable)?;
        let host = host(&self.address, stream.peer_addr().ok());
        let host = host.parse().map_err(|_| format!("{host:?} is not the name of a host"))?;
        request.headers_mut().insert(header::HOST, host);
        let stream = TokioIo::new(stream);
        let broken = |error: hyper::Error| format!("{}: {error}", self.address);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
        let asking = async {
            let answer = timeout(answer_max, sender.send_request(request)).await.map_err(late)?;
            read(answer.map_err(broken)?.map(Body::new)).await
        };
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // The caller that waits for its bytes is told why there are no more.
            _ = connection => asking.await,
        }
    }

    /// Reads an answer in JSON.
    async fn read(&self, answer: Response<Body>) -> Result<Json, String> {
        let status = answer.status();
        let body = timeout(ANSWER_MAX, to_bytes(answer.into_body(), ANSWER_BYTES_MAX)).await;
        let body = body.map_err(|_| self.late())?.map_err(|error| error.to_string())?;
        let value: Json = serde_json::from_slice(&body).map_err(|_| stranger(&self.address))?;
        match value.get("error").and_then(Json::as_str) {
            Some(error) => Err(error.to_owned()),
            None if status == StatusCode::OK => Ok(value),
            None => Err(format!("{} answers {status}", self.address)),
        }
    }

    fn late(&self) -> String {
        format!("the instance at {} does not answer in time", self.address)
    }
}

/// The answer of an instance in JSON.
pub(super) struct Answer {
    address: String,
    json: Json,
}

impl Answer {
    /// The answer as it came, for scripts.
    pub(super) fn json(&self) -> &Json {
        &self.json
    }

    /// Reads it.
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, String> {
        serde_json::from_value(self.json).map_err(|_| stranger(&self.address))
    }
}

fn stranger(address: &str) -> String {
    format!("{address} answers, but it is no EMNetChain instance of this version")
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("the process cannot wait: {error}"))
}
