//! Gives the loopback interface the address [`SOURCE_V6`], by one message of rtnetlink.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::SOURCE_V6;

/// Constants of the kernel's interface. Source: `linux/rtnetlink.h`, `linux/netlink.h`, `linux/if_addr.h`.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const AF_INET6: u8 = 10;
const IFA_LOCAL: u16 = 2;

/// The length of the header of a message.
const HEADER: usize = 16;

/// Adds the address, unless it is there.
///
/// # Errors
/// The kernel refuses, or has no IPv6.
pub(crate) fn add() -> io::Result<()> {
    match ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL) {
        Err(Errno::EEXIST) => Ok(()),
        result => Ok(result?),
    }
}

/// Removes the address, if it is there.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn remove() -> io::Result<()> {
    match ask(RTM_DELADDR, 0) {
        Err(Errno::EADDRNOTAVAIL) => Ok(()),
        result => Ok(result?),
    }
}

fn ask(kind: u16, flags: u16) -> Result<(), Errno> {
    let message = message(kind, flags, if_nametoindex("lo")?, SOURCE_V6);
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    // The kernel is at address 0.
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.get(..length).and_then(result).unwrap_or(Err(Errno::EPROTO))
}

/// A request about an address of an interface, with the length of its network.
fn message(kind: u16, flags: u16, interface: u32, address: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![AF_INET6, 128, 0, 0];
    body.extend(interface.to_ne_bytes());
    let octets = address.octets();
    body.extend((4 + octets.len() as u16).to_ne_bytes());
    body.extend(IFA_LOCAL.to_ne_bytes());
    body.extend(octets);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    // The number of the request, and of this socket, which the kernel fills in.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What an acknowledgement says; `None` if it is none.
fn result(answer: &[u8]) -> Option<Result<(), Errno>> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then(|| match code {
        0 => Ok(()),
        code => Err(Errno::from_raw(code.saturating_neg())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_says_what_became_of_the_request() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![0; HEADER + 4];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[HEADER..].copy_from_slice(&code.to_ne_bytes());
            bytes
        };
        assert_eq!(result(&answer(NLMSG_ERROR, 0)), Some(Ok(())));
        assert_eq!(result(&answer(NLMSG_ERROR, -17)), Some(Err(Errno::EEXIST)));
        assert_eq!(result(&answer(RTM_NEWADDR, 0)), None);
        assert_eq!(result(&[0; 10]), None);
    }
}
