//! The part of STUN (RFC 8489) that tells a client its address: Binding requests over UDP.
//!
//! Only well-formed Binding requests are answered. Responses and indications never are, nor is
//! anything broken, so no two servers can be made to talk to each other. There is no
//! authentication, which section 12 advises against for such a server, and no SOFTWARE in the
//! answer, which would only make it a better amplifier.
//!
//! Clients of the first STUN (RFC 3489) know no cookie: what stands there is part of their
//! transaction id, of 16 bytes. They are answered as RFC 5389, 12.2, has it: by MAPPED-ADDRESS,
//! which is not hidden. This server has no second address, so a request to be answered from one
//! (CHANGE-REQUEST) gets error 420.

use std::net::IpAddr;

use crate::ids::Endpoint;

const HEADER_BYTES: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;

const MAPPED_ADDRESS: u16 = 0x0001;
const CHANGE_REQUEST: u16 = 0x0003;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;

/// The attributes that must be understood and are, if only as "of no use here":
/// the attributes of RFC 8489 itself (MAPPED-ADDRESS, USERNAME, and so on).
const KNOWN: [u16; 11] = [
    MAPPED_ADDRESS,
    0x0006,
    MESSAGE_INTEGRITY,
    ERROR_CODE,
    UNKNOWN_ATTRIBUTES,
    0x0014,
    0x0015,
    MESSAGE_INTEGRITY_SHA256,
    0x001d,
    0x001e,
    XOR_MAPPED_ADDRESS,
];

/// The attributes of RFC 3489 that must be understood and are of no use here. RESPONSE-ADDRESS is
/// none of them: it would have the answer sent to a stranger.
const KNOWN_OF_OLD: [u16; 9] =
    [MAPPED_ADDRESS, 0x0004, 0x0005, 0x0006, 0x0007, MESSAGE_INTEGRITY, 0x0009, 0x000a, 0x000b];

/// The flags of CHANGE-REQUEST (RFC 3489, 11.2.4): another address, another port.
const CHANGES: u8 = 0x06;

/// A client asks for its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingRequest {
    /// The cookie and what the client chose, or 16 bytes of its choice; repeated in the answer.
    transaction: [u8; 16],
    /// Whether it is a request of RFC 3489, without the cookie.
    is_old: bool,
    /// Whether the request has a FINGERPRINT, and so the answer as well.
    fingerprint: bool,
    /// Attributes that the client wants understood and that are not.
    unknown: Vec<u16>,
}

/// STUN that must not be answered: not a request, not for Binding, or broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("STUN, but not a well-formed Binding request")]
pub struct Unanswerable;

/// Returns whether a datagram is STUN at all, well-formed or not (section 5: two zero bits, the
/// cookie), or a message of RFC 3489: one of its six types, and the length of the datagram.
pub fn is_stun(datagram: &[u8]) -> bool {
    has_cookie(datagram) || is_old(datagram)
}

fn has_cookie(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_BYTES && datagram[0] < 0x40 && datagram[4..8] == MAGIC_COOKIE
}

fn is_old(datagram: &[u8]) -> bool {
    let types = [0x0001, 0x0101, 0x0111, 0x0002, 0x0102, 0x0112];
    datagram.len() >= HEADER_BYTES
        && !has_cookie(datagram)
        && types.contains(&be16(&datagram[..2]))
        && usize::from(be16(&datagram[2..4])) == datagram.len() - HEADER_BYTES
}

impl BindingRequest {
    /// Reads a datagram that [`is_stun`].
    pub fn parse(datagram: &[u8]) -> Result<Self, Unanswerable> {
        if !is_stun(datagram) {
            return Err(Unanswerable);
        }
        let (header, mut rest) = datagram.split_at(HEADER_BYTES);
        if be16(&header[..2]) != BINDING_REQUEST || usize::from(be16(&header[2..4])) != rest.len() {
            return Err(Unanswerable);
        }
        let transaction = header[4..].try_into().expect("20 bytes less 4 are 16");
        let is_old = !has_cookie(datagram);
        let known = if is_old { &KNOWN_OF_OLD[..] } else { &KNOWN };
        let mut request = Self { transaction, is_old, fingerprint: false, unknown: Vec::new() };
        let mut signed = false;
        while !rest.is_empty() {
            let before = &datagram[..datagram.len() - rest.len()];
            let (kind, value) = next_attribute(&mut rest)?;
            match kind {
                FINGERPRINT if !is_old => {
                    let right = rest.is_empty() && value == fingerprint(before);
                    request.fingerprint = right;
                    if !right {
                        return Err(Unanswerable);
                    }
                }
                MESSAGE_INTEGRITY | MESSAGE_INTEGRITY_SHA256 => signed = true,
                _ if signed => {} // section 14.5: what follows the signature is ignored
                0x8000.. => {}
                kind if known.contains(&kind) => {}
                CHANGE_REQUEST if value.len() == 4 && value[3] & CHANGES == 0 => {}
                kind => request.unknown.push(kind),
            }
        }
        Ok(request)
    }

    /// Returns the answer to a request from `source`: its address, or error 420 if there is
    /// something in the request that must be understood and is not.
    pub fn reply(&self, source: Endpoint) -> Vec<u8> {
        let mut reply = Vec::with_capacity(64);
        let kind = if self.unknown.is_empty() { BINDING_SUCCESS } else { BINDING_ERROR };
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 0]); // the length, see below
        reply.extend(self.transaction);
        if self.unknown.is_empty() && self.is_old {
            put_attribute(&mut reply, MAPPED_ADDRESS, &address_value(source, [0; 16]));
        } else if self.unknown.is_empty() {
            // Hidden from NATs that rewrite addresses (section 14.2).
            let address = address_value(source, self.transaction);
            put_attribute(&mut reply, XOR_MAPPED_ADDRESS, &address);
        } else {
            put_attribute(&mut reply, ERROR_CODE, &[0, 0, 4, 20]); // the reason phrase may be empty
            // RFC 3489, 11.2.10, knows no padding: an odd list repeats one of its attributes.
            let odd = self.is_old && !self.unknown.len().is_multiple_of(2);
            let again = self.unknown.last().filter(|_| odd);
            let listed = self.unknown.iter().chain(again);
            let unknown: Vec<u8> = listed.flat_map(|kind| kind.to_be_bytes()).collect();
            put_attribute(&mut reply, UNKNOWN_ATTRIBUTES, &unknown);
        }
        if self.fingerprint {
            set_length(&mut reply, 8); // the checksum covers a length that counts it already
            let checksum = fingerprint(&reply);
            put_attribute(&mut reply, FINGERPRINT, &checksum);
        }
        set_length(&mut reply, 0);
        reply
    }
}

/// Returns the value of an address attribute, hidden by a mask that begins with the port's.
fn address_value(source: Endpoint, mask: [u8; 16]) -> Vec<u8> {
    let (family, mut address) = match source.ip {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    address.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    let mut value = vec![0, family];
    value.extend((source.port ^ be16(&mask[..2])).to_be_bytes());
    value.extend(address);
    value
}

/// Takes one attribute and its padding off the front.
fn next_attribute<'a>(rest: &mut &'a [u8]) -> Result<(u16, &'a [u8]), Unanswerable> {
    let (header, behind) = rest.split_at_checked(4).ok_or(Unanswerable)?;
    let bytes = usize::from(be16(&header[2..]));
    let (padded, behind) =
        behind.split_at_checked(bytes.next_multiple_of(4)).ok_or(Unanswerable)?;
    *rest = behind;
    Ok((be16(&header[..2]), &padded[..bytes]))
}

fn put_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let bytes = u16::try_from(value.len()).expect("half of what one datagram brought");
    message.extend(kind.to_be_bytes());
    message.extend(bytes.to_be_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Writes the length field for the message as it is and `more` bytes to come.
fn set_length(message: &mut [u8], more: usize) {
    let bytes = message.len() - HEADER_BYTES + more;
    let bytes = u16::try_from(bytes).expect("hardly more than one datagram brought");
    message[2..4].copy_from_slice(&bytes.to_be_bytes());
}

/// Returns the value of FINGERPRINT for the message before it (section 14.7).
fn fingerprint(message: &[u8]) -> [u8; 4] {
    (crc32fast::hash(message) ^ 0x5354_554e).to_be_bytes()
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Socket;

    /// RFC 5769, 2.1: a request of an ICE agent.
    const REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae\
        802200105354554e207465737420636c69656e74 002400046e0001ff 80290008932ff9b151263b36\
        000600096576746a3a68367659202020 000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2\
        80280004e57a3bcf";
    /// RFC 5769, 2.2: a response to 192.0.2.1:32853.
    const RESPONSE_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae\
        8022000b7465737420766563746f7220 002000080001a147e112a643\
        000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004c07d4c96";
    /// RFC 5769, 2.3: a response to [2001:db8:1234:5678:11:2233:4455:6677]:32853.
    const RESPONSE_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae\
        8022000b7465737420766563746f7220 002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9\
        00080014a382954e4be67bf11784c97c8292c275bfe3ed41 80280004c8fb0b4c";

    const TRANSACTION: &str = "b7e7a701bc34d686fa87dfae";

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn socket(text: &str) -> Endpoint {
        Socket::parse(text).unwrap().endpoint()
    }

    /// Returns a request with these attributes and no fingerprint.
    fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = hex(&format!("00010000 2112a442 {TRANSACTION}"));
        for (kind, value) in attributes {
            put_attribute(&mut message, *kind, value);
        }
        set_length(&mut message, 0);
        message
    }

    fn with_fingerprint(mut message: Vec<u8>) -> Vec<u8> {
        set_length(&mut message, 8);
        let checksum = fingerprint(&message);
        put_attribute(&mut message, FINGERPRINT, &checksum);
        message
    }

    fn reply(datagram: &[u8], source: &str) -> Vec<u8> {
        BindingRequest::parse(datagram).unwrap().reply(socket(source))
    }

    #[test]
    fn addresses_are_written_as_in_the_vectors_of_rfc_5769() {
        assert_eq!(
            reply(&request(&[]), "192.0.2.1:32853"),
            hex(&format!("0101000c 2112a442 {TRANSACTION} 002000080001a147e112a643"))
        );
        assert_eq!(
            reply(&request(&[]), "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
            hex(&format!(
                "01010018 2112a442 {TRANSACTION} 002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
            ))
        );
        let in_vector = |vector: &str, value: &str| {
            let (vector, value) = (hex(vector), hex(value));
            vector.windows(value.len()).any(|window| window == value)
        };
        assert!(in_vector(RESPONSE_V4, "002000080001a147e112a643"));
        assert!(in_vector(RESPONSE_V6, "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"));
    }

    #[test]
    fn fingerprints_are_those_of_the_vectors_of_rfc_5769() {
        for vector in [REQUEST, RESPONSE_V4, RESPONSE_V6] {
            let message = hex(vector);
            let (before, attribute) = message.split_at(message.len() - 8);
            assert_eq!(fingerprint(before), attribute[4..], "{vector}");
        }
    }

    #[test]
    fn a_request_with_a_fingerprint_is_answered_with_one() {
        let answer = reply(&with_fingerprint(request(&[(0x8022, b"me")])), "192.0.2.1:32853");
        let (before, attribute) = answer.split_at(answer.len() - 8);
        assert_eq!(attribute[..4], [0x80, 0x28, 0, 4]);
        assert_eq!(attribute[4..], fingerprint(before));
        assert_eq!(usize::from(be16(&answer[2..4])), answer.len() - HEADER_BYTES);
    }

    /// RFC 5389, 12.2: no cookie, and 16 bytes to be repeated.
    #[test]
    fn a_request_of_rfc_3489_is_answered_with_the_plain_address() {
        let id = "000102030405060708090a0b0c0d0e0f";
        let plain = hex(&format!("00010000 {id}"));
        assert_eq!(
            reply(&plain, "192.0.2.1:32853"),
            hex(&format!("0101000c {id} 0001000800018055c0000201"))
        );
        assert_eq!(
            reply(&plain, "[2001:db8::1]:32853"),
            hex(&format!("01010018 {id} 000100140002805520010db8000000000000000000000001"))
        );
        // A flag asks for another source; none, for nothing. Unknown attributes come in pairs.
        let none = hex(&format!("00010008 {id} 0003000400000000"));
        assert_eq!(reply(&none, "192.0.2.1:32853"), reply(&plain, "192.0.2.1:32853"));
        for flags in ["02", "04", "06"] {
            let change = hex(&format!("00010008 {id} 00030004000000{flags}"));
            assert_eq!(
                reply(&change, "192.0.2.1:32853"),
                hex(&format!("01110010 {id} 0009000400000414 000a000400030003"))
            );
        }
        let elsewhere = hex(&format!("0001000c {id} 000200080001100acb007109"));
        assert_eq!(reply(&elsewhere, "192.0.2.1:32853")[..2], [1, 0x11], "RESPONSE-ADDRESS");
    }

    #[test]
    fn only_requests_of_rfc_3489_are_answered_and_broken_ones_are_none() {
        let id = "000102030405060708090a0b0c0d0e0f";
        for kind in ["0101", "0111", "0002", "0102", "0112"] {
            let message = hex(&format!("{kind}0000 {id}"));
            assert!(is_stun(&message), "{kind}");
            assert_eq!(BindingRequest::parse(&message), Err(Unanswerable), "{kind}");
        }
        // What has another type or length is text.
        for other in ["00030000", "00010004", "0001fff0", "61620000"] {
            assert!(!is_stun(&hex(&format!("{other} {id}"))), "{other}");
        }
        let cut = hex(&format!("00010004 {id} 00030004"));
        assert_eq!(BindingRequest::parse(&cut), Err(Unanswerable));
    }

    #[test]
    fn a_change_of_address_is_refused_with_the_cookie_as_well() {
        let unknown = |flags| BindingRequest::parse(&request(&[(3, flags)])).unwrap().unknown;
        assert!(unknown(&[0; 4]).is_empty());
        for flags in [&[0, 0, 0, 2][..], &[0, 0, 0, 4], &[0, 0, 0, 6], b""] {
            assert_eq!(unknown(flags), [3], "{flags:?}");
        }
    }

    #[test]
    fn what_must_be_understood_and_is_not_gets_error_420() {
        let parsed = BindingRequest::parse(&hex(REQUEST)).unwrap();
        assert_eq!(parsed.unknown, [0x0024], "the PRIORITY of ICE is for peers, not for servers");
        let asks = request(&[(0x0003, &[0, 0, 0, 6]), (0x0026, b"pad"), (0x7fff, b"")]);
        assert_eq!(
            reply(&asks, "192.0.2.1:32853"),
            hex(&format!(
                "01110014 2112a442 {TRANSACTION} 0009000400000414 000a0006000300267fff0000"
            ))
        );
    }

    #[test]
    fn optional_and_known_attributes_are_passed_over() {
        let message = request(&[
            (0x8022, b"some software"),
            (0x0006, b"user"),
            (0xc001, b""),
            (MESSAGE_INTEGRITY, &[0; 20]),
            (0x7ffe, b"behind the signature"),
        ]);
        assert!(BindingRequest::parse(&message).unwrap().unknown.is_empty());
    }

    #[test]
    fn responses_indications_and_other_methods_are_never_answered() {
        for kind in [0x0101, 0x0111, 0x0011, 0x0003, 0x0004, 0x0103, 0x3fff] {
            let mut message = request(&[]);
            message[..2].copy_from_slice(&u16::to_be_bytes(kind));
            assert!(is_stun(&message));
            assert_eq!(BindingRequest::parse(&message), Err(Unanswerable), "{kind:#06x}");
        }
        for vector in [RESPONSE_V4, RESPONSE_V6] {
            assert_eq!(BindingRequest::parse(&hex(vector)), Err(Unanswerable));
        }
    }

    #[test]
    fn broken_requests_are_never_answered() {
        let good = with_fingerprint(request(&[(0x8022, b"abc")]));
        assert!(BindingRequest::parse(&good).is_ok());
        for end in 0..good.len() {
            assert!(BindingRequest::parse(&good[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..good.len() * 8 {
            let mut bent = good.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            // Some flips turn the fingerprint into another attribute, or hide it in one.
            let passed = BindingRequest::parse(&bent).is_ok_and(|request| request.fingerprint);
            assert!(!passed, "bit {bit} flipped");
        }
        let mut longer = good;
        put_attribute(&mut longer, 0x8022, b"behind the fingerprint");
        set_length(&mut longer, 0);
        assert!(BindingRequest::parse(&longer).is_err());
    }

    /// A request without a fingerprint has nothing but its length to tell that it is whole.
    #[test]
    fn a_length_other_than_that_of_the_datagram_is_never_answered() {
        let attributes: [&[(u16, &[u8])]; 3] =
            [&[], &[(0x8022, b"abc")], &[(0x8022, b"abcd"), (0x0006, b"user")]];
        for attributes in attributes {
            let good = request(attributes);
            assert!(BindingRequest::parse(&good).is_ok());
            let right = be16(&good[2..4]);
            for wrong in (0..=right + 24).filter(|length| *length != right) {
                let mut bent = good.clone();
                bent[2..4].copy_from_slice(&wrong.to_be_bytes());
                assert_eq!(BindingRequest::parse(&bent), Err(Unanswerable), "{wrong} for {right}");
            }
            for more in 1..=24 {
                let mut longer = good.clone();
                longer.resize(good.len() + more, 0);
                assert_eq!(BindingRequest::parse(&longer), Err(Unanswerable), "{more} too many");
            }
        }
        // The fingerprint is right, and covers the wrong length.
        let mut bent = request(&[]);
        for wrong in [0_u16, 4, 12] {
            bent[2..4].copy_from_slice(&wrong.to_be_bytes());
            let checksum = fingerprint(&bent);
            let mut message = bent.clone();
            put_attribute(&mut message, FINGERPRINT, &checksum);
            assert_eq!(BindingRequest::parse(&message), Err(Unanswerable), "{wrong} for 8");
        }
    }

    /// An attribute must lie in the message with its padding.
    #[test]
    fn an_attribute_that_ends_behind_the_message_is_never_answered() {
        let whole = request(&[(0x8022, b"abcde")]);
        assert!(BindingRequest::parse(&whole).is_ok());
        for cut in 1..12 {
            let mut short = whole[..whole.len() - cut].to_vec();
            set_length(&mut short, 0);
            assert_eq!(BindingRequest::parse(&short), Err(Unanswerable), "{cut} bytes cut off");
        }
        for value in [0x000c_u16, 0x000d, 0x0100, 0xfffd, 0xffff] {
            let mut bent = request(&[(0x8022, b"abcdefgh")]);
            bent[22..24].copy_from_slice(&value.to_be_bytes());
            assert_eq!(BindingRequest::parse(&bent), Err(Unanswerable), "{value} of 8 bytes");
        }
    }

    #[test]
    fn attributes_are_optional_from_0x8000_on_and_known_by_their_number() {
        let unknown = |kind| BindingRequest::parse(&request(&[(kind, b"")])).unwrap().unknown;
        // RFC 8489, 18.3: those of its own that must be understood.
        let known = [1, 6, 8, 9, 0xa, 0x14, 0x15, 0x1c, 0x1d, 0x1e, 0x20];
        for kind in (0..0x40).chain([0x7fff]) {
            let expected = if known.contains(&kind) { vec![] } else { vec![kind] };
            assert_eq!(unknown(kind), expected, "{kind:#06x}");
        }
        for kind in [0x8000, 0x8001, 0x8022, 0xffff] {
            assert!(unknown(kind).is_empty(), "{kind:#06x}");
        }
    }

    #[test]
    fn stun_is_told_by_its_cookie_and_two_zero_bits() {
        let good = request(&[]);
        assert!(is_stun(&good) && !is_stun(&good[..19]));
        for bit in 0..64 {
            let mut bent = good.clone();
            bent[bit / 8] ^= 0x80 >> (bit % 8);
            // Type and length may be anything else: it is STUN all the same, and not answered.
            // Without the cookie it is a request of RFC 3489.
            assert_eq!(is_stun(&bent), bit >= 2, "bit {bit}");
            bent[3] = 4;
            assert_eq!(is_stun(&bent), (2..32).contains(&bit), "bit {bit}, and the length");
        }
    }

    #[test]
    fn an_answer_is_hardly_larger_than_its_request() {
        for source in ["192.0.2.1:32853", "[2001:db8::1]:32853"] {
            for attributes in [0, 1, 2, 3, 50, 16_000] {
                let message = request(&vec![(0x7000, &b""[..]); attributes]);
                for message in [message.clone(), with_fingerprint(message)] {
                    assert!(reply(&message, source).len() <= message.len() + 24);
                }
            }
        }
    }
}
