//! The guest's DNS: one question a message over UDP or TCP (RFC 1035 §4), answered here.
//!
//! Only addresses of allowed names are answered. Other types of an allowed name have no records, so that neither
//! TXT nor HTTPS records (RFC 9460, which carry the keys of ECH) come through. A name that is not allowed does not
//! exist (NXDOMAIN) and is never looked up, so that nothing leaks in it. REFUSED would be the truer word, but
//! resolvers take it for a broken server: they try again, wait, and call the failure a temporary one. Why stands
//! in an extended error (RFC 8914).

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use crate::domain::DomainName;
use crate::pins::TTL;

/// The most addresses in an answer: with a name of any length it then fits into 512 bytes, which every client
/// takes over UDP (RFC 1035 §4.2.1), extended error included.
const MAX_ADDRESSES: usize = 6;
/// The option of an extended error (RFC 8914 §2) and the one that is used: "Blocked" (§4.16).
const EXTENDED_ERROR: u16 = 15;
const BLOCKED: u16 = 15;
/// The longest explanation in an extended error.
const MAX_TEXT: usize = 100;
/// What is offered in EDNS (RFC 6891 §6.2.3).
const PAYLOAD: u16 = 1232;

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    /// Whether an address belongs to it.
    pub fn holds(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// A message that is a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) name: DomainName,
    /// `None`: a type that has no records here.
    pub(crate) family: Option<Family>,
    pub(crate) reply: Reply,
}

/// What a reply repeats of its question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    id: u16,
    recursion_desired: bool,
    query: Option<Query>,
    edns: bool,
}

/// Reads a message. `Err` is the reply to one that is no question here, or nothing if even that would be too
/// much.
pub(crate) fn read(message: &[u8]) -> Result<Asked, Option<Vec<u8>>> {
    let Ok(message) = Message::from_vec(message) else {
        // The id alone is safe to repeat (RFC 1035 §4.1.1), and only a question gets a reply.
        let question = message.len() >= 12 && message.get(2).is_some_and(|flags| flags & 0x80 == 0);
        let id = message.first_chunk().map(|id| u16::from_be_bytes(*id)).filter(|_| question);
        let plain = |id| Reply { id, recursion_desired: false, query: None, edns: false };
        return Err(id.and_then(|id| plain(id).code(ResponseCode::FormErr)));
    };
    let Message { metadata, queries, edns, .. } = message;
    if metadata.message_type != MessageType::Query {
        return Err(None);
    }
    let mut reply = Reply {
        id: metadata.id,
        recursion_desired: metadata.recursion_desired,
        query: None,
        edns: edns.is_some(),
    };
    if metadata.op_code != OpCode::Query {
        return Err(reply.code(ResponseCode::NotImp));
    }
    let [query] = queries.as_slice() else { return Err(reply.code(ResponseCode::FormErr)) };
    reply.query = Some(query.clone());
    if query.query_class() != DNSClass::IN {
        return Err(reply.code(ResponseCode::Refused));
    }
    match DomainName::parse(&query.name().to_ascii()) {
        Some(name) => {
            let family = match query.query_type() {
                RecordType::A => Some(Family::V4),
                RecordType::AAAA => Some(Family::V6),
                _ => None,
            };
            Ok(Asked { name, family, reply })
        }
        None => Err(reply.code(ResponseCode::NXDomain)),
    }
}

impl Reply {
    /// The addresses, as many of them as fit; none is an answer too.
    pub(crate) fn addresses(&self, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        self.write(ResponseCode::NoError, None, addresses)
    }

    /// No such name, and why.
    pub(crate) fn blocked(&self, why: &str) -> Option<Vec<u8>> {
        self.write(ResponseCode::NXDomain, Some(why), &[])
    }

    /// The host's resolver knows no such name.
    pub(crate) fn unknown(&self) -> Option<Vec<u8>> {
        self.code(ResponseCode::NXDomain)
    }

    /// The host's resolver failed, or has too much to do.
    pub(crate) fn failed(&self) -> Option<Vec<u8>> {
        self.code(ResponseCode::ServFail)
    }

    fn code(&self, code: ResponseCode) -> Option<Vec<u8>> {
        self.write(code, None, &[])
    }

    fn write(
        &self,
        code: ResponseCode,
        why: Option<&str>,
        addresses: &[IpAddr],
    ) -> Option<Vec<u8>> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        if let Some(query) = &self.query {
            message.add_query(query.clone());
            for address in addresses.iter().take(MAX_ADDRESSES) {
                let data = match address {
                    IpAddr::V4(address) => RData::A((*address).into()),
                    IpAddr::V6(address) => RData::AAAA((*address).into()),
                };
                let seconds = TTL.as_secs() as u32;
                message.add_answer(Record::from_rdata(query.name().clone(), seconds, data));
            }
        }
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            if let Some(why) = why {
                let text = why.bytes().take(MAX_TEXT).filter(u8::is_ascii);
                let option = BLOCKED.to_be_bytes().into_iter().chain(text).collect();
                edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, option));
            }
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }
}

/// How many addresses an answer holds at most.
pub(crate) fn fit(addresses: &mut Vec<IpAddr>) {
    addresses.truncate(MAX_ADDRESSES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Name;

    fn question(name: &str, kind: RecordType, edns: bool) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if edns {
            message.set_edns(Edns::new());
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn a_question_for_addresses_is_read() {
        let asked = read(&question("PyPI.org.", RecordType::AAAA, true)).unwrap();
        assert_eq!((asked.name.as_str(), asked.family), ("pypi.org", Some(Family::V6)));
        assert_eq!(read(&question("pypi.org.", RecordType::TXT, false)).unwrap().family, None);
        assert_eq!(read(&question("pypi.org.", RecordType::HTTPS, false)).unwrap().family, None);
    }

    #[test]
    fn an_answer_repeats_the_question_as_it_was_spelled() {
        let asked = read(&question("PyPI.org.", RecordType::A, true)).unwrap();
        let bytes = asked.reply.addresses(&["192.0.2.1".parse().unwrap()]).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (7, 1));
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert_eq!(answer.queries[0].name().to_ascii(), "PyPI.org.");
        assert_eq!(answer.answers[0].ttl, 60);
    }

    #[test]
    fn a_blocked_name_does_not_exist_and_says_why() {
        let asked = read(&question("evil.example.", RecordType::A, true)).unwrap();
        let answer = Message::from_vec(&asked.reply.blocked("no rule allows it").unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        let edns = answer.edns.unwrap();
        let options: Vec<_> = edns.options().as_ref().iter().collect();
        let expected = EdnsOption::Unknown(15, b"\x00\x0fno rule allows it".to_vec());
        assert!(options.iter().any(|(_, option)| *option == expected), "{options:?}");
        let plain = read(&question("evil.example.", RecordType::A, false)).unwrap();
        let answer = Message::from_vec(&plain.reply.blocked("no").unwrap()).unwrap();
        assert!(answer.edns.is_none());
    }

    #[test]
    fn the_longest_answer_fits_into_a_datagram() {
        let label = "a".repeat(61);
        let name = format!("{label}.{label}.{label}.{label}.example.");
        let name = &name[name.len() - 254..];
        let asked = read(&question(name, RecordType::AAAA, true)).unwrap();
        let addresses = vec!["2001:db9::1".parse().unwrap(); 40];
        assert!(asked.reply.addresses(&addresses).unwrap().len() <= 512);
        assert!(asked.reply.blocked(&"x".repeat(4096)).unwrap().len() <= 512);
    }

    #[test]
    fn what_is_no_question_is_refused_or_dropped() {
        assert_eq!(read(b""), Err(None));
        assert_eq!(read(&[0; 11]), Err(None));
        let mut answer = question("a.example.", RecordType::A, false);
        answer[2] |= 0x80;
        assert_eq!(read(&answer), Err(None));
        let code = |bytes: &[u8]| {
            Message::from_vec(&read(bytes).unwrap_err().unwrap()).unwrap().metadata.response_code
        };
        let mut two = question("a.example.", RecordType::A, false);
        two[5] = 2;
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut update = question("a.example.", RecordType::A, false);
        update[2] |= 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut chaos = question("a.example.", RecordType::A, false);
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(code(&chaos), ResponseCode::Refused);
        assert_eq!(code(&question("127.0.0.1.", RecordType::A, false)), ResponseCode::NXDomain);
        assert_eq!(code(&question("a\\.b.example.", RecordType::A, false)), ResponseCode::NXDomain);
    }
}
