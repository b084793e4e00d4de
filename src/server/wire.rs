//! (stand-in until the wire layer lands)

use std::net::IpAddr;

use crate::{
    ids::{HeadAddr, OrphanAddr, PeerId, RepairId, Socket, TailAddr},
    registry::Message,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressPolicy {
    #[default]
    Auto,
}
impl AddressPolicy {
    pub fn allow(self, _source: IpAddr, _socket: &Socket) -> bool {
        true
    }
}

#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
}
impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }
    pub(super) fn next_object(&mut self) -> Option<Result<serde_json::Value, ()>> {
        let end = self.buffer.iter().position(|b| *b == b'}')?;
        let frame: Vec<u8> = self.buffer.drain(..=end).collect();
        Some(serde_json::from_slice(&frame).map_err(|_| ()))
    }
}
fn text(v: &serde_json::Value, k: &str) -> Option<String> {
    v.get(k)?.as_str().map(str::to_owned)
}
pub(super) struct ConnectRequest {
    pub(super) head: HeadAddr,
    pub(super) tail: TailAddr,
}
pub(super) struct ReconnectRequest {
    pub(super) id: RepairId,
    pub(super) ip: OrphanAddr,
}
pub(super) enum EmnetRequest {
    AddPeer { address: String },
    AskIp { id: PeerId },
    Other,
}
impl ConnectRequest {
    pub(super) fn parse(v: &serde_json::Value) -> Option<Self> {
        (text(v, "msg")? == "CONNECT").then_some(())?;
        Some(Self {
            head: HeadAddr(Socket::parse(&text(v, "head")?)?),
            tail: TailAddr(Socket::parse(&text(v, "tail")?)?),
        })
    }
}
impl ReconnectRequest {
    pub(super) fn parse(v: &serde_json::Value) -> Option<Self> {
        (text(v, "msg")? == "RECONNECT").then_some(())?;
        Some(Self {
            id: RepairId(text(v, "id")?.into()),
            ip: OrphanAddr(Socket::parse(&text(v, "ip")?)?),
        })
    }
}
impl EmnetRequest {
    pub(super) fn parse(v: &serde_json::Value) -> Option<Self> {
        Some(match text(v, "msg")?.as_str() {
            "ADD_PEER" => Self::AddPeer { address: text(v, "IP_Peer")? },
            "ASK_IP" => Self::AskIp { id: PeerId(v.get("id")?.as_u64()? as u32) },
            _ => Self::Other,
        })
    }
}
pub(super) fn encode(message: &Message) -> Vec<u8> {
    match message {
        Message::Link { part, ip } => {
            format!("{{\"msg\":\"CONNECT\",\"part\":\"{}\",\"ip\":\"{ip}\"}}", part.as_str())
        }
        Message::Repair { ip } => format!("{{\"msg\":\"CONNECT\",\"ip\":\"{ip}\"}}"),
        Message::PeerAdded { id } => format!("{{\"id\":{},\"msg\":\"SUCCESS\"}}\n", id.0),
        Message::PeerFound { address } => format!("{{\"IP\":\"{address}\",\"msg\":\"SUCCESS\"}}\n"),
        Message::PeerFailed => "{\"msg\":\"FAILED\"}\n".to_owned(),
    }
    .into_bytes()
}
