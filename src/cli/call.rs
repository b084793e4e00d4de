//! One HTTP request to a running instance.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{Method, Request, StatusCode, header},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    config::{Faults, Sources},
    server::http::{DEFAULT_ADDR, HttpAddr},
};

/// How long an answer may take: longer than the service lets a change of the cluster take.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An instance's HTTP, and what opens it.
#[derive(Debug)]
pub(super) struct Instance {
    address: SocketAddr,
    token: Option<String>,
}

impl Instance {
    /// The instance that the settings name.
    pub(super) fn of(sources: &Sources) -> Result<Self, String> {
        let faults = |faults: Faults| faults.to_string();
        let address = match sources.read_key("http_addr").map_err(faults)? {
            HttpAddr::At(address) => address,
            HttpAddr::Auto => DEFAULT_ADDR,
            HttpAddr::Off => {
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

    /// What it says to GET.
    pub(super) fn get(&self, path: &str) -> Result<Value, String> {
        self.call(Method::GET, path, None)
    }

    /// What it says to POST.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.call(Method::POST, path, Some(body))
    }

    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("the process cannot wait: {error}"))?;
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(body).map_err(|error| error.to_string())?;
        let asked = runtime.block_on(async { timeout(ANSWER_MAX, self.ask(request)).await });
        let (status, body) = asked
            .map_err(|_| format!("the instance at {} does not answer in time", self.address))??;
        let value: Value = serde_json::from_slice(&body).map_err(|_| {
            format!("{} answers, but it is no EMNetChain instance of this version", self.address)
        })?;
        match value.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.to_owned()),
            None if status == StatusCode::OK => Ok(value),
            None => Err(format!("{} answers {status}", self.address)),
        }
    }

    async fn ask(&self, request: Request<Body>) -> Result<(StatusCode, Vec<u8>), String> {
        let unreachable = |error: std::io::Error| {
            format!(
                "no instance answers at {}: {error}; start it, or name another by --http-addr",
                self.address
            )
        };
        let stream = TcpStream::connect(self.address).await.map_err(unreachable)?;
        let broken = |error: hyper::Error| format!("{}: {error}", self.address);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let asking = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = to_bytes(Body::new(answer.into_body()), ANSWER_BYTES_MAX).await;
            Ok((status, body.map_err(|error| error.to_string())?.to_vec()))
        };
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            ended = connection => match ended {
                Ok(()) => asking.await,
                Err(error) => Err(broken(error)),
            },
        }
    }
}
